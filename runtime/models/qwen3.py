"""Qwen 3, dense (general.architecture = "qwen3"): a norm on each head of q and k, no biases.

head_dim is a key of its own (attention.key_length) and need not be n_embd / n_heads.  Rotation pairs are halves of a head,
(i, i + rope_dim / 2).
"""

from __future__ import annotations

from runtime.models.config import ModelConfig
from runtime.models.decoder import attention_buffers, decoder, projection, qkv, rope_of
from runtime.models.graph import Attention, Buffer, Graph, HeadNorm, Linear, Op, RmsNorm, Weight


def build(config: ModelConfig) -> Graph:
    """Return the graph of one Qwen 3."""
    return decoder(config, attention)


def attention(c: ModelConfig, layer: int, x: Buffer, norm: Buffer) -> list[Op]:
    """Return the attention of a layer, which the mixture of experts has too."""
    b = attention_buffers(c)

    def head_norm(name: str, buffer: Buffer) -> HeadNorm:
        return HeadNorm(buffer, Weight(f"blk.{layer}.{name}.weight", (c.head_dim,)), c.head_dim, c.norm_eps)

    return [
        RmsNorm(x, Weight(f"blk.{layer}.attn_norm.weight", (c.n_embd,)), norm, c.norm_eps),
        qkv(layer, norm, b),
        head_norm("attn_q_norm", b.q),
        head_norm("attn_k_norm", b.k),
        Attention(*b, layer, c.n_heads, rope_of(c, interleaved=False), c.head_dim**-0.5),
        Linear(b.heads, (projection(layer, "attn_output", b.heads, x),), accumulate=True),
    ]
