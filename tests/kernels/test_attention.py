"""Attention over pages and the cached forms, at every level."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from runtime import _native
from tests.kernels.support import LEVELS, WIDE_LEVELS

# Largest error relative to the largest magnitude of the values, given keys and values as they are cached.  Wide levels
# round queries to 15 bits where the keys are q8_0.
TOLERANCE = {"f16": 2e-6, "q8_0": 1e-4}


def attention(level: str, q: np.ndarray, *arguments: object, **named: object) -> np.ndarray:
    """One row q (n_heads, head_dim)."""
    return _native.attention(level, q[None], *arguments, **named)[0]


def cached(level: str, x: np.ndarray, kv_type: str) -> np.ndarray:
    """Keys or values (n_positions, n_kv_heads, head_dim) as the cache remembers them, float64."""
    kind = "F16" if kv_type == "f16" else "Q8_0"
    flat = x.reshape(-1, x.shape[-1])
    rows = [_native.dequantize(kind, _native.store_kv(level, row, kv_type), len(row)) for row in flat]
    return np.stack(rows).reshape(x.shape).astype(np.float64)


def reference(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, *, window: int = 0, softcap: float = 0
) -> np.ndarray:
    group = q.shape[0] // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.einsum("hd,thd->ht", q.astype(np.float64), k) * scale
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    if window:
        scores[:, :-window] = -np.inf
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.einsum("ht,thd->hd", weights / weights.sum(axis=1, keepdims=True), v)


def case(
    n_heads: int, n_kv_heads: int, head_dim: int, n_positions: int, spread: float = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng([n_heads, n_kv_heads, head_dim, n_positions])
    q = (rng.standard_normal((n_heads, head_dim)) * spread).astype(np.float32)
    k = rng.standard_normal((n_positions, n_kv_heads, head_dim)).astype(np.float32)
    v = rng.standard_normal((n_positions, n_kv_heads, head_dim)).astype(np.float32)
    return q, k, v


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 7, 8, 9])
@pytest.mark.parametrize("level", LEVELS)
def test_agrees_with_float64(level: str, group: int, kv_type: str) -> None:
    for head_dim in (8, 64, 80, 96, 128):
        if kv_type == "q8_0" and head_dim % 32:
            continue
        for n_positions in (1, 31, 32, 33, 100, 256, 257, 600):
            q, k, v = case(2 * group, 2, head_dim, n_positions, spread=3)
            expected = reference(q, cached(level, k, kv_type), cached(level, v, kv_type), head_dim**-0.5)
            got = attention(level, q, k, v, kv_type, 32)
            assert np.abs(got - expected).max() <= TOLERANCE[kv_type] * np.abs(v).max(), (
                head_dim,
                n_positions,
            )


@pytest.mark.parametrize("page_tokens", [1, 7, 16, 32, 64])
@pytest.mark.parametrize("level", LEVELS)
def test_page_sizes(level: str, page_tokens: int) -> None:
    q, k, v = case(4, 1, 64, 70)
    expected = reference(q, cached(level, k, "f16"), cached(level, v, "f16"), 0.3)
    got = attention(level, q, k, v, "f16", page_tokens, 0.3)
    assert np.abs(got - expected).max() <= TOLERANCE["f16"] * np.abs(v).max()


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("level", LEVELS)
def test_windows(level: str, kv_type: str, parts: bool) -> None:
    """The same bits too whether ranges are computed apart; ranges before the window are left out."""
    for n_positions in (1, 33, 256, 300, 600):
        q, k, v = case(4, 2, 32, n_positions)
        seen_k, seen_v = cached(level, k, kv_type), cached(level, v, kv_type)
        for window in (1, 31, 32, 100, 256, 299, 1000):
            expected = reference(q, seen_k, seen_v, 0.3, window=window)
            got = attention(level, q, k, v, kv_type, 32, 0.3, window=window, parts=parts)
            assert np.abs(got - expected).max() <= TOLERANCE[kv_type] * np.abs(v).max(), (n_positions, window)
            whole = attention(level, q, k, v, kv_type, 32, 0.3, window=window)
            assert np.array_equal(got.view(np.uint32), whole.view(np.uint32))


@pytest.mark.parametrize("level", LEVELS)
def test_capped_scores(level: str) -> None:
    for n_positions in (1, 33, 300):
        q, k, v = case(4, 2, 64, n_positions, spread=40)
        expected = reference(
            q, cached(level, k, "f16"), cached(level, v, "f16"), 0.3, window=50, softcap=20.0
        )
        got = attention(level, q, k, v, "f16", 32, 0.3, window=50, softcap=20.0)
        # The cap multiplies tanh's absolute error of 1e-7.
        assert np.abs(got - expected).max() <= 20 * TOLERANCE["f16"] * np.abs(v).max(), n_positions


@pytest.mark.parametrize("level", LEVELS)
def test_scores_far_apart(level: str) -> None:
    # A running maximum that rises late must wipe out what came before; hundreds of units overflow a plain exp.
    q, k, v = case(2, 1, 32, 96)
    q[:] = 0
    q[:, 0] = 1
    k[:, 0, 0] = np.linspace(-300, 500, 96)
    expected = reference(q, cached(level, k, "f16"), cached(level, v, "f16"), 1.0)
    got = attention(level, q, k, v, "f16", 32, 1.0)
    assert np.abs(got - expected).max() <= TOLERANCE["f16"] * np.abs(v).max()


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("level", LEVELS)
def test_a_group_member_does_not_depend_on_the_others(level: str, kv_type: str) -> None:
    q, k, v = case(8, 1, 64, 50)
    together = attention(level, q, k, v, kv_type)
    for head in range(8):
        alone = attention(level, q[head : head + 1].copy(), k, v, kv_type)
        assert np.array_equal(alone[0].view(np.uint32), together[head].view(np.uint32))


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("where", ["q", "k", "v"])
@pytest.mark.parametrize("level", LEVELS)
def test_nan_stays_visible(level: str, where: str, kv_type: str) -> None:
    for position in (0, 40, 69):
        q, k, v = case(2, 2, 64, 70)
        {"q": q[0], "k": k[position, 0], "v": v[position, 0]}[where][5] = np.nan
        got = attention(level, q, k, v, kv_type)
        assert np.isnan(got[0]).any()
        assert np.isfinite(got[1]).all()


@pytest.mark.parametrize("level", LEVELS)
def test_store_f16_rounds_to_nearest_even(level: str) -> None:
    rng = np.random.default_rng(9)
    halves = np.arange(0, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middle = (halves[:-1].astype(np.float64) + halves[1:].astype(np.float64)) / 2
    exact = middle.astype(np.float32)
    near = np.concatenate(
        [exact, np.nextafter(exact, np.float32(0)), np.nextafter(exact, np.float32(np.inf)), halves]
    )
    special = np.array(
        [np.inf, np.nan, 65519.99, 65520, 1e30, 1e-30, 5.9e-8, 2.9e-8, 2.98023224e-08], np.float32
    )
    x = np.concatenate([near, special, rng.standard_normal(999).astype(np.float32)])
    x = np.concatenate([x, -x])
    got = np.concatenate(
        [_native.store_kv(level, part, "f16").view(np.float16) for part in np.array_split(x, len(x) // 1000)]
    )
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16)
    nan = np.isnan(expected)
    assert np.array_equal(np.isnan(got), nan)
    assert np.array_equal(got[~nan].view(np.uint16), expected[~nan].view(np.uint16))


@pytest.mark.parametrize("level", WIDE_LEVELS)
def test_store_q8_0_gives_the_same_bytes_at_every_level(level: str) -> None:
    rng = np.random.default_rng(10)
    for scale in (1.0, 1e-3, 1e-7, 1e-9, 1e-12, 1e4, 1e6, 0.0):
        x = (rng.standard_normal(128) * scale).astype(np.float32)
        assert np.array_equal(_native.store_kv(level, x, "q8_0"), _native.store_kv("scalar", x, "q8_0")), (
            scale
        )


def test_store_q8_0_is_the_format_of_gguf() -> None:
    x = np.random.default_rng(11).standard_normal(128).astype(np.float32)
    data = _native.store_kv("scalar", x, "q8_0")
    assert np.array_equal(data, quants.quantize(x, GGMLQuantizationType.Q8_0))


def rows_case(group: int, head_dim: int, n_positions: int, n_rows: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng([group, head_dim, n_positions, n_rows])
    q = (rng.standard_normal((n_rows, 2 * group, head_dim)) * 3).astype(np.float32)
    k, v = (rng.standard_normal((n_positions, 2, head_dim)).astype(np.float32) for _ in range(2))
    return q, k, v


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("level", LEVELS)
def test_a_row_does_not_depend_on_the_rows_beside_it(level: str, group: int, kv_type: str) -> None:
    """Nor on where its ranges were cut, nor on whether they were computed apart: bit for bit."""
    for n_positions, head_dim in [(5, 64), (270, 64), (600, 96)]:
        ends = [n_positions, *range(max(1, n_positions - 12), n_positions + 1), 1, max(1, n_positions // 2)]
        q, k, v = rows_case(group, head_dim, n_positions, len(ends))
        together = _native.attention(level, q, k, v, kv_type, ends=ends)
        for row, end in enumerate(ends):
            alone = _native.attention(level, q[row : row + 1].copy(), k[:end].copy(), v[:end].copy(), kv_type)
            assert alone[0].tobytes() == together[row].tobytes(), (n_positions, row)
        for resume in (256, 512):
            resumed = _native.attention(level, q, k, v, kv_type, ends=ends, resume=resume)
            assert resumed.tobytes() == together.tobytes(), (n_positions, resume)
        parts = _native.attention(level, q, k, v, kv_type, ends=ends, parts=True)
        assert parts.tobytes() == together.tobytes(), n_positions


@pytest.mark.parametrize("page_tokens", [7, 16, 32, 64, 128, 256, 512, 96])
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("level", LEVELS)
def test_pages_of_every_size_over_several_ranges(level: str, kv_type: str, page_tokens: int) -> None:
    q, k, v = rows_case(3, 64, 700, 2)
    got = _native.attention(level, q, k, v, kv_type, page_tokens, ends=[700, 299])
    for row, end in enumerate([700, 299]):
        expected = reference(
            q[row], cached(level, k[:end], kv_type), cached(level, v[:end], kv_type), 64**-0.5
        )
        assert np.abs(got[row] - expected).max() <= TOLERANCE[kv_type] * np.abs(v).max()
    parts = _native.attention(level, q, k, v, kv_type, page_tokens, ends=[700, 299], parts=True)
    assert parts.tobytes() == got.tobytes()


def test_wrong_shapes_are_refused() -> None:
    q, k, v = case(4, 2, 64, 5)
    for arguments in (
        ("scalar", q, k, v[:4].copy(), "f16"),
        ("scalar", q[:3].copy(), k, v, "f16"),
        ("scalar", q, k, v, "f32"),
        ("scalar", q, k, v, "f16", 0),
        ("scalar", q[:, :40].copy(), k[:, :, :40].copy(), v[:, :, :40].copy(), "q8_0"),
    ):
        with pytest.raises(ValueError):
            attention(*arguments)
