"""Small models and error measures for the quantizer's tests."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

from runtime._native import quantize_rows

SOURCE_TYPES = {np.dtype(np.float32): T.F32, np.dtype(np.float16): T.F16}


def row_bytes(type_id: int, n_cols: int) -> int:
    elements, size = gguf.GGML_QUANT_SIZES[T(type_id)]
    return n_cols // elements * size


def encode(
    x: np.ndarray,
    type_id: int,
    *,
    level: str | None = None,
    threads: int = 2,
    importance: np.ndarray | None = None,
) -> np.ndarray:
    """(n_rows, n_cols) float32 or float16 -> (n_rows, row bytes)."""
    x = np.ascontiguousarray(x)
    out = np.empty(x.shape[0] * row_bytes(type_id, x.shape[1]), np.uint8)
    fault = quantize_rows(
        x.reshape(-1).view(np.uint8),
        int(SOURCE_TYPES[x.dtype]),
        *x.shape,
        int(type_id),
        out,
        threads,
        level,
        importance,
    )
    assert fault is None, fault
    return out.reshape(x.shape[0], -1)


def decode(blocks: np.ndarray, type_id: int) -> np.ndarray:
    return gguf.quants.dequantize(blocks, T(type_id))


def weighted_error(x: np.ndarray, decoded: np.ndarray, type_id: int) -> float:
    """The sum that llama-quantize minimizes: squared error weighted by x^2 (Q6_K), 1 (Q8_0), RMS of 32 + |x| (others)."""
    x = x.astype(np.float64)
    if type_id == T.Q6_K:
        weight = x**2
    elif type_id == T.Q8_0:
        weight = np.ones_like(x)
    else:
        blocks = x.reshape(-1, 32)
        weight = (np.sqrt((blocks**2).mean(1, keepdims=True)) + np.abs(blocks)).reshape(x.shape)
    return float((weight * (x - decoded.astype(np.float64)) ** 2).sum())


def write_model(
    path: Path,
    *,
    n_layers: int = 2,
    n_embd: int = 256,
    n_ff: int = 512,
    n_vocab: int = 64,
    dtype: str = "float16",
    tied: bool = False,
    seed: int = 1,
    spoil: str | None = None,
    value: float = float("nan"),
) -> Path:
    """A random llama-shaped GGUF.  `spoil` names a tensor whose element (row 3, column 5) becomes `value`."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("small random")
    writer.add_block_count(n_layers)
    writer.add_embedding_length(n_embd)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_context_length(64)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(1)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<t{i}>".encode() for i in range(n_vocab)])
    writer.add_array("tokenizer.ggml.scores", [float(-i) for i in range(n_vocab)])
    rng = np.random.default_rng(seed)

    def add(name: str, *shape: int) -> None:
        x = (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, np.abs(x) + 1)
            return
        if name == spoil:
            x[3, 5] = value
        if dtype == "bfloat16":
            packed = gguf.quants.quantize(x, T.BF16)
            writer.add_tensor(name, packed, raw_shape=packed.shape, raw_dtype=T.BF16)
        else:
            with np.errstate(over="ignore"):
                writer.add_tensor(name, x.astype(dtype))

    add("token_embd.weight", n_vocab, n_embd)
    for i in range(n_layers):
        add(f"blk.{i}.attn_norm.weight", n_embd)
        for name, rows in (
            ("attn_q", n_embd),
            ("attn_k", n_embd // 2),
            ("attn_v", n_embd // 2),
            ("attn_output", n_embd),
        ):
            add(f"blk.{i}.{name}.weight", rows, n_embd)
        add(f"blk.{i}.ffn_norm.weight", n_embd)
        add(f"blk.{i}.ffn_gate.weight", n_ff, n_embd)
        add(f"blk.{i}.ffn_up.weight", n_ff, n_embd)
        add(f"blk.{i}.ffn_down.weight", n_embd, n_ff)
    add("output_norm.weight", n_embd)
    if not tied:
        add("output.weight", n_vocab, n_embd)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
