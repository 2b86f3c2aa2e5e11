"""Qwen 2 and 2.5 (general.architecture = "qwen2"): a llama with biases on q, k and v.

Rotation pairs are halves of a head, (i, i + rope_dim / 2).
"""

from __future__ import annotations

from runtime.models.config import ModelConfig
from runtime.models.decoder import attention_buffers, decoder, projection, rope_of
from runtime.models.graph import Attention, Buffer, Graph, Linear, Op, Projection, RmsNorm, Weight


def build(config: ModelConfig) -> Graph:
    """Return the graph of one Qwen 2."""
    return decoder(config, _attention)


def _attention(c: ModelConfig, layer: int, x: Buffer, norm: Buffer) -> list[Op]:
    b = attention_buffers(c)

    def biased(name: str, out: Buffer) -> Projection:
        return Projection(
            Weight(f"blk.{layer}.{name}.weight", (out.width, c.n_embd)),
            out,
            bias=Weight(f"blk.{layer}.{name}.bias", (out.width,)),
        )

    return [
        RmsNorm(x, Weight(f"blk.{layer}.attn_norm.weight", (c.n_embd,)), norm, c.norm_eps),
        Linear(norm, (biased("attn_q", b.q), biased("attn_k", b.k), biased("attn_v", b.v))),
        Attention(*b, layer, c.n_heads, rope_of(c, interleaved=False), c.head_dim**-0.5),
        Linear(b.heads, (projection(layer, "attn_output", b.heads, x),), accumulate=True),
    ]
