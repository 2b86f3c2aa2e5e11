"""Qwen 2 and 2.5 (general.architecture = "qwen2"): a llama with biases on q, k and v.

Rotation pairs are halves of a head, (i, i + rope_dim / 2).
"""

from __future__ import annotations

from runtime.models.config import ModelConfig
from runtime.models.decoder import decoder
from runtime.models.graph import (
    Attention,
    Buffer,
    Graph,
    Linear,
    Op,
    Projection,
    RmsNorm,
    Weight,
)


def build(config: ModelConfig) -> Graph:
    """Return the graph of one Qwen 2."""
    return decoder(config, _attention)


def _attention(c: ModelConfig, layer: int, x: Buffer, norm: Buffer) -> list[Op]:
    q_width, kv_width = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    q, k, v = Buffer("q", q_width), Buffer("k", kv_width), Buffer("v", kv_width)
    heads = Buffer("heads", q_width)  # (n_rows, n_heads, head_dim)

    def projection(name: str, n_out: int, out: Buffer) -> Projection:
        return Projection(
            Weight(f"blk.{layer}.{name}.weight", (n_out, c.n_embd)),
            out,
            bias=Weight(f"blk.{layer}.{name}.bias", (n_out,)),
        )

    output = Weight(f"blk.{layer}.attn_output.weight", (c.n_embd, q_width))

    return [
        RmsNorm(x, Weight(f"blk.{layer}.attn_norm.weight", (c.n_embd,)), norm, c.rms_eps),
        Linear(
            norm,
            (
                projection("attn_q", q_width, q),
                projection("attn_k", kv_width, k),
                projection("attn_v", kv_width, v),
            ),
        ),
        Attention(q, k, v, heads, layer, c.n_heads, interleaved=False, scale=c.head_dim**-0.5),
        Linear(heads, (Projection(output, x),), accumulate=True),
    ]
