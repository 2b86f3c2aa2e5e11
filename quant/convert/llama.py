"""Llama 2 and 3, Mistral, SmolLM, Mixtral, and what differs from them by numbers only: Granite, SmolLM 3.

GGUF wants the rotation pairs of q and k as neighbours for these, so their rows are permuted.
"""

from __future__ import annotations

from quant.convert.checkpoint import Checkpoint
from quant.convert.config import Config
from quant.convert.converted import (
    Converted,
    DecoderShape,
    add_attention,
    add_feed_forward,
    add_frame,
    model_prefix,
    norm,
    read_shape,
    set_decoder,
    set_rope,
)
from quant.convert.views import Stacked

_UNROTATED_EVERY = 4  # layers of SmolLM 3, as readers of GGUF take it


def convert(config: Config, weights: Checkpoint, n_tokens: int) -> Converted:
    """Map LlamaForCausalLM, MistralForCausalLM and MixtralForCausalLM."""
    del n_tokens
    out = Converted("llama")
    _convert(out, config, weights)
    if "sliding_window" in config:
        out.set("attention.sliding_window", "u32", config.integer("sliding_window"))
    return out


def convert_granite(config: Config, weights: Checkpoint, n_tokens: int) -> Converted:
    """Map GraniteForCausalLM."""
    del n_tokens
    out = Converted("granite")
    _convert(out, config, weights)
    for ours, theirs in (
        ("attention.scale", "attention_multiplier"),
        ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("logit_scale", "logits_scaling"),
    ):
        if theirs in config:
            out.set(ours, "f32", config.number(theirs, minimum=1e-6, maximum=1e6))
    return out


def convert_smollm3(config: Config, weights: Checkpoint, n_tokens: int) -> Converted:
    """Map SmolLM3ForCausalLM."""
    del n_tokens
    if config.boolean("use_sliding_window", default=False):
        config.fail(
            "use_sliding_window", "is true; models of this family with a sliding window are not converted"
        )
    out = Converted("smollm3")
    s = _convert(out, config, weights)
    rotated = config.get("no_rope_layers")  # 1 where a layer rotates
    if rotated and rotated != [int((i + 1) % _UNROTATED_EVERY != 0) for i in range(s.n_layers)]:
        config.fail(
            "no_rope_layers", f"must leave out every {_UNROTATED_EVERY}th layer, as GGUF's smollm3 does"
        )
    return out


def _convert(out: Converted, config: Config, weights: Checkpoint) -> DecoderShape:
    prefix = model_prefix(weights)
    s = read_shape(config, weights, f"{prefix}embed_tokens.weight")
    set_decoder(out, config, s)
    set_rope(out, config, s.head_dim)
    n_experts = config.integer("num_local_experts", 0, minimum=0, maximum=1024)
    if n_experts:
        out.set("expert_count", "u32", n_experts)
        used = config.integer("num_experts_per_tok", maximum=n_experts)
        out.set("expert_used_count", "u32", used)
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
        if n_experts:
            _add_mixtral(out, weights, layer, s, f"{theirs}block_sparse_moe.", n_experts)
        else:
            add_feed_forward(out, weights, layer, s.n_embd, s.n_ff, theirs)
    return s


def _add_mixtral(  # noqa: PLR0917 - the words of a sentence
    out: Converted, weights: Checkpoint, layer: int, s: DecoderShape, prefix: str, n_experts: int
) -> None:
    router = weights.take(f"{prefix}gate.weight", (n_experts, s.n_embd))
    out.matrix(f"blk.{layer}.ffn_gate_inp.weight", router)
    for part, name, shape in (
        ("gate", "w1", (s.n_ff, s.n_embd)),
        ("up", "w3", (s.n_ff, s.n_embd)),
        ("down", "w2", (s.n_embd, s.n_ff)),
    ):
        experts = [weights.take(f"{prefix}experts.{i}.{name}.weight", shape) for i in range(n_experts)]
        out.matrix(f"blk.{layer}.ffn_{part}_exps.weight", Stacked([*experts]), n_experts)
