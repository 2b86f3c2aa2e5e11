"""What BERT and its kin have in common: layer norms behind attention and feed-forward, attention in both directions.

Such a model gives one vector for a sequence, by the pooling that the file names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

from runtime.models.config import ModelConfig
from runtime.models.decoder import AttentionBuffers, LayerPart, attention_buffers
from runtime.models.graph import (
    AddRow,
    Attention,
    Buffer,
    Embed,
    Graph,
    LayerNorm,
    Linear,
    Op,
    Pool,
    Projection,
    Rope,
    Weight,
)


def encoder(
    c: ModelConfig,
    qkv: Callable[[int, Buffer, AttentionBuffers], Linear],
    feed_forward: LayerPart,
    rope: Rope | None = None,
) -> Graph:
    """Return embeddings, layers of attention and `feed_forward`, and the pooling.

    Without a rotation, the positions are learned.
    """
    x = Buffer("x", c.n_embd)
    ops: list[Op] = [Embed(Weight("token_embd.weight", (c.n_vocab, c.n_embd)), x)]
    if c.n_token_types:  # everything is of the first type, "sentence A"
        ops.append(AddRow(Weight("token_types.weight", (c.n_token_types, c.n_embd)), x, "first"))
    if rope is None:
        ops.append(AddRow(Weight("position_embd.weight", (c.context_length, c.n_embd)), x, "position"))
    ops.append(layer_norm(c, "token_embd_norm", x))
    for layer in range(c.n_layers):
        ops += _attention(c, layer, x, qkv, rope)
        ops.append(layer_norm(c, f"blk.{layer}.attn_output_norm", x))
        ops += feed_forward(c, layer, x, x)
        ops.append(layer_norm(c, f"blk.{layer}.layer_output_norm", x))
    ops.append(Pool(x, cast('Literal["mean", "cls", "last"]', c.pooling)))
    return Graph(tuple(ops))


def layer_norm(c: ModelConfig, name: str, x: Buffer) -> LayerNorm:
    """Return x = x normalized."""
    weight, bias = (Weight(f"{name}.{part}", (c.n_embd,)) for part in ("weight", "bias"))
    return LayerNorm(x, weight, bias, x, c.norm_eps)


def biased(layer: int, name: str, source: Buffer, out: Buffer) -> Projection:
    """Return the matrix of a layer that takes source to out, with a bias where there is one."""
    return Projection(
        Weight(f"blk.{layer}.{name}.weight", (out.width, source.width)),
        out,
        bias=Weight(f"blk.{layer}.{name}.bias", (out.width,), required=False),
    )


def _attention(
    c: ModelConfig,
    layer: int,
    x: Buffer,
    qkv: Callable[[int, Buffer, AttentionBuffers], Linear],
    rope: Rope | None,
) -> list[Op]:
    b = attention_buffers(c)
    return [
        qkv(layer, x, b),
        Attention(*b, layer, c.n_heads, rope, c.head_dim**-0.5, causal=False),
        Linear(b.heads, (biased(layer, "attn_output", b.heads, x),), accumulate=True),
    ]
