"""Gemma 2 and 3, text: norms are stored less one, the embedding is the output matrix, windows in most layers."""

from __future__ import annotations

from quant.convert.checkpoint import Checkpoint
from quant.convert.config import Config
from quant.convert.converted import (
    Converted,
    DecoderShape,
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
from quant.convert.views import Slice

_SIZE_27B = {"gemma2": 46, "gemma3": 62}  # layers of the size whose scores are scaled by n_embd / n_heads
_LOCAL_BASE = 10000.0
# What Gemma 3's own code means where config.json does not say.
_GEMMA3 = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_local_base_freq": _LOCAL_BASE,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def convert_gemma2(config: Config, weights: Checkpoint, n_tokens: int) -> Converted:
    """Map Gemma2ForCausalLM."""
    out = Converted("gemma2")
    config = config.with_defaults(
        {"head_dim": 256, "tie_word_embeddings": True, "query_pre_attn_scalar": 256}
    )
    s = _convert(out, config, weights, n_tokens, head_norms=False)
    check_layer_types(config, s.n_layers, 2)
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        out.set(key, "f32", config.number(key, minimum=1e-3, maximum=1e6))
    return out


def convert_gemma3(config: Config, weights: Checkpoint, n_tokens: int) -> Converted:
    """Map Gemma3ForCausalLM, and the text half of Gemma3ForConditionalGeneration."""
    if "text_config" in config:
        config = config.part("text_config")
        for part in ("vision_tower.", "multi_modal_projector."):
            weights.ignore(part)
            weights.ignore(f"model.{part}")
    out = Converted("gemma3")
    config = config.with_defaults(_GEMMA3)
    s = _convert(out, config, weights, n_tokens, head_norms=True)
    check_layer_types(config, s.n_layers, config.integer("sliding_window_pattern", 6))
    if config.integer("sliding_window_pattern", 6) != 6:
        config.fail("sliding_window_pattern", "must be 6: readers of GGUF's gemma3 take it for granted")
    local = config.part("rope_parameters").part("sliding_attention").number("rope_theta", 0.0)
    local = local or config.number("rope_local_base_freq")
    if local != _LOCAL_BASE:
        out.set("rope.freq_base_swa", "f32", local)
    if "final_logit_softcapping" in config:
        out.set("final_logit_softcapping", "f32", config.number("final_logit_softcapping", minimum=1e-3))
    return out


def _convert(
    out: Converted, config: Config, weights: Checkpoint, n_tokens: int, *, head_norms: bool
) -> DecoderShape:
    prefix = model_prefix(weights, ("model.", "language_model.model.", "model.language_model.", ""))
    s = read_shape(config, weights, f"{prefix}embed_tokens.weight")
    set_decoder(out, config, s)
    set_rope(out, config, s.head_dim)
    out.set("attention.sliding_window", "u32", config.integer("sliding_window"))
    width = s.n_embd // s.n_heads if s.n_layers == _SIZE_27B[out.architecture] else s.head_dim
    if config.number("query_pre_attn_scalar") != width:
        config.fail("query_pre_attn_scalar", f"must be {width}: GGUF cannot say another scale of the scores")
    for name in ("lm_head.weight", "language_model.lm_head.weight"):
        weights.ignore(name)
    add_frame(out, weights, config.with_defaults({"tie_word_embeddings": True}), s, prefix, plus_one=True)
    _drop_unused_rows(out, s, n_tokens)
    for layer in range(s.n_layers):
        theirs = f"{prefix}layers.{layer}."
        for ours, name in _NORMS.items():
            view = norm(weights, f"{theirs}{name}.weight", s.n_embd, plus_one=True)
            out.vector(f"blk.{layer}.{ours}.weight", view)
        add_attention(out, weights, layer, s, theirs, permuted=False)
        for part in ("q", "k") if head_norms else ():
            view = norm(weights, f"{theirs}self_attn.{part}_norm.weight", s.head_dim, plus_one=True)
            out.vector(f"blk.{layer}.attn_{part}_norm.weight", view)
        add_feed_forward(out, weights, layer, s.n_embd, s.n_ff, theirs)
    return s


def _drop_unused_rows(out: Converted, s: DecoderShape, n_tokens: int) -> None:
    """Gemma 3 has rows behind its last token that no text can reach (they belong to images)."""
    if s.n_vocab <= n_tokens:
        return
    table = out.tensors["token_embd.weight"]
    out.matrix("token_embd.weight", Slice(table.view, 0, n_tokens))
    out.metadata = [entry for entry in out.metadata if not entry.key.endswith(".vocab_size")]
    out.set("vocab_size", "u32", n_tokens)
