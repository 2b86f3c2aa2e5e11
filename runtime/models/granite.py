"""Granite 3, dense (general.architecture = "granite"): a llama with factors on embeddings, scores, residuals and logits.

Rotation pairs are neighbours: the converter permutes q and k.  The file's logit_scale divides the logits.
"""

from __future__ import annotations

from runtime.models.config import ModelConfig
from runtime.models.decoder import (
    attention_buffers,
    decoder,
    gate_and_up,
    longrope_of,
    projection,
    qkv,
    rope_of,
)
from runtime.models.graph import Add, Attention, Buffer, Graph, Linear, Op, RmsNorm, Weight


def build(config: ModelConfig) -> Graph:
    """Return the graph of one Granite."""
    return decoder(
        config,
        _attention,
        _feed_forward,
        embedding_scale=config.embedding_scale,
        logit_scale=1 / config.logit_scale,
    )


def _attention(c: ModelConfig, layer: int, x: Buffer, norm: Buffer) -> list[Op]:
    b = attention_buffers(c)
    branch = Buffer("branch", c.n_embd)
    rope = longrope_of if c.rope_scaling.kind == "longrope" else rope_of
    return [
        RmsNorm(x, Weight(f"blk.{layer}.attn_norm.weight", (c.n_embd,)), norm, c.norm_eps),
        qkv(layer, norm, b),
        Attention(*b, layer, c.n_heads, rope(c, interleaved=True), c.attention_scale or c.head_dim**-0.5),
        Linear(b.heads, (projection(layer, "attn_output", b.heads, branch),)),
        Add(branch, x, c.residual_scale),
    ]


def _feed_forward(c: ModelConfig, layer: int, x: Buffer, norm: Buffer) -> list[Op]:
    hidden, branch = Buffer("hidden", c.n_ff), Buffer("branch", c.n_embd)
    return [
        RmsNorm(x, Weight(f"blk.{layer}.ffn_norm.weight", (c.n_embd,)), norm, c.norm_eps),
        gate_and_up(c, layer, norm, hidden),
        Linear(hidden, (projection(layer, "ffn_down", hidden, branch),)),
        Add(branch, x, c.residual_scale),
    ]
