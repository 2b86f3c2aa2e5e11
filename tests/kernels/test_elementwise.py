"""Norms, activations, caps and rotary embedding at every level."""

from __future__ import annotations

import math

import numpy as np
import pytest

from runtime import _native
from tests.kernels.support import LEVELS

LENGTHS = (1, 5, 8, 16, 64, 172, 576, 2048)


@pytest.mark.parametrize("level", LEVELS)
def test_rms_norm(level: str) -> None:
    rng = np.random.default_rng(1)
    for n in LENGTHS:
        x = (rng.standard_normal(n) * 30).astype(np.float32)
        weight = rng.standard_normal(n).astype(np.float32)
        x64 = x.astype(np.float64)
        expected = x64 / np.sqrt((x64**2).mean() + 1e-5) * weight
        np.testing.assert_allclose(_native.rms_norm(level, x, weight, 1e-5), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("level", LEVELS)
def test_swiglu(level: str) -> None:
    rng = np.random.default_rng(2)
    for n in LENGTHS:
        gate = (rng.standard_normal(n) * 10).astype(np.float32)
        up = rng.standard_normal(n).astype(np.float32)
        expected = gate.astype(np.float64) / (1 + np.exp(-gate.astype(np.float64))) * up
        np.testing.assert_allclose(_native.swiglu(level, gate, up), expected, rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize("level", LEVELS)
def test_swiglu_over_the_whole_range(level: str) -> None:
    gate = np.concatenate([np.linspace(-110, 110, 20001), [-1e30, -1e4, 1e4, 1e30, -0.0, 0.0]]).astype(
        np.float32
    )
    up = np.ones_like(gate)
    with np.errstate(over="ignore"):
        expected = gate.astype(np.float64) / (1 + np.exp(-gate.astype(np.float64)))
    got = _native.swiglu(level, gate, up)
    # Below about -87 exp(-x) leaves the range of floats; what is lost there is less than 1e-36.
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-35)


@pytest.mark.parametrize("level", LEVELS)
def test_layer_norm(level: str) -> None:
    rng = np.random.default_rng(3)
    for n in LENGTHS:
        x = (rng.standard_normal(n) * 30 + 7).astype(np.float32)
        weight, bias = rng.standard_normal((2, n)).astype(np.float32)
        x64 = x.astype(np.float64)
        expected = (x64 - x64.mean()) / np.sqrt(x64.var() + 1e-5) * weight + bias
        got = _native.layer_norm(level, x, weight, bias, 1e-5)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-6)


def gates() -> np.ndarray:
    return np.concatenate([np.linspace(-12, 12, 4001), [-1e30, -1e4, 1e4, 1e30, -0.0, 0.0]]).astype(
        np.float32
    )


@pytest.mark.parametrize("level", LEVELS)
def test_geglu(level: str) -> None:
    gate = gates()
    up = np.full_like(gate, 0.7)
    x = gate.astype(np.float64)
    with np.errstate(over="ignore"):
        expected = x / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) * up
    # Below about -10 the exponential leaves the range of floats.
    np.testing.assert_allclose(_native.geglu(level, gate, up), expected, rtol=2e-5, atol=1e-35)


@pytest.mark.parametrize("level", LEVELS)
def test_gelu(level: str) -> None:
    x = gates()
    expected = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.astype(np.float64).tolist()]
    np.testing.assert_allclose(_native.gelu(level, x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("level", LEVELS)
def test_soft_cap(level: str) -> None:
    x = (np.random.default_rng(4).standard_normal(1001) * 60).astype(np.float32)
    expected = 30 * np.tanh(0.5 * x.astype(np.float64) / 30)
    np.testing.assert_allclose(_native.soft_cap(level, x, 0.5, 30.0), expected, atol=1e-5)
    np.testing.assert_array_equal(_native.soft_cap(level, x, 0.5, 0.0), x / 2)


@pytest.mark.parametrize("level", LEVELS)
def test_nan_stays_visible(level: str) -> None:
    x = np.ones(40, np.float32)
    x[37] = np.nan
    ones = np.ones_like(x)
    assert np.isnan(_native.rms_norm(level, x, ones, 1e-5)).all()
    assert np.isnan(_native.layer_norm(level, x, ones, ones, 1e-5)).all()
    for got in (
        _native.swiglu(level, x, ones),
        _native.geglu(level, x, ones),
        _native.gelu(level, x),
        _native.soft_cap(level, x, 1.0, 5.0),
    ):
        assert np.array_equal(np.flatnonzero(np.isnan(got)), [37])
    assert np.array_equal(np.flatnonzero(np.isnan(_native.swiglu(level, ones, x))), [37])


def rotate(x: np.ndarray, angles: np.ndarray, interleaved: bool) -> np.ndarray:
    half = len(angles)
    out = x.astype(np.float64)
    index = np.arange(half)
    a, b = (2 * index, 2 * index + 1) if interleaved else (index, index + half)
    out[a] = x[a] * np.cos(angles) - x[b] * np.sin(angles)
    out[b] = x[a] * np.sin(angles) + x[b] * np.cos(angles)
    return out


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("level", LEVELS)
def test_rope(level: str, interleaved: bool) -> None:
    rng = np.random.default_rng(3)
    for head_dim, n_rot in ((8, 8), (64, 64), (80, 80), (128, 128), (96, 64), (6, 6), (20, 12)):
        x = rng.standard_normal(head_dim).astype(np.float32)
        angles = rng.uniform(-3, 3, n_rot // 2).astype(np.float32)
        cos, sin = np.cos(angles), np.sin(angles)
        got = _native.rope(level, x, cos, sin, interleaved)
        np.testing.assert_allclose(got, rotate(x, angles.astype(np.float64), interleaved), atol=1e-6)
        assert np.array_equal(got[n_rot:], x[n_rot:])
