"""Qwen 2, 2.5 (biases on q, k, v), Qwen 3 (a norm on each head of q and k) and its mixtures: nothing is permuted."""

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
from quant.convert.views import Slice, Stacked, View


def convert_qwen2(config: Config, weights: Checkpoint, n_tokens: int) -> Converted:
    """Map Qwen2ForCausalLM."""
    del n_tokens
    return _convert("qwen2", config, weights, head_norms=False)


def convert_qwen3(config: Config, weights: Checkpoint, n_tokens: int) -> Converted:
    """Map Qwen3ForCausalLM."""
    del n_tokens
    return _convert("qwen3", config, weights, head_norms=True)


def convert_qwen3moe(config: Config, weights: Checkpoint, n_tokens: int) -> Converted:
    """Map Qwen3MoeForCausalLM."""
    del n_tokens
    if config.get("mlp_only_layers") or config.integer("decoder_sparse_step", 1) != 1:
        config.fail(
            "mlp_only_layers",
            "must be empty and decoder_sparse_step 1: GGUF's qwen3moe has experts in every layer",
        )
    if not config.boolean("norm_topk_prob", default=True):
        config.fail(
            "norm_topk_prob", "is false; GGUF's qwen3moe makes the weights of a token's experts sum to one"
        )
    return _convert("qwen3moe", config, weights, head_norms=True)


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
    n_experts = 0
    if architecture == "qwen3moe":
        n_experts = config.integer("num_experts", maximum=1024)
        out.set("expert_count", "u32", n_experts)
        out.set("expert_used_count", "u32", config.integer("num_experts_per_tok", maximum=n_experts))
        out.set("expert_feed_forward_length", "u32", config.integer("moe_intermediate_size", maximum=1 << 20))
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
        if n_experts:
            n_ff = config.integer("moe_intermediate_size", maximum=1 << 20)
            _add_experts(out, weights, layer, (n_experts, n_ff, s.n_embd), f"{theirs}mlp.")
        else:
            add_feed_forward(out, weights, layer, s.n_embd, s.n_ff, theirs)
    return out


def _add_experts(
    out: Converted, weights: Checkpoint, layer: int, sizes: tuple[int, int, int], prefix: str
) -> None:
    """Add router and experts, stored one by one or all in one tensor (gate above up)."""
    n_experts, n_ff, n_embd = sizes
    out.matrix(f"blk.{layer}.ffn_gate_inp.weight", weights.take(f"{prefix}gate.weight", (n_experts, n_embd)))
    views: dict[str, View]
    if f"{prefix}experts.gate_up_proj" in weights:
        both = weights.take(f"{prefix}experts.gate_up_proj", (n_experts, 2 * n_ff, n_embd))
        starts = range(0, 2 * n_ff * n_experts, 2 * n_ff)
        views = {
            "gate": Stacked([Slice(both, start, n_ff) for start in starts]),
            "up": Stacked([Slice(both, start + n_ff, n_ff) for start in starts]),
            "down": weights.take(f"{prefix}experts.down_proj", (n_experts, n_embd, n_ff)),
        }
    else:
        shapes = {"gate": (n_ff, n_embd), "up": (n_ff, n_embd), "down": (n_embd, n_ff)}
        views = {
            part: Stacked(
                [weights.take(f"{prefix}experts.{i}.{part}_proj.weight", shape) for i in range(n_experts)]
            )
            for part, shape in shapes.items()
        }
    for part, view in views.items():
        out.matrix(f"blk.{layer}.ffn_{part}_exps.weight", view, n_experts)
