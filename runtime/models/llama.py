"""Llama 2 and 3, Mistral, Mixtral, TinyLlama, SmolLM and their kin (general.architecture = "llama").

Rotation pairs are neighbours: convert_hf_to_gguf permutes q and k of this architecture.  Llama 3.1 and later carry
their rotation scaling as rope_freqs.weight.  Some derivatives have biases on q, k, v and the output projection.  Mixtral
has experts in the place of the feed-forward layer; early Mistrals see a sliding window.
"""

from __future__ import annotations

from runtime.models.config import ModelConfig
from runtime.models.decoder import attention_buffers, decoder, gated, mixture, rope_of
from runtime.models.graph import Attention, Buffer, Graph, Linear, Op, Projection, RmsNorm, Weight


def build(config: ModelConfig) -> Graph:
    """Return the graph of one llama."""
    return decoder(config, _attention, mixture if config.experts else gated)


def _attention(c: ModelConfig, layer: int, x: Buffer, norm: Buffer) -> list[Op]:
    b = attention_buffers(c)
    factors = Weight("rope_freqs.weight", (c.rope_dim // 2,), required=False)
    scale = c.attention_scale or c.head_dim**-0.5

    def projection(name: str, source: Buffer, out: Buffer) -> Projection:
        return Projection(
            Weight(f"blk.{layer}.{name}.weight", (out.width, source.width)),
            out,
            bias=Weight(f"blk.{layer}.{name}.bias", (out.width,), required=False),
        )

    return [
        RmsNorm(x, Weight(f"blk.{layer}.attn_norm.weight", (c.n_embd,)), norm, c.norm_eps),
        Linear(
            norm,
            (
                projection("attn_q", norm, b.q),
                projection("attn_k", norm, b.k),
                projection("attn_v", norm, b.v),
            ),
        ),
        Attention(
            b.q,
            b.k,
            b.v,
            b.heads,
            layer,
            c.n_heads,
            rope_of(c, interleaved=True, factors=factors),
            scale,
            window=c.window(layer),
        ),
        Linear(b.heads, (projection("attn_output", b.heads, x),), accumulate=True),
    ]
