"""What the architectures of the llama family have in common: the frame of a pre-norm decoder and its feed-forward.

An architecture whose frame differs writes its own; nothing here takes flags.
"""

from __future__ import annotations

from collections.abc import Callable

from runtime.models.config import ModelConfig
from runtime.models.graph import (
    Buffer,
    Embed,
    GatedLinear,
    Graph,
    Head,
    Linear,
    Op,
    Projection,
    RmsNorm,
    Select,
    Weight,
)

# (config, layer, x, norm) -> operations that read x (n_rows, n_embd), may use norm of the same shape, and add to x.
LayerPart = Callable[[ModelConfig, int, Buffer, Buffer], list[Op]]


def decoder(c: ModelConfig, attention: LayerPart, rope_factors: Weight | None = None) -> Graph:
    """Return embedding, layers of `attention` and feed-forward, and the head on the rows that are wanted."""
    x = Buffer("x", c.n_embd)
    norm = Buffer("norm", c.n_embd)
    last = Buffer("last", c.n_embd)
    ops: list[Op] = [Embed(Weight("token_embd.weight", (c.n_vocab, c.n_embd)), x)]
    for layer in range(c.n_layers):
        ops += attention(c, layer, x, norm)
        ops += _feed_forward(c, layer, x, norm)
    ops += [
        Select(x, last),
        RmsNorm(last, Weight("output_norm.weight", (c.n_embd,)), norm, c.rms_eps),
        Head(norm, Weight("output.weight", (c.n_vocab, c.n_embd), instead="token_embd.weight")),
    ]
    return Graph(tuple(ops), rope_factors=rope_factors)


def _feed_forward(c: ModelConfig, layer: int, x: Buffer, norm: Buffer) -> list[Op]:
    hidden = Buffer("hidden", c.n_ff)
    return [
        RmsNorm(x, Weight(f"blk.{layer}.ffn_norm.weight", (c.n_embd,)), norm, c.rms_eps),
        GatedLinear(
            norm,
            gate=Weight(f"blk.{layer}.ffn_gate.weight", (c.n_ff, c.n_embd)),
            up=Weight(f"blk.{layer}.ffn_up.weight", (c.n_ff, c.n_embd)),
            out=hidden,
        ),
        Linear(
            hidden,
            (Projection(Weight(f"blk.{layer}.ffn_down.weight", (c.n_embd, c.n_ff)), x),),
            accumulate=True,
        ),
    ]
