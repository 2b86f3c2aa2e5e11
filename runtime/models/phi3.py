"""Phi 3, 3.5 and 4 mini (general.architecture = "phi3"): q, k and v in one tensor, gate and up in another.

Rotation pairs are halves of the rotated part of a head (Phi 4 mini rotates three quarters).  Long contexts have their own
factors (longrope).  Where there is a sliding window, every layer sees it.
"""

from __future__ import annotations

from runtime.models.config import ModelConfig
from runtime.models.decoder import attention_buffers, decoder, fused_qkv, longrope_of, projection
from runtime.models.graph import Attention, Buffer, GatedLinear, Graph, Linear, Op, RmsNorm, Weight


def build(config: ModelConfig) -> Graph:
    """Return the graph of one Phi 3."""
    return decoder(config, _attention, _feed_forward)


def _attention(c: ModelConfig, layer: int, x: Buffer, norm: Buffer) -> list[Op]:
    b = attention_buffers(c)
    return [
        RmsNorm(x, Weight(f"blk.{layer}.attn_norm.weight", (c.n_embd,)), norm, c.norm_eps),
        fused_qkv(layer, norm, b),
        Attention(
            *b,
            layer,
            c.n_heads,
            longrope_of(c, interleaved=False),
            c.head_dim**-0.5,
            window=c.window(layer),
        ),
        Linear(b.heads, (projection(layer, "attn_output", b.heads, x),), accumulate=True),
    ]


def _feed_forward(c: ModelConfig, layer: int, x: Buffer, norm: Buffer) -> list[Op]:
    hidden = Buffer("hidden", c.n_ff)
    name, shape = f"blk.{layer}.ffn_up.weight", (2 * c.n_ff, c.n_embd)
    return [
        RmsNorm(x, Weight(f"blk.{layer}.ffn_norm.weight", (c.n_embd,)), norm, c.norm_eps),
        GatedLinear(
            norm,
            gate=Weight(name, shape, rows=(0, c.n_ff)),
            up=Weight(name, shape, rows=(c.n_ff, 2 * c.n_ff)),
            out=hidden,
        ),
        Linear(hidden, (projection(layer, "ffn_down", hidden, x),), accumulate=True),
    ]
