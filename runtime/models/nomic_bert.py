"""Nomic's text encoders (general.architecture = "nomic-bert"): a BERT that rotates, with gated feed-forward layers.

Rotation pairs are halves of a head.  q, k and v lie in one tensor.
"""

from __future__ import annotations

from runtime.models.config import ModelConfig
from runtime.models.decoder import fused_qkv, gate_and_up, projection, rope_of
from runtime.models.encoder import encoder
from runtime.models.graph import Buffer, Graph, Linear, Op


def build(config: ModelConfig) -> Graph:
    """Return the graph of one Nomic encoder."""
    return encoder(config, fused_qkv, _feed_forward, rope_of(config, interleaved=False))


def _feed_forward(c: ModelConfig, layer: int, x: Buffer, norm: Buffer) -> list[Op]:
    hidden = Buffer("hidden", c.n_ff)
    return [
        gate_and_up(c, layer, norm, hidden),
        Linear(hidden, (projection(layer, "ffn_down", hidden, x),), accumulate=True),
    ]
