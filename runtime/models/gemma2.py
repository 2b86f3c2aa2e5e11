"""Gemma 2 (general.architecture = "gemma2"): a window in every other layer, caps on scores and logits."""

from __future__ import annotations

from runtime.models.config import ModelConfig
from runtime.models.decoder import attention_buffers, decoder, qkv, rope_of
from runtime.models.gemma import add_heads, feed_forward, normed, score_scale
from runtime.models.graph import Attention, Buffer, Graph, Op

_N_LAYERS_27B = 46
# What a file means that does not say.
_ATTENTION_SOFTCAP = 50.0
_LOGIT_SOFTCAP = 30.0


def build(config: ModelConfig) -> Graph:
    """Return the graph of one Gemma 2."""
    return decoder(
        config,
        _attention,
        feed_forward,
        embedding_scale=config.n_embd**0.5,
        logit_softcap=config.logit_softcap or _LOGIT_SOFTCAP,
    )


def _attention(c: ModelConfig, layer: int, x: Buffer, norm: Buffer) -> list[Op]:
    b = attention_buffers(c)
    return [
        normed(c, layer, "attn_norm", x, norm),
        qkv(layer, norm, b),
        Attention(
            *b,
            layer,
            c.n_heads,
            rope_of(c, interleaved=False),
            score_scale(c, _N_LAYERS_27B),
            window=c.window(layer),
            softcap=c.attention_softcap or _ATTENTION_SOFTCAP,
        ),
        *add_heads(c, layer, b.heads, x),
    ]
