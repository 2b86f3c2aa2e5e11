"""Quantization of activation rows: right values, the same bits at every level, non-finite input stays visible."""

from __future__ import annotations

import numpy as np
import pytest

from runtime import _native
from tests.kernels.support import LEVELS, WIDE_LEVELS, decode_activations

FORMS = {"q8_32": 32, "q8_256": 256}


def rows() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    x = rng.standard_normal(1024).astype(np.float32)
    spiky = x.copy()
    spiky[::100] *= 1000
    ties = (np.arange(1024) % 255 - 127).astype(np.float32) / 2
    ties[::32] = 127
    mixed = x.copy()
    mixed[256:512] = 0
    return {
        "normal": x,
        "spiky": spiky,
        "ties": ties,
        "zeros inside": mixed,
        "tiny": x * np.float32(1e-36),
        "subnormal": x * np.float32(1e-41),
        "huge": x * np.float32(1e37),
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("level", LEVELS)
def test_error_is_at_most_half_a_step(level: str, form: str) -> None:
    for name, x in rows().items():
        back = decode_activations(form, _native.quantize_activations(level, form, x), len(x))
        step = np.abs(x).reshape(-1, FORMS[form]).max(axis=1).astype(np.float64) / 127
        error = np.abs(back - x).reshape(-1, FORMS[form]).max(axis=1)
        assert (error <= 0.501 * step + 1e-30).all(), name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("level", LEVELS)
def test_sums_belong_to_the_quants(level: str, form: str) -> None:
    x = rows()["normal"]
    data = _native.quantize_activations(level, form, x)
    if form == "q8_32":
        sums = data[:1024].view(np.int8).reshape(-1, 32).sum(axis=1, dtype=np.int64)
        assert np.array_equal(data[1024 + 128 : 1024 + 256].view(np.float32), sums)
        return
    for block in data.reshape(-1, 384):
        natural = np.round(decode_activations(form, block, 256) / block[288:292].view(np.float32))
        assert np.array_equal(block[256:288].view(np.int16), natural.reshape(16, 16).sum(axis=1))
        assert np.array_equal(block[292:308].view(np.int16), natural.reshape(8, 32).sum(axis=1))
        pairs = natural.reshape(16, 4, 2, 2).sum(axis=(1, 3))
        assert np.array_equal(block[320:384].view(np.int16), -32 * pairs.reshape(-1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("level", WIDE_LEVELS)
def test_every_level_gives_the_same_bytes(level: str, form: str) -> None:
    for name, x in rows().items():
        for n in (256, 768, 1024):
            expected = _native.quantize_activations("scalar", form, x[:n])
            assert np.array_equal(_native.quantize_activations(level, form, x[:n]), expected), (name, n)
    for n in (32, 96, 288):
        x = rows()["normal"][:n]
        expected = _native.quantize_activations("scalar", "q8_32", x)
        assert np.array_equal(_native.quantize_activations(level, "q8_32", x), expected), n


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("level", LEVELS)
def test_a_non_finite_element_makes_its_block_nan_and_no_other(level: str, form: str, bad: float) -> None:
    x = rows()["normal"]
    x[300] = bad
    back = decode_activations(form, _native.quantize_activations(level, form, x), len(x))
    block = 300 // FORMS[form]
    assert np.array_equal(np.unique(np.flatnonzero(np.isnan(back)) // FORMS[form]), [block])


@pytest.mark.parametrize(("form", "n"), [("q8_32", 31), ("q8_256", 128), ("q8_256", 0), ("q8_1", 256)])
def test_wrong_lengths_and_forms_are_refused(form: str, n: int) -> None:
    with pytest.raises(ValueError):
        _native.quantize_activations("scalar", form, np.zeros(n, np.float32))
