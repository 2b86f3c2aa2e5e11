"""Expansion of blocks to floats, bit for bit as the gguf package does it."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from runtime import _native
from tests.kernels.support import LEVELS, TYPES, block_of, random_weight

QUANTIZABLE = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4", "BF16", "F16", "F32")  # by the gguf package


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    nan = np.isnan(a)
    return bool(
        np.array_equal(nan, np.isnan(b)) and np.array_equal(a[~nan].view(np.uint32), b[~nan].view(np.uint32))
    )


def oracle(type_name: str, data: np.ndarray) -> np.ndarray:
    if type_name in ("F32", "F16"):
        data = data.view(np.float32 if type_name == "F32" else np.float16)
    with np.errstate(all="ignore"):
        return quants.dequantize(data, GGMLQuantizationType[type_name]).reshape(-1)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("type_name", TYPES)
def test_any_bytes_expand_as_the_oracle_does(level: str, type_name: str) -> None:
    # Random bytes everywhere: subnormal, infinite and NaN scales included.
    elements, size = block_of(type_name)
    data = np.random.default_rng(1).integers(0, 256, 300 * size, dtype=np.uint8)
    with np.errstate(all="ignore"):
        assert same_bits(oracle(type_name, data), _native.dequantize(type_name, data, 300 * elements, level))


@pytest.mark.parametrize("type_name", TYPES)
def test_ordinary_weights_expand_as_the_oracle_does(type_name: str) -> None:
    data = random_weight(type_name, 3, 512, np.random.default_rng(2))
    assert same_bits(oracle(type_name, data), _native.dequantize(type_name, data, 3 * 512))


@pytest.mark.parametrize("type_name", QUANTIZABLE)
def test_quantized_data_come_back_close(type_name: str) -> None:
    values = np.random.default_rng(3).standard_normal((4, 256)).astype(np.float32)
    data = quants.quantize(values, GGMLQuantizationType[type_name]).view(np.uint8).reshape(-1)
    back = _native.dequantize(type_name, data, values.size).reshape(values.shape)
    assert np.abs(back - values).max() < 1.0
    assert same_bits(back.reshape(-1), oracle(type_name, data))


def test_every_half_expands_exactly() -> None:
    halves = np.arange(65536, dtype=np.uint16).view(np.uint8)
    for level in LEVELS:
        assert same_bits(
            _native.dequantize("F16", halves, 65536, level), halves.view(np.float16).astype(np.float32)
        )


@pytest.mark.parametrize(
    ("type_name", "n_bytes", "n"),
    [
        ("Q4_K", 144, 255),
        ("Q4_K", 143, 256),
        ("Q4_K", 288, 256),
        ("F32", 4, 0),
        ("I8", 4, 4),
        ("nonsense", 4, 4),
    ],
)
def test_wrong_sizes_and_names_are_refused(type_name: str, n_bytes: int, n: int) -> None:
    with pytest.raises(ValueError):
        _native.dequantize(type_name, np.zeros(n_bytes, np.uint8), n)
