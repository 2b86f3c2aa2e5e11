"""What Gemma 2 and 3 have in common: norms before and behind attention and feed-forward, and GELU gates.

The converter adds one to every norm's weight.  Rotation pairs are halves of a head.  Embeddings are multiplied by the root
of their width.
"""

from __future__ import annotations

from runtime.models.config import ModelConfig
from runtime.models.decoder import projection
from runtime.models.graph import Add, Buffer, GatedLinear, Linear, Op, RmsNorm, Weight


def normed(c: ModelConfig, layer: int, name: str, source: Buffer, out: Buffer) -> RmsNorm:
    """Return out = source normalized."""
    return RmsNorm(source, Weight(f"blk.{layer}.{name}.weight", (source.width,)), out, c.norm_eps)


def add_heads(c: ModelConfig, layer: int, heads: Buffer, x: Buffer) -> list[Op]:
    """Return x += the norm of the heads' projection."""
    branch = Buffer("branch", c.n_embd)
    return [
        Linear(heads, (projection(layer, "attn_output", heads, branch),)),
        normed(c, layer, "post_attention_norm", branch, branch),
        Add(branch, x),
    ]


def feed_forward(c: ModelConfig, layer: int, x: Buffer, norm: Buffer) -> list[Op]:
    """Return x += the norm of down . (gelu(gate . norm) * (up . norm))."""
    hidden, branch = Buffer("hidden", c.n_ff), Buffer("branch", c.n_embd)
    return [
        normed(c, layer, "ffn_norm", x, norm),
        GatedLinear(
            norm,
            gate=Weight(f"blk.{layer}.ffn_gate.weight", (c.n_ff, c.n_embd)),
            up=Weight(f"blk.{layer}.ffn_up.weight", (c.n_ff, c.n_embd)),
            out=hidden,
            activation="gelu",
        ),
        Linear(hidden, (projection(layer, "ffn_down", hidden, branch),)),
        normed(c, layer, "post_ffw_norm", branch, branch),
        Add(branch, x),
    ]


def score_scale(c: ModelConfig, largest_n_layers: int) -> float:
    """Return the factor of the scores: the largest model of a family takes n_embd / n_heads for the head's width.

    The file does not say; both families' papers and llama.cpp go by the number of layers.
    """
    width = c.n_embd // c.n_heads if c.n_layers == largest_n_layers else c.head_dim
    return float(width**-0.5)
