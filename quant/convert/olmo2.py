"""OLMo 2 and 3: norms behind attention and feed-forward, and across all of q and of k; nothing is permuted."""

from __future__ import annotations

from quant.convert.checkpoint import Checkpoint
from quant.convert.config import Config
from quant.convert.converted import (
    Converted,
    add_attention,
    add_feed_forward,
    add_frame,
    check_layer_types,
    model_prefix,
    norm,
    read_shape,
    set_decoder,
    set_rope,
)

_FULL_EVERY = 4


def convert(config: Config, weights: Checkpoint, n_tokens: int) -> Converted:
    """Map Olmo2ForCausalLM and Olmo3ForCausalLM."""
    del n_tokens
    prefix = model_prefix(weights)
    s = read_shape(config, weights, f"{prefix}embed_tokens.weight")
    out = Converted("olmo2")
    set_decoder(out, config, s)
    set_rope(out, config, s.head_dim)
    if "sliding_window" in config:
        check_layer_types(config, s.n_layers, _FULL_EVERY)
        out.set("attention.sliding_window", "u32", config.integer("sliding_window"))
        pattern = [(layer + 1) % _FULL_EVERY != 0 for layer in range(s.n_layers)]
        out.set("attention.sliding_window_pattern", "array[bool]", pattern)
    add_frame(out, weights, config, s, prefix)
    for layer in range(s.n_layers):
        theirs = f"{prefix}layers.{layer}."
        add_attention(out, weights, layer, s, theirs, permuted=False)
        for ours, name, width in (
            ("attn_q_norm", "self_attn.q_norm", s.n_heads * s.head_dim),
            ("attn_k_norm", "self_attn.k_norm", s.n_kv_heads * s.head_dim),
            ("post_attention_norm", "post_attention_layernorm", s.n_embd),
            ("post_ffw_norm", "post_feedforward_layernorm", s.n_embd),
        ):
            out.vector(f"blk.{layer}.{ours}.weight", norm(weights, f"{theirs}{name}.weight", width))
        add_feed_forward(out, weights, layer, s.n_embd, s.n_ff, theirs)
    return out
