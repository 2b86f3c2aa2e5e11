"""Llama 2 and 3, Mistral, TinyLlama, SmolLM and their kin (general.architecture = "llama").

Rotation pairs are neighbours: convert_hf_to_gguf permutes q and k of this architecture.  Llama 3.1 and later carry
their rotation scaling as rope_freqs.weight.  Some derivatives have biases on q, k, v and the output projection.
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
    """Return the graph of one llama."""
    factors = Weight("rope_freqs.weight", (config.rope_dim // 2,), required=False)
    return decoder(config, _attention, rope_factors=factors)


def _attention(c: ModelConfig, layer: int, x: Buffer, norm: Buffer) -> list[Op]:
    q_width, kv_width = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    q, k, v = Buffer("q", q_width), Buffer("k", kv_width), Buffer("v", kv_width)
    heads = Buffer("heads", q_width)  # (n_rows, n_heads, head_dim)

    def projection(name: str, n_out: int, n_in: int, out: Buffer) -> Projection:
        return Projection(
            Weight(f"blk.{layer}.{name}.weight", (n_out, n_in)),
            out,
            bias=Weight(f"blk.{layer}.{name}.bias", (n_out,), required=False),
        )

    return [
        RmsNorm(x, Weight(f"blk.{layer}.attn_norm.weight", (c.n_embd,)), norm, c.rms_eps),
        Linear(
            norm,
            (
                projection("attn_q", q_width, c.n_embd, q),
                projection("attn_k", kv_width, c.n_embd, k),
                projection("attn_v", kv_width, c.n_embd, v),
            ),
        ),
        Attention(q, k, v, heads, layer, c.n_heads, interleaved=True, scale=c.head_dim**-0.5),
        Linear(heads, (projection("attn_output", c.n_embd, q_width, x),), accumulate=True),
    ]
