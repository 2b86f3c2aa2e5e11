"""Qwen 3, dense (general.architecture = "qwen3"): a norm on each head of q and k, no biases.

head_dim is a key of its own (attention.key_length) and need not be n_embd / n_heads.  Rotation pairs are halves of a head, (i, i + rope_dim / 2).
"""

from __future__ import annotations

from runtime.models.config import ModelConfig
from runtime.models.decoder import decoder
from runtime.models.graph import (
    Attention,
    Buffer,
    Graph,
    HeadNorm,
    Linear,
    Op,
    Projection,
    RmsNorm,
    Weight,
)


def build(config: ModelConfig) -> Graph:
    """Return the graph of one Qwen 3."""
    return decoder(config, _attention)


def _attention(c: ModelConfig, layer: int, x: Buffer, norm: Buffer) -> list[Op]:
    q_width, kv_width = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    q, k, v = Buffer("q", q_width), Buffer("k", kv_width), Buffer("v", kv_width)
    heads = Buffer("heads", q_width)  # (n_rows, n_heads, head_dim)

    def projection(name: str, n_out: int, out: Buffer) -> Projection:
        return Projection(Weight(f"blk.{layer}.{name}.weight", (n_out, c.n_embd)), out)

    def head_norm(name: str, buffer: Buffer) -> HeadNorm:
        return HeadNorm(buffer, Weight(f"blk.{layer}.{name}.weight", (c.head_dim,)), c.head_dim, c.rms_eps)

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
        head_norm("attn_q_norm", q),
        head_norm("attn_k_norm", k),
        Attention(q, k, v, heads, layer, c.n_heads, interleaved=False, scale=c.head_dim**-0.5),
        Linear(heads, (Projection(output, x),), accumulate=True),
    ]
