"""Phi 3, 3.5 and 4: q, k, v in one tensor, gate and up in another; long contexts by factors (longrope)."""

from __future__ import annotations

import math

import numpy as np

from quant.convert.checkpoint import Checkpoint
from quant.convert.config import Config
from quant.convert.converted import (
    Converted,
    add_frame,
    model_prefix,
    norm,
    read_shape,
    rope_base,
    rope_parameters,
    set_decoder,
)
from quant.convert.views import Computed


def convert(config: Config, weights: Checkpoint, n_tokens: int) -> Converted:
    """Map Phi3ForCausalLM."""
    del n_tokens
    prefix = model_prefix(weights)
    s = read_shape(config, weights, f"{prefix}embed_tokens.weight")
    out = Converted("phi3")
    set_decoder(out, config, s)
    _set_rope(out, config, s.head_dim)
    out.set("attention.sliding_window", "u32", config.integer("sliding_window", 0, minimum=0))  # 0: none
    add_frame(out, weights, config, s, prefix)
    q_width, kv_width = s.n_heads * s.head_dim, s.n_kv_heads * s.head_dim
    for layer in range(s.n_layers):
        ours, theirs = f"blk.{layer}.", f"{prefix}layers.{layer}."
        out.vector(f"{ours}attn_norm.weight", norm(weights, f"{theirs}input_layernorm.weight", s.n_embd))
        out.vector(
            f"{ours}ffn_norm.weight", norm(weights, f"{theirs}post_attention_layernorm.weight", s.n_embd)
        )
        for name, source, shape in (
            ("attn_qkv", "self_attn.qkv_proj", (q_width + 2 * kv_width, s.n_embd)),
            ("attn_output", "self_attn.o_proj", (s.n_embd, q_width)),
            ("ffn_up", "mlp.gate_up_proj", (2 * s.n_ff, s.n_embd)),
            ("ffn_down", "mlp.down_proj", (s.n_embd, s.n_ff)),
        ):
            out.matrix(f"{ours}{name}.weight", weights.take(f"{theirs}{source}.weight", shape))
    return out


def _set_rope(out: Converted, config: Config, head_dim: int) -> None:
    scaling = rope_parameters(config)
    part = scaling.number(
        "partial_rotary_factor", config.number("partial_rotary_factor", 1.0), minimum=0.01, maximum=1
    )
    rope_dim = int(part * head_dim)
    out.set("rope.freq_base", "f32", rope_base(config))
    out.set("rope.dimension_count", "u32", rope_dim)
    context = config.integer("max_position_embeddings")
    original = config.integer("original_max_position_embeddings", context)
    original = scaling.integer("original_max_position_embeddings", original)
    out.set("rope.scaling.original_context_length", "u32", original)
    kind = scaling.string("rope_type", scaling.string("type", "default"))
    if kind == "default":
        return
    if kind not in {"longrope", "su"}:
        scaling.fail("type", f"is {kind[:40]!r}; longrope is converted")
    stretch = context / original
    # arXiv:2402.13753, as the models' own code has it
    factor = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    out.set("rope.scaling.attn_factor", "f32", factor)
    for name in ("long", "short"):
        factors = scaling.numbers(f"{name}_factor")
        if len(factors) != rope_dim // 2:
            scaling.fail(f"{name}_factor", f"has {len(factors)} entries; {rope_dim // 2} are needed")
        view = Computed(np.array(factors, np.float32), "rope_scaling of config.json")
        out.vector(f"rope_factors_{name}.weight", view)
