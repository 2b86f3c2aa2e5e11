"""What the architectures of the llama family have in common: the frame of a pre-norm decoder and its feed-forward.

An architecture whose frame differs writes its own; nothing here takes flags.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from runtime.models.config import ModelConfig
from runtime.models.graph import (
    Buffer,
    Embed,
    Experts,
    GatedLinear,
    Graph,
    Head,
    Linear,
    Op,
    Projection,
    RmsNorm,
    Rope,
    Select,
    Weight,
)

# (config, layer, x, norm) -> operations that read x (n_rows, n_embd), may use norm of the same shape, and add to x.
LayerPart = Callable[[ModelConfig, int, Buffer, Buffer], list[Op]]


class AttentionBuffers(NamedTuple):
    """What attention reads and writes."""

    q: Buffer  # (n_rows, n_heads, head_dim)
    k: Buffer  # (n_rows, n_kv_heads, head_dim)
    v: Buffer  # (n_rows, n_kv_heads, head_dim)
    heads: Buffer  # (n_rows, n_heads, head_dim)


def decoder(
    c: ModelConfig,
    attention: LayerPart,
    feed_forward: LayerPart | None = None,
    *,
    embedding_scale: float = 1.0,
    logit_scale: float = 1.0,
    logit_softcap: float = 0.0,
) -> Graph:
    """Return embedding, layers of `attention` and `feed_forward` (`gated`), and the head on the rows that are wanted."""
    x = Buffer("x", c.n_embd)
    norm = Buffer("norm", c.n_embd)
    last = Buffer("last", c.n_embd)
    ops: list[Op] = [Embed(Weight("token_embd.weight", (c.n_vocab, c.n_embd)), x, embedding_scale)]
    for layer in range(c.n_layers):
        ops += attention(c, layer, x, norm)
        ops += (feed_forward or gated)(c, layer, x, norm)
    ops += [
        Select(x, last),
        RmsNorm(last, Weight("output_norm.weight", (c.n_embd,)), norm, c.norm_eps),
        Head(
            norm,
            Weight("output.weight", (c.n_vocab, c.n_embd), instead="token_embd.weight"),
            logit_scale,
            logit_softcap,
        ),
    ]
    return Graph(tuple(ops))


def gated(c: ModelConfig, layer: int, x: Buffer, norm: Buffer) -> list[Op]:
    """Return x += down . (silu(gate . norm) * (up . norm)), where norm is x normalized."""
    hidden = Buffer("hidden", c.n_ff)
    return [
        RmsNorm(x, Weight(f"blk.{layer}.ffn_norm.weight", (c.n_embd,)), norm, c.norm_eps),
        gate_and_up(c, layer, norm, hidden),
        Linear(
            hidden,
            (Projection(Weight(f"blk.{layer}.ffn_down.weight", (c.n_embd, c.n_ff)), x),),
            accumulate=True,
        ),
    ]


def gate_and_up(c: ModelConfig, layer: int, source: Buffer, hidden: Buffer) -> GatedLinear:
    """Return hidden = silu(gate . source) * (up . source)."""
    return GatedLinear(
        source,
        gate=Weight(f"blk.{layer}.ffn_gate.weight", (c.n_ff, c.n_embd)),
        up=Weight(f"blk.{layer}.ffn_up.weight", (c.n_ff, c.n_embd)),
        out=hidden,
    )


def mixture(c: ModelConfig, layer: int, x: Buffer, norm: Buffer) -> list[Op]:
    """Return the same with a mixture of experts."""
    assert c.experts is not None  # read_config saw to it
    n, n_ff = c.experts.n_experts, c.experts.n_ff
    return [
        RmsNorm(x, Weight(f"blk.{layer}.ffn_norm.weight", (c.n_embd,)), norm, c.norm_eps),
        Experts(
            norm,
            router=Weight(f"blk.{layer}.ffn_gate_inp.weight", (n, c.n_embd)),
            gate=Weight(f"blk.{layer}.ffn_gate_exps.weight", (n, n_ff, c.n_embd)),
            up=Weight(f"blk.{layer}.ffn_up_exps.weight", (n, n_ff, c.n_embd)),
            down=Weight(f"blk.{layer}.ffn_down_exps.weight", (n, c.n_embd, n_ff)),
            out=x,
            n_used=c.experts.n_used,
        ),
    ]


def attention_buffers(c: ModelConfig) -> AttentionBuffers:
    """Return the buffers that the layers share."""
    q_width, kv_width = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    return AttentionBuffers(
        Buffer("q", q_width), Buffer("k", kv_width), Buffer("v", kv_width), Buffer("heads", q_width)
    )


def projection(layer: int, name: str, source: Buffer, out: Buffer) -> Projection:
    """Return the matrix of a layer that takes source to out, without a bias."""
    return Projection(Weight(f"blk.{layer}.{name}.weight", (out.width, source.width)), out)


def qkv(layer: int, source: Buffer, b: AttentionBuffers) -> Linear:
    """Return queries, keys and values of source, without biases."""
    outs = (("attn_q", b.q), ("attn_k", b.k), ("attn_v", b.v))
    return Linear(source, tuple(projection(layer, name, source, out) for name, out in outs))


def fused_qkv(layer: int, source: Buffer, b: AttentionBuffers) -> Linear:
    """Return the same from one tensor that holds the three matrices one after the other."""
    outs = (b.q, b.k, b.v)
    shape = (sum(out.width for out in outs), source.width)
    parts, begin = [], 0
    for out in outs:
        rows = (begin, begin + out.width)
        parts.append(Projection(Weight(f"blk.{layer}.attn_qkv.weight", shape, rows=rows), out))
        begin += out.width
    return Linear(source, tuple(parts))


def rope_of(c: ModelConfig, *, interleaved: bool, factors: Weight | None = None) -> Rope:
    """Return the rotation that the file asks for."""
    return Rope(c.rope_freq_base, c.rope_dim, interleaved, c.rope_scaling, factors)


def longrope_of(c: ModelConfig, *, interleaved: bool) -> Rope:
    """Return the rotation that the file asks for, with the factor tensors of longrope where it has them."""
    short, long = (
        Weight(f"rope_factors_{name}.weight", (c.rope_dim // 2,), required=False)
        for name in ("short", "long")
    )
    return Rope(c.rope_freq_base, c.rope_dim, interleaved, c.rope_scaling, short, long)
