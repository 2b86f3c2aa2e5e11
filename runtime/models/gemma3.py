"""Gemma 3, text (general.architecture = "gemma3"): a window in five of six layers, norms on each head of q and k.

Layers with a window rotate by a frequency base of their own and are not scaled.
"""

from __future__ import annotations

from runtime.models.config import ModelConfig, RopeScaling
from runtime.models.decoder import attention_buffers, decoder, qkv, rope_of
from runtime.models.gemma import add_heads, feed_forward, normed, score_scale
from runtime.models.graph import Attention, Buffer, Graph, HeadNorm, Op, Rope, Weight

_N_LAYERS_27B = 62


def build(config: ModelConfig) -> Graph:
    """Return the graph of one Gemma 3."""
    return decoder(
        config,
        _attention,
        feed_forward,
        embedding_scale=config.n_embd**0.5,
        logit_softcap=config.logit_softcap,
    )


def _attention(c: ModelConfig, layer: int, x: Buffer, norm: Buffer) -> list[Op]:
    b = attention_buffers(c)
    window = c.window(layer)
    rope = (
        Rope(c.rope_freq_base_window, c.rope_dim, interleaved=False, scaling=RopeScaling())
        if window
        else rope_of(c, interleaved=False)
    )

    def head_norm(name: str, buffer: Buffer) -> HeadNorm:
        return HeadNorm(buffer, Weight(f"blk.{layer}.{name}.weight", (c.head_dim,)), c.head_dim, c.norm_eps)

    return [
        normed(c, layer, "attn_norm", x, norm),
        qkv(layer, norm, b),
        head_norm("attn_q_norm", b.q),
        head_norm("attn_k_norm", b.k),
        Attention(*b, layer, c.n_heads, rope, score_scale(c, _N_LAYERS_27B), window=window),
        *add_heads(c, layer, b.heads, x),
    ]
