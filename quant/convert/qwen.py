"""Qwen 2, 2.5 (biases on q, k, v) and dense Qwen 3 (a norm on each head of q and k): nothing is permuted."""

from __future__ import annotations

from quant.convert.checkpoint import Checkpoint
from quant.convert.config import Config
from quant.convert.converted import (
    Converted,
    add_attention,
    add_feed_forward,
    add_frame,
    model_prefix,
    norm,
    read_shape,
    set_decoder,
    set_rope,
)


def convert_qwen2(config: Config, weights: Checkpoint, n_tokens: int) -> Converted:
    """Map Qwen2ForCausalLM."""
    del n_tokens
    return _convert("qwen2", config, weights, head_norms=False)


def convert_qwen3(config: Config, weights: Checkpoint, n_tokens: int) -> Converted:
    """Map Qwen3ForCausalLM."""
    del n_tokens
    return _convert("qwen3", config, weights, head_norms=True)


def _convert(architecture: str, config: Config, weights: Checkpoint, *, head_norms: bool) -> Converted:
    if config.boolean("use_sliding_window", default=False):
        config.fail(
            "use_sliding_window", "is true; models of this family with a sliding window are not converted"
        )
    prefix = model_prefix(weights)
    s = read_shape(config, weights, f"{prefix}embed_tokens.weight")
    out = Converted(architecture)
    set_decoder(out, config, s)
    set_rope(out, config, s.head_dim)
    add_frame(out, weights, config, s, prefix)
    for layer in range(s.n_layers):
        theirs = f"{prefix}layers.{layer}."
        out.vector(
            f"blk.{layer}.attn_norm.weight", norm(weights, f"{theirs}input_layernorm.weight", s.n_embd)
        )
        add_attention(out, weights, layer, s, theirs, permuted=False)
        if head_norms:
            for part in ("q", "k"):
                view = norm(weights, f"{theirs}self_attn.{part}_norm.weight", s.head_dim)
                out.vector(f"blk.{layer}.attn_{part}_norm.weight", view)
        out.vector(
            f"blk.{layer}.ffn_norm.weight",
            norm(weights, f"{theirs}post_attention_layernorm.weight", s.n_embd),
        )
        add_feed_forward(out, weights, layer, s.n_embd, s.n_ff, theirs)
    return out
