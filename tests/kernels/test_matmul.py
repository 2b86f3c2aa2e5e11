"""Matmul of every weight type at every level: against float64, against the scalar level, and bit for bit against
itself under any split of the rows and of the outputs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from runtime import _native
from tests.kernels.support import (
    ACTIVATION_FORM,
    LEVELS,
    PLAIN_TYPES,
    TYPES,
    WIDE_LEVELS,
    constant_weight,
    dequantized,
    random_weight,
    row_bytes,
    seen_activations,
)

# Largest error relative to sum |w| |x|, given the activations as the kernel sees them.  Sums of up to 2048 floats in
# lanes; the formats with minima subtract two sums, each larger than their difference.
TOLERANCE = dict.fromkeys(TYPES, 1e-06) | dict.fromkeys(("Q2_K", "Q4_K", "Q5_K"), 2e-6)
SCALAR_TOLERANCE = 2e-7  # double sums: one rounding of the scales and one of the result

SIZES = (256, 512, 1280, 2048)
SMALL_SIZES = {"F32": (1, 8, 32, 64, 172), "F16": (1, 8, 32, 64, 172), "BF16": (1, 8, 32, 64, 172)}


def sizes_of(type_name: str) -> tuple[int, ...]:
    if type_name in PLAIN_TYPES:
        return (*SMALL_SIZES[type_name], 256, 2048)
    return SIZES if type_name.endswith("_K") or type_name == "IQ4_XS" else (32, 96, 544, *SIZES)


def case(type_name: str, n_rows: int, n_out: int, n_in: int, seed: int = 7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, n_rows, n_out, n_in])
    x = rng.standard_normal((n_rows, n_in)).astype(np.float32)
    x[:, ::17] *= 8  # activations of real models have outliers
    return random_weight(type_name, n_out, n_in, rng), x


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("type_name", TYPES)
def test_agrees_with_float64(level: str, type_name: str) -> None:
    tolerance = SCALAR_TOLERANCE if level == "scalar" else TOLERANCE[type_name]
    for n_in in sizes_of(type_name):
        weight, x = case(type_name, 5, 11, n_in)
        w = dequantized(type_name, weight, 11, n_in)
        seen = seen_activations(level, type_name, x)
        got = _native.matmul(level, type_name, weight, 11, n_in, x)
        bound = np.abs(seen) @ np.abs(w).T
        assert (np.abs(got - seen @ w.T) <= tolerance * bound).all(), n_in


@pytest.mark.parametrize("type_name", ACTIVATION_FORM)
def test_rounding_of_activations_costs_at_most_half_a_step_each(type_name: str) -> None:
    weight, x = case(type_name, 4, 9, 512)
    w = dequantized(type_name, weight, 9, 512)
    block = 32 if ACTIVATION_FORM[type_name] == "q8_32" else 256
    step = np.repeat(np.abs(x).reshape(4, -1, block).max(axis=2), block, axis=1).astype(np.float64) / 127
    got = _native.matmul("scalar", type_name, weight, 9, 512, x)
    assert (np.abs(got - x.astype(np.float64) @ w.T) <= 0.51 * step @ np.abs(w).T).all()


@pytest.mark.parametrize("level", WIDE_LEVELS)
@pytest.mark.parametrize("type_name", TYPES)
def test_agrees_with_scalar_for_every_count_of_rows(level: str, type_name: str) -> None:
    n_in = 512
    weight, x = case(type_name, 17, 6, n_in)
    bound = (
        np.abs(seen_activations("scalar", type_name, x)) @ np.abs(dequantized(type_name, weight, 6, n_in)).T
    )
    for n_rows in range(1, 18):
        expected = _native.matmul("scalar", type_name, weight, 6, n_in, x[:n_rows])
        got = _native.matmul(level, type_name, weight, 6, n_in, x[:n_rows])
        assert (np.abs(got - expected) <= 2 * TOLERANCE[type_name] * bound[:n_rows]).all(), n_rows


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("type_name", TYPES)
def test_a_row_alone_and_in_a_batch_has_the_same_bits(level: str, type_name: str) -> None:
    for n_in in sizes_of(type_name)[-2:]:
        weight, x = case(type_name, 19, 7, n_in)
        whole = _native.matmul(level, type_name, weight, 7, n_in, x)
        for n_rows in (1, 2, 3, 4, 5, 7, 8, 9, 16):
            first = 19 - n_rows
            part = _native.matmul(level, type_name, weight, 7, n_in, x[first:])
            assert np.array_equal(part.view(np.uint32), whole[first:].view(np.uint32)), n_rows


@pytest.mark.parametrize("level", WIDE_LEVELS)
@pytest.mark.parametrize("type_name", TYPES)
def test_tiles_and_panels_change_no_bit(level: str, type_name: str) -> None:
    n_rows, n_out, n_in = 141, 70, 512  # past a token block (132 rows) and past a panel (64 weight rows)
    weight, x = case(type_name, n_rows, n_out, n_in)
    whole = _native.matmul(level, type_name, weight, n_out, n_in, x).view(np.uint32)
    for count in (1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 16, 18, 19, 64, 131, 132, 133, 140):
        first = (7 * count) % (n_rows - count + 1)
        part = _native.matmul(level, type_name, weight, n_out, n_in, x[first : first + count])
        assert np.array_equal(part.view(np.uint32), whole[first : first + count]), count
    for begin, end in ((0, 1), (3, 9), (0, 8), (8, 24), (60, 70), (1, 66)):
        for count in (1, 9):
            part = _native.matmul(level, type_name, weight, n_out, n_in, x[:count], begin, end)
            assert np.array_equal(part[:, begin:end].view(np.uint32), whole[:count, begin:end]), (begin, end)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("type_name", ACTIVATION_FORM)
def test_the_largest_quants_scales_and_activations_do_not_overflow(level: str, type_name: str) -> None:
    n_out, n_in = 3, 512
    at = np.arange(n_in)
    x = np.stack([np.ones(n_in), -np.ones(n_in), *((-1.0) ** (at // run) for run in (1, 2, 4, 8, 16, 32))])
    x = np.ascontiguousarray(x, np.float32)
    for quants_byte in (0x00, 0x0F, 0x7F, 0x80, 0xF0, 0xFF):
        for scales_byte in (0x00, 0x7F, 0x80, 0xFF):
            weight = constant_weight(type_name, n_out, n_in, quants_byte, scales_byte)
            w = dequantized(type_name, weight, n_out, n_in)
            bound = np.abs(seen_activations(level, type_name, x)) @ np.abs(w).T
            # Minima take away nearly all of some sums: the error is that of the two sums before.
            bound = (
                np.maximum(bound, n_in * 0.02 * 64 * 31) if type_name in ("Q4_K", "Q5_K", "Q2_K") else bound
            )
            if type_name == "Q8_0" and level == "avx512vnni":
                # Its weights are made unsigned by an offset of 128, which is taken away afterwards: the same.
                bound = np.maximum(bound, n_in * 0.02 * 128)
            for rows in (x[:1], x):
                got = _native.matmul(level, type_name, weight, n_out, n_in, np.ascontiguousarray(rows))
                expected = seen_activations(level, type_name, rows) @ w.T
                error = np.abs(got - expected)
                assert (error <= TOLERANCE[type_name] * bound[: len(rows)]).all(), (quants_byte, scales_byte)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("type_name", TYPES)
def test_a_split_of_the_outputs_changes_no_bit(level: str, type_name: str) -> None:
    n_out, n_in = 37, 256
    for n_rows in (1, 3, 9):
        weight, x = case(type_name, n_rows, n_out, n_in)
        whole = _native.matmul(level, type_name, weight, n_out, n_in, x)
        for cuts in ((0, 1, 2, 5, 37), (0, 16, 36, 37), (0, 7, 7, 20, 37)):
            for begin, end in itertools.pairwise(cuts):
                part = _native.matmul(level, type_name, weight, n_out, n_in, x, begin, end)
                assert np.array_equal(part[:, begin:end], whole[:, begin:end])
                assert not part[:, :begin].any()
                assert not part[:, end:].any()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("type_name", TYPES)
def test_bias_and_residual_are_added(level: str, type_name: str) -> None:
    weight, x = case(type_name, 5, 6, 256)
    rng = np.random.default_rng(3)
    bias = rng.standard_normal(6).astype(np.float32)
    residual = rng.standard_normal((5, 6)).astype(np.float32)
    plain = _native.matmul(level, type_name, weight, 6, 256, x)
    got = _native.matmul(level, type_name, weight, 6, 256, x, 0, 6, bias, residual)
    assert np.array_equal(got, residual + (plain + bias))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("type_name", TYPES)
def test_nan_in_one_activation_row_stays_in_that_row(level: str, type_name: str) -> None:
    weight, x = case(type_name, 10, 5, 512)
    x[4, 300] = np.nan
    got = _native.matmul(level, type_name, weight, 5, 512, x)
    assert np.isnan(got[4]).all()
    assert np.isfinite(np.delete(got, 4, axis=0)).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("type_name", [name for name in TYPES if name not in (*PLAIN_TYPES, "MXFP4")])
def test_nan_in_one_weight_row_stays_in_that_output(level: str, type_name: str) -> None:
    weight, x = case(type_name, 3, 5, 512)
    rows = weight.reshape(5, row_bytes(type_name, 512))
    offset = {"Q2_K": 80, "Q3_K": 108, "Q6_K": 208}.get(type_name, 0)
    rows[2, offset : offset + 2] = np.array([0x7E00], np.uint16).view(np.uint8)
    got = _native.matmul(level, type_name, weight, 5, 512, x)
    assert np.isnan(got[:, 2]).all()
    assert np.isfinite(np.delete(got, 2, axis=1)).all()


def test_wrong_shapes_are_refused() -> None:
    weight, x = case("Q4_K", 2, 3, 256)
    for arguments in (
        ("scalar", "Q4_K", weight, 3, 255, x),
        ("scalar", "Q4_K", weight, 4, 256, x),
        ("scalar", "Q4_K", weight, 3, 256, x[:, :128].copy()),
        ("scalar", "Q4_K", weight, 3, 256, x, 2, 4),
        ("scalar", "Q4_K", weight, 3, 256, x, -1, 2),
        ("scalar", "Q4_K", weight, 3, 256, x, 0, 3, np.zeros(4, np.float32)),
        ("sse9", "Q4_K", weight, 3, 256, x),
    ):
        with pytest.raises(ValueError):
            _native.matmul(*arguments)
    with pytest.raises(TypeError):
        _native.matmul("scalar", "Q4_K", weight, 3, 256, x.astype(np.float64))
