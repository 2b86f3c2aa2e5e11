"""SmolLM 3 (general.architecture = "smollm3"): a llama whose every fourth layer has no rotation (NoPE).

Rotation pairs are neighbours: the converter permutes q and k.
"""

from __future__ import annotations

from runtime.models.config import ModelConfig
from runtime.models.decoder import attention_buffers, decoder, projection, qkv, rope_of
from runtime.models.graph import Attention, Buffer, Graph, Linear, Op, RmsNorm, Weight

_UNROTATED_EVERY = 4


def build(config: ModelConfig) -> Graph:
    """Return the graph of one SmolLM 3."""
    return decoder(config, _attention)


def _attention(c: ModelConfig, layer: int, x: Buffer, norm: Buffer) -> list[Op]:
    b = attention_buffers(c)
    rope = None if (layer + 1) % _UNROTATED_EVERY == 0 else rope_of(c, interleaved=True)
    return [
        RmsNorm(x, Weight(f"blk.{layer}.attn_norm.weight", (c.n_embd,)), norm, c.norm_eps),
        qkv(layer, norm, b),
        Attention(*b, layer, c.n_heads, rope, c.attention_scale or c.head_dim**-0.5),
        Linear(b.heads, (projection(layer, "attn_output", b.heads, x),), accumulate=True),
    ]
