"""Block encoders: right layout, error no worse than the reference quantizers, the same bytes everywhere."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

from runtime._native import encoding_loss, find_not_finite, new_buffer, quantize_rows
from tests.quant.helpers import decode, encode, row_bytes, weighted_error

TARGETS = [
    *(T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0),
    *(T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K),
    *(T.IQ4_NL, T.IQ4_XS, T.MXFP4),
]
# Root mean square error relative to the RMS of normally distributed weights, a little above what is reached.
RELATIVE_RMSE = dict(
    zip(
        TARGETS,
        (0.085, 0.073, 0.042, 0.036, 0.0056, 0.30, 0.16, 0.073, 0.036, 0.019, 0.08, 0.08, 0.118),
        strict=True,
    )
)

# Half of the widest gap between neighbouring values, relative to the largest weight, and what clipping adds.
PEAK_ERROR = {T.Q2_K: 0.26, T.Q3_K: 0.15, T.IQ4_NL: 0.14, T.IQ4_XS: 0.14, T.MXFP4: 0.2}


def levels() -> list[str]:
    x = np.zeros((1, 256), np.float32)
    found = []
    for level in ("scalar", "avx2", "avxvnni", "avx512vnni"):
        try:
            encode(x, T.Q8_0, level=level)
        except ValueError:
            continue
        found.append(level)
    return found


def weights(rows: int, cols: int, seed: int = 0, scale: float = 0.02) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, cols)) * scale
    x[:, ::97] *= 6  # outliers, as trained matrices have them
    return x.astype(np.float32)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_error_is_small(target):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((64, 512)).astype(np.float32)
    decoded = decode(encode(x, target), target)
    assert np.sqrt(((x - decoded) ** 2).mean()) < RELATIVE_RMSE[target]


def test_q8_0_has_the_bytes_of_every_gguf_writer():
    x = weights(64, 576)
    assert np.array_equal(encode(x, T.Q8_0), gguf.quants.quantize(x, T.Q8_0))


@pytest.mark.parametrize("target", [T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.MXFP4], ids=lambda t: t.name)
def test_legacy_types_beat_the_plain_rounding(target):
    x = weights(64, 896)
    ours = weighted_error(x, decode(encode(x, target), target), target)
    plain = weighted_error(x, decode(gguf.quants.quantize(x, target), target), target)
    assert ours < plain


@pytest.mark.parametrize(
    "name", ["Q4_K_M", "Q5_K_S", "Q8_0", "Q2_K", "Q3_K_M", "Q6_K", "Q4_0", "IQ4_NL", "IQ4_XS"]
)
def test_error_is_not_above_llama_quantize(shared_dir, name):
    models = shared_dir / "models"
    source = {t.name: t for t in gguf.GGUFReader(models / "tiny256-f16.gguf").tensors}
    theirs = gguf.GGUFReader(models / f"tiny256-{name}.gguf").tensors
    compared = 0
    for tensor in theirs:
        if tensor.tensor_type == T.F32:
            continue
        x = source[tensor.name].data
        ours = weighted_error(
            x, decode(encode(x, tensor.tensor_type), tensor.tensor_type), tensor.tensor_type
        )
        limit = weighted_error(x, decode(tensor.data, tensor.tensor_type), tensor.tensor_type)
        assert ours <= limit, (
            f"{tensor.name} {tensor.tensor_type.name}: {ours / limit:.4f} of llama-quantize's error"
        )
        compared += 1
    assert compared == 30


@pytest.mark.parametrize("target", [*TARGETS, T.F16, T.BF16], ids=lambda t: t.name)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_same_bytes_at_every_level_and_thread_count(target, dtype):
    x = weights(33, 768, scale=0.5).astype(dtype)
    x[3, :256] = 0
    x[4, :256] *= dtype(1e-4)  # subnormal f16 scales
    x[5, :32] = 0.25
    wanted = encode(x, target, level="scalar", threads=1)
    for level in levels():
        for threads in (1, 3):
            assert np.array_equal(encode(x, target, level=level, threads=threads), wanted), (level, threads)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_importance_is_heeded(target):
    """Columns that count more come out closer; the same bytes everywhere; a uniform scale of it changes nothing."""
    x = weights(24, 512)
    importance = np.exp(np.random.default_rng(3).normal(0, 1.5, 512)).astype(np.float32)
    importance[7] = 0
    with_it = encode(x, target, importance=importance)
    if target == T.Q8_0:  # nothing to choose
        assert np.array_equal(with_it, encode(x, target))
        return
    error = (importance * (decode(with_it, target) - x) ** 2).sum()
    assert error < 0.99 * (importance * (decode(encode(x, target), target) - x) ** 2).sum()
    for level in levels():
        assert np.array_equal(encode(x, target, level=level, threads=3, importance=importance), with_it), (
            level
        )
    assert np.array_equal(encode(x, target, importance=importance * np.float32(1024)), with_it)
    assert np.array_equal(encode(x, target, importance=np.zeros(512, np.float32)), encode(x, target))


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_row_split_does_not_matter(target):
    x = weights(9, 1024)
    whole = encode(x, target)
    for row in range(len(x)):
        assert np.array_equal(encode(x[row : row + 1], target)[0], whole[row])


@pytest.mark.parametrize("target", [T.F16, T.BF16, *TARGETS], ids=lambda t: t.name)
def test_special_rows_stay_finite_and_close(target):
    x = np.zeros((9, 256), np.float32)
    x[1] = 1e-9  # below every f16
    x[2] = 3e-7  # a handful of f16's smallest steps
    x[3] = np.linspace(-1e-5, 1e-5, 256)
    x[4] = 7.5  # constant
    x[5] = -7.5
    x[6, 100] = 1000.0  # one spike
    x[7] = np.linspace(0.0, 1.0, 256)
    x[8] = np.linspace(-30000.0, 60000.0, 256)
    decoded = decode(encode(x, target), target)
    assert np.isfinite(decoded).all()
    peak = np.abs(x).max(axis=1, keepdims=True)
    tiny = 4e-7 if target == T.IQ4_NL else 6e-8  # half a gap under the smallest f16 step
    assert (np.abs(decoded - x) <= peak * PEAK_ERROR.get(target, 0.08) + tiny).all()
    assert not decoded[0].any()


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_tiny_weights_are_kept(target):
    """Scales below 6e-5 are subnormal f16: the choice of integers must make up for their coarse steps."""
    x = weights(16, 256, scale=2e-5)
    decoded = decode(encode(x, target), target)
    assert np.sqrt(((x - decoded) ** 2).mean()) < max(0.11, 1.6 * RELATIVE_RMSE[target]) * np.sqrt(
        (x**2).mean()
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("threads", [1, 4])
def test_first_non_finite_element_is_named(bad, dtype, threads):
    x = weights(300, 256).astype(dtype)
    x[123, 45] = bad
    x[250, 0] = bad
    out = np.empty(300 * row_bytes(T.Q4_K, 256), np.uint8)
    source_type = T.F32 if dtype == np.float32 else T.F16
    fault = quantize_rows(x.reshape(-1).view(np.uint8), source_type, 300, 256, T.Q4_K, out, threads)
    assert fault is not None
    assert fault[:2] == (123, 45)
    assert np.array_equal(fault[2], bad, equal_nan=True)


@pytest.mark.parametrize("target", [T.F16, T.BF16, *TARGETS], ids=lambda t: t.name)
def test_values_beyond_f16_scales_are_named(target):
    x = np.zeros((2, 256), np.float32)
    x[1, 7] = 1e30 if target != T.BF16 else 3.4e38
    out = np.empty(2 * row_bytes(target, 256), np.uint8)
    assert quantize_rows(x.reshape(-1).view(np.uint8), T.F32, 2, 256, target, out, 1)[:2] == (1, 7)


LARGEST = {
    T.BF16: 3.38e38,
    T.F16: 65504,
    T.Q8_0: 65504 * 127,
    T.Q4_0: 65504 * 5,
    T.Q4_1: 65504,
    T.Q5_0: 65504 * 11,
    T.Q5_1: 65504,
    T.Q2_K: 65504 * 10,
    T.Q3_K: 65504 * 80,
    T.Q4_K: 65504 * 60,
    T.Q5_K: 65504 * 60,
    T.Q6_K: 1e8,
    T.IQ4_NL: 65504 * 95,
    T.IQ4_XS: 1e8,
    T.MXFP4: 1e8,
}


@pytest.mark.parametrize("target", LARGEST, ids=lambda t: t.name)
@pytest.mark.parametrize("shape", ["uniform", "spikes", "positive", "constant"])
def test_largest_weights_stay_finite(target, shape):
    rng = np.random.default_rng(11)
    x = rng.uniform(-1, 1, (8, 256))
    if shape == "spikes":
        x **= 15
    elif shape == "positive":
        x = np.abs(x)
    elif shape == "constant":
        x = np.sign(x)
    x = (x / np.abs(x).max() * LARGEST[target]).astype(np.float32)
    decoded = decode(encode(x, target), target)
    assert np.isfinite(decoded).all()
    x, decoded = x / LARGEST[target], decoded / LARGEST[target]
    assert np.sqrt(((x - decoded) ** 2).mean()) < max(0.1, 1.6 * RELATIVE_RMSE.get(target, 0)) * np.sqrt(
        (x**2).mean()
    )


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_bf16_source_equals_its_float_values(target):
    x = weights(8, 256)
    packed = gguf.quants.quantize(x, T.BF16)
    out = np.empty(8 * row_bytes(target, 256), np.uint8)
    assert quantize_rows(packed.reshape(-1), T.BF16, 8, 256, target, out, 2) is None
    floats = gguf.quants.dequantize(packed, T.BF16)
    assert np.array_equal(out.reshape(8, -1), encode(floats, target))


def test_f16_conversion_is_exact():
    values = np.arange(65536, dtype=np.uint16).view(np.float16)
    values = values[np.isfinite(values)].reshape(1, -1)
    assert np.array_equal(encode(values.astype(np.float32), T.F16).view(np.uint16), values.view(np.uint16))
    between = (values.astype(np.float32) * np.float32(1.0004)).clip(-65000, 65000)
    assert np.array_equal(encode(between, T.F16).view(np.float16), between.astype(np.float16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source_type": int(T.Q4_K)}, "source"),
        ({"source_type": 4000}, "unknown"),
        ({"target_type": int(T.IQ2_XXS), "out": np.empty(66, np.uint8)}, "no encoder"),
        ({"importance": np.ones(255, np.float32)}, "importance has 255"),
        ({"importance": np.full(256, np.nan, np.float32)}, "finite and not negative"),
        ({"importance": np.full(256, -1, np.float32)}, "finite and not negative"),
        ({"n_cols": 255}, "source has"),
        ({"n_rows": -1}, "n_rows"),
        ({"n_rows": 2**40, "n_cols": 2**40}, "too large|source has"),
        ({"n_threads": 0}, "n_threads"),
        ({"level": "mmx"}, "CPU level"),
        ({"out": np.empty(143, np.uint8)}, "out has"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    arguments = {
        "source": np.zeros(1024, np.uint8),
        "source_type": int(T.F32),
        "n_rows": 1,
        "n_cols": 256,
        "target_type": int(T.Q4_K),
        "out": np.empty(144, np.uint8),
        "n_threads": 1,
    }
    with pytest.raises(ValueError, match=message):
        quantize_rows(**{**arguments, **change})


@pytest.mark.parametrize("source", [T.F32, T.F16, T.BF16], ids=lambda t: t.name)
@pytest.mark.parametrize("target", [T.Q4_0, T.Q4_K, T.Q6_K, T.IQ4_XS], ids=lambda t: t.name)
def test_loss_is_that_of_the_sampled_rows(source, target):
    x = weights(37, 8192 + 512)
    raw = gguf.quants.quantize(x, source).view(np.uint8).reshape(-1)
    stored = gguf.quants.dequantize(raw.reshape(37, -1), source).reshape(x.shape)
    blocks = encode(stored.astype(np.float32), target)
    rows = slice(3, None, 16)
    exact, decoded = stored[rows].astype(np.float64), decode(blocks, target)[rows].astype(np.float64)
    shape = (int(source), *x.shape, int(target), blocks.reshape(-1), 3, 16)
    found = {encoding_loss(raw, *shape, level=level) for level in levels()}
    assert len(found) == 1
    assert found.pop() == pytest.approx((np.square(exact - decoded).sum(), np.square(exact).sum()), rel=1e-12)


def test_loss_of_no_rows_and_of_wrong_arguments():
    x = weights(2, 256)
    raw, blocks = x.view(np.uint8).reshape(-1), encode(x, T.Q4_K).reshape(-1)
    shape = (int(T.F32), 2, 256, int(T.Q4_K), blocks)
    assert encoding_loss(raw, *shape, 2, 16) == (0.0, 0.0)
    for first_row, every_rows in ((-1, 16), (0, 0), (0, 1 << 41)):
        with pytest.raises(ValueError, match="first_row"):
            encoding_loss(raw, *shape, first_row, every_rows)
    with pytest.raises(ValueError, match="out has 10 bytes"):
        encoding_loss(raw, int(T.F32), 2, 256, int(T.Q4_K), blocks[:10], 0, 1)
    with pytest.raises(ValueError, match="source type"):
        encoding_loss(blocks, int(T.Q4_K), 2, 256, int(T.Q4_K), blocks, 0, 1)


def test_find_not_finite():
    for dtype, type_id in ((np.float32, T.F32), (np.float16, T.F16)):
        x = np.ones(5000, dtype)
        assert find_not_finite(x.view(np.uint8), type_id) == -1
        x[[3000, 4000]] = np.nan, np.inf
        assert find_not_finite(x.view(np.uint8), type_id) == 3000
        with pytest.raises(ValueError, match="whole elements"):
            find_not_finite(x.view(np.uint8)[:-1], type_id)
    with pytest.raises(ValueError, match="whole elements"):
        find_not_finite(np.zeros(34, np.uint8), T.Q8_0)


def test_new_buffer():
    for n_bytes in (0, 1, 5_000_000):
        buffer = new_buffer(n_bytes)
        assert (buffer.nbytes, buffer.readonly, buffer.format, buffer.ndim) == (n_bytes, False, "B", 1)
        buffer[:] = bytes(n_bytes)
        assert bytes(buffer) == bytes(n_bytes)
