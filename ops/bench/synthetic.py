"""Write an F16 GGUF of a real model's exact shape with random weights.

Speed and memory depend on shapes, types and sizes, not on what the weights say; the quality of such a model means
nothing.  The vocabulary is that of the demo model, filled up with unused tokens to the size of the shape.

    python ops/bench/synthetic.py --shape llama32-1b out/bench/llama32-1b-f16.gguf
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

DEMO = Path(__file__).resolve().parents[1] / "demo/quantd-demo-f16.gguf"


@dataclass(frozen=True)
class Shape:
    """What llama.cpp calls the hyperparameters of a llama."""

    n_embd: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    n_ff: int
    n_vocab: int
    context_length: int
    rope_freq_base: float
    tied: bool  # no output.weight: the embedding is used


SHAPES = {
    "llama2-7b": Shape(4096, 32, 32, 32, 11008, 32000, 4096, 10000.0, tied=False),
    "llama32-1b": Shape(2048, 16, 32, 8, 8192, 128256, 131072, 500000.0, tied=True),
    "llama2-170m": Shape(1024, 8, 16, 4, 2816, 32000, 4096, 10000.0, tied=False),
}


def tensor_shapes(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names with shapes in NumPy order: (rows, row length) or (elements,)."""
    head_dim = shape.n_embd // shape.n_heads
    kv_width = head_dim * shape.n_kv_heads
    yield "token_embd.weight", (shape.n_vocab, shape.n_embd)
    for layer in range(shape.n_layers):
        prefix = f"blk.{layer}."
        yield prefix + "attn_norm.weight", (shape.n_embd,)
        yield prefix + "attn_q.weight", (shape.n_embd, shape.n_embd)
        yield prefix + "attn_k.weight", (kv_width, shape.n_embd)
        yield prefix + "attn_v.weight", (kv_width, shape.n_embd)
        yield prefix + "attn_output.weight", (shape.n_embd, shape.n_embd)
        yield prefix + "ffn_norm.weight", (shape.n_embd,)
        yield prefix + "ffn_gate.weight", (shape.n_ff, shape.n_embd)
        yield prefix + "ffn_up.weight", (shape.n_ff, shape.n_embd)
        yield prefix + "ffn_down.weight", (shape.n_embd, shape.n_ff)
    yield "output_norm.weight", (shape.n_embd,)
    if not shape.tied:
        yield "output.weight", (shape.n_vocab, shape.n_embd)


def add_vocabulary(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    """The demo model's tokenizer fields, the token list filled up with unused tokens."""
    for name, field in gguf.GGUFReader(DEMO).fields.items():
        if not name.startswith("tokenizer."):
            continue
        value = field.contents()
        if name == "tokenizer.ggml.tokens":
            value = value + [f"[unused{index}]" for index in range(n_vocab - len(value))]
        elif name == "tokenizer.ggml.token_type":
            value = value + [int(gguf.TokenType.UNUSED)] * (n_vocab - len(value))
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(name, value)
        else:
            writer.add_key_value(name, value, field.types[0])


def write(path: Path, shape: Shape, seed: int = 1) -> None:
    """Streams the file tensor by tensor; memory stays below one tensor plus 64 MiB of random numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layers)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_rope_dimension_count(shape.n_embd // shape.n_heads)
    writer.add_rope_freq_base(shape.rope_freq_base)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.n_vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    add_vocabulary(writer, shape.n_vocab)
    shapes = dict(tensor_shapes(shape))
    for name, dims in shapes.items():
        dtype = np.dtype(np.float16 if len(dims) == 2 else np.float32)
        writer.add_tensor_info(name, dims, dtype, int(np.prod(dims)) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(seed)
    pool = rng.standard_normal(1 << 24, dtype=np.float32).astype(np.float16)
    for dims in shapes.values():
        if len(dims) == 1:
            writer.write_tensor_data(np.ones(dims, np.float32))
            continue
        n_elements = dims[0] * dims[1]
        start = int(rng.integers(0, pool.size))
        values = np.resize(np.roll(pool, start), n_elements).reshape(dims)
        writer.write_tensor_data(values * np.float16(dims[1] ** -0.5))
    writer.close()


def main() -> int:
    """Exit status 0 with the file written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="llama32-1b")
    arguments = parser.parse_args()
    write(arguments.out, SHAPES[arguments.shape])
    return 0


if __name__ == "__main__":
    sys.exit(main())
