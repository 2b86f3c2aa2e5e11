"""Llama 2 and 3, Mistral, SmolLM and their kin: GGUF's llama wants the rotation pairs of q and k as neighbours."""

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

ARCHITECTURE = "llama"
HUGGING_FACE = ("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM")


def convert(config: Config, weights: Checkpoint, n_tokens: int) -> Converted:
    """Map a folder of this family."""
    del n_tokens
    prefix = model_prefix(weights)
    s = read_shape(config, weights, f"{prefix}embed_tokens.weight")
    out = Converted(ARCHITECTURE)
    set_decoder(out, config, s)
    set_rope(out, config, s.head_dim)
    if "sliding_window" in config:
        out.set("attention.sliding_window", "u32", config.integer("sliding_window"))
    add_frame(out, weights, config, s, prefix)
    for layer in range(s.n_layers):
        theirs = f"{prefix}layers.{layer}."
        out.vector(
            f"blk.{layer}.attn_norm.weight", norm(weights, f"{theirs}input_layernorm.weight", s.n_embd)
        )
        add_attention(out, weights, layer, s, theirs, permuted=True)
        out.vector(
            f"blk.{layer}.ffn_norm.weight",
            norm(weights, f"{theirs}post_attention_layernorm.weight", s.n_embd),
        )
        add_feed_forward(out, weights, layer, s.n_embd, s.n_ff, theirs)
    return out
