"""OLMo 2 and 3 (general.architecture = "olmo2"): norms behind attention and feed-forward, and across all of q and of k.

Rotation pairs are halves of a head.  OLMo 3 has sliding windows in three of four layers, whose rotation is not scaled.
"""

from __future__ import annotations

from runtime.models.config import ModelConfig, RopeScaling
from runtime.models.decoder import attention_buffers, decoder, gate_and_up, projection, qkv, rope_of
from runtime.models.graph import Add, Attention, Buffer, Graph, Linear, Op, RmsNorm, Rope, Weight


def build(config: ModelConfig) -> Graph:
    """Return the graph of one OLMo."""
    return decoder(config, _attention, _feed_forward)


def _attention(c: ModelConfig, layer: int, x: Buffer, norm: Buffer) -> list[Op]:
    del norm
    b = attention_buffers(c)
    branch = Buffer("branch", c.n_embd)
    window = c.window(layer)
    rope = (
        Rope(c.rope_freq_base_window, c.rope_dim, interleaved=False, scaling=RopeScaling())
        if window
        else rope_of(c, interleaved=False)
    )

    def normed(name: str, buffer: Buffer) -> RmsNorm:
        return RmsNorm(buffer, Weight(f"blk.{layer}.{name}.weight", (buffer.width,)), buffer, c.norm_eps)

    return [
        qkv(layer, x, b),
        normed("attn_q_norm", b.q),
        normed("attn_k_norm", b.k),
        Attention(*b, layer, c.n_heads, rope, c.head_dim**-0.5, window=window),
        Linear(b.heads, (projection(layer, "attn_output", b.heads, branch),)),
        normed("post_attention_norm", branch),
        Add(branch, x),
    ]


def _feed_forward(c: ModelConfig, layer: int, x: Buffer, norm: Buffer) -> list[Op]:
    del norm
    hidden, branch = Buffer("hidden", c.n_ff), Buffer("branch", c.n_embd)
    post_norm = Weight(f"blk.{layer}.post_ffw_norm.weight", (c.n_embd,))
    return [
        gate_and_up(c, layer, x, hidden),
        Linear(hidden, (projection(layer, "ffn_down", hidden, branch),)),
        RmsNorm(branch, post_norm, branch, c.norm_eps),
        Add(branch, x),
    ]
