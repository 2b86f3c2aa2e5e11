"""BERT encoders such as MiniLM and BGE (general.architecture = "bert"): learned positions, GELU, biases everywhere."""

from __future__ import annotations

from runtime.models.config import ModelConfig
from runtime.models.decoder import AttentionBuffers
from runtime.models.encoder import biased, encoder
from runtime.models.graph import Buffer, Gelu, Graph, Linear, Op


def build(config: ModelConfig) -> Graph:
    """Return the graph of one BERT."""
    return encoder(config, _qkv, _feed_forward)


def _qkv(layer: int, source: Buffer, b: AttentionBuffers) -> Linear:
    outs = (("attn_q", b.q), ("attn_k", b.k), ("attn_v", b.v))
    return Linear(source, tuple(biased(layer, name, source, out) for name, out in outs))


def _feed_forward(c: ModelConfig, layer: int, x: Buffer, norm: Buffer) -> list[Op]:
    hidden = Buffer("hidden", c.n_ff)
    return [
        Linear(norm, (biased(layer, "ffn_up", norm, hidden),)),
        Gelu(hidden),
        Linear(hidden, (biased(layer, "ffn_down", hidden, x),), accumulate=True),
    ]
