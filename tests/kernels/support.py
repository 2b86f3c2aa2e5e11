"""Random weights in every block format, and the references that the kernels are held against."""

from __future__ import annotations

import gguf
import numpy as np
from gguf import GGMLQuantizationType, quants

from runtime import _native

LEVELS = _native.kernel_levels()
WIDE_LEVELS = [level for level in LEVELS if level != "scalar"]
TYPES = ("F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4").split()
PLAIN_TYPES = ("F32", "F16", "BF16")

# The form in which the matmul of a type reads its activations; all others read floats.
ACTIVATION_FORM = dict.fromkeys(
    ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "MXFP4"), "q8_32"
) | dict.fromkeys(("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"), "q8_256")
GROUP_ORDER = (0, 2, 1, 3, 4, 6, 5, 7)  # kernels.h, kGroupOrder

# Where the f16 scales of a block lie.
_SCALE_OFFSETS = {
    "Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip

# Where the integer scales of a super-block lie.
_INTEGER_SCALES = {
    "Q2_K": slice(0, 16), "Q3_K": slice(96, 108), "Q4_K": slice(4, 16), "Q5_K": slice(4, 16), "Q6_K": slice(192, 208),
    "IQ4_XS": slice(2, 8),
}  # fmt: skip


def block_of(type_name: str) -> tuple[int, int]:
    """Elements and bytes of one block."""
    return gguf.GGML_QUANT_SIZES[GGMLQuantizationType[type_name]]


def row_bytes(type_name: str, n_in: int) -> int:
    elements, size = block_of(type_name)
    assert n_in % elements == 0
    return n_in // elements * size


def random_weight(type_name: str, n_out: int, n_in: int, rng: np.random.Generator) -> np.ndarray:
    """Weight (n_out * row_bytes) of random bits with scales of an ordinary size, as uint8."""
    if type_name in PLAIN_TYPES:
        values = rng.standard_normal((n_out, n_in)).astype(np.float32)
        return quants.quantize(values, GGMLQuantizationType[type_name]).view(np.uint8).reshape(-1)
    size = block_of(type_name)[1]
    blocks = rng.integers(0, 256, (n_out * row_bytes(type_name, n_in) // size, size), dtype=np.uint8)
    _set_scales(type_name, blocks, rng)
    return blocks.reshape(-1)


def constant_weight(type_name: str, n_out: int, n_in: int, quants_byte: int, scales_byte: int) -> np.ndarray:
    """Weight of a quantized type (n_out * row_bytes) with the same byte everywhere, another in its integer scales."""
    size = block_of(type_name)[1]
    blocks = np.full((n_out * row_bytes(type_name, n_in) // size, size), quants_byte, np.uint8)
    if type_name in _INTEGER_SCALES:
        blocks[:, _INTEGER_SCALES[type_name]] = scales_byte
    _set_scales(type_name, blocks, np.random.default_rng(1))
    return blocks.reshape(-1)


def _set_scales(type_name: str, blocks: np.ndarray, rng: np.random.Generator) -> None:
    for offset in _SCALE_OFFSETS.get(type_name, ()):
        scales = (rng.uniform(0.001, 0.02, len(blocks)) * rng.choice([-1, 1], len(blocks))).astype(np.float16)
        blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(-1, 2)
    if type_name == "MXFP4":
        blocks[:, 0] = rng.integers(118, 126, len(blocks))


def dequantized(type_name: str, weight: np.ndarray, n_out: int, n_in: int) -> np.ndarray:
    """The weight (n_out, n_in) as float64, by the gguf package."""
    rows = weight.reshape(n_out, -1)
    if type_name in PLAIN_TYPES:
        rows = rows.view({"F32": np.float32, "F16": np.float16, "BF16": np.uint8}[type_name])
    return quants.dequantize(rows, GGMLQuantizationType[type_name]).reshape(n_out, n_in).astype(np.float64)


def decode_activations(form: str, data: np.ndarray, n_in: int) -> np.ndarray:
    """The values (n_in) that one quantized activation row stands for, as float64."""
    if form == "q8_32":
        qs = data[:n_in].view(np.int8).reshape(-1, 32).astype(np.float64)
        d = data[n_in : n_in + n_in // 8].view(np.float32).astype(np.float64)
        return (qs * d[:, None]).reshape(-1)
    blocks = data.reshape(-1, 384)
    qs = blocks[:, :256].view(np.int8).reshape(-1, 8, 32)[:, GROUP_ORDER].astype(np.float64)
    d = blocks[:, 288:292].copy().view(np.float32).astype(np.float64)
    return (qs * d[:, :, None]).reshape(-1)


def seen_activations(level: str, type_name: str, x: np.ndarray) -> np.ndarray:
    """The activations (n_rows, n_in) that the matmul of a type computes with, as float64."""
    form = ACTIVATION_FORM.get(type_name)
    if form is None:
        return x.astype(np.float64)
    return np.stack(
        [decode_activations(form, _native.quantize_activations(level, form, row), len(row)) for row in x]
    )
