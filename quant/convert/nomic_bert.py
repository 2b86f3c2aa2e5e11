"""Nomic's text encoders: a BERT that rotates, with gated feed-forward layers and no biases."""

from __future__ import annotations

from quant.convert.checkpoint import Checkpoint
from quant.convert.config import Config
from quant.convert.converted import MAX_LAYERS, Converted
from quant.convert.pooling import set_pooling
from quant.gguf_header import KeyValue

_TRAINED_TOKENS = 2048  # of nomic-embed-text v1 and v1.5, whose config.json says 8192


def convert(config: Config, weights: Checkpoint, n_tokens: int) -> Converted:
    """Map NomicBertModel without experts."""
    del n_tokens
    for key, wanted in (
        ("prenorm", False),
        ("causal", False),
        ("qkv_proj_bias", False),
        ("rotary_emb_interleaved", False),
    ):
        if config.boolean(key, wanted) is not wanted:
            config.fail(key, f"must be {str(wanted).lower()}")
    if config.get("moe_every_n_layers"):
        config.fail("moe_every_n_layers", "must be 0: mixtures of this family are not converted")
    if (
        config.string("activation_function", "swiglu") != "swiglu"
        or config.number("rotary_emb_fraction", 1.0) != 1
    ):
        config.fail("activation_function", "must be swiglu, and rotary_emb_fraction 1")
    n_embd, n_ff = config.integer("n_embd", maximum=1 << 20), config.integer("n_inner", maximum=1 << 20)
    n_layers, n_vocab = config.integer("n_layer", maximum=MAX_LAYERS), config.integer("vocab_size")
    n_types = config.integer("type_vocab_size", 2)
    out = Converted("nomic-bert")
    out.set("block_count", "u32", n_layers)
    out.set("context_length", "u32", min(config.integer("n_positions"), _TRAINED_TOKENS))
    out.set("embedding_length", "u32", n_embd)
    out.set("feed_forward_length", "u32", n_ff)
    out.set("attention.head_count", "u32", config.integer("n_head", maximum=4096))
    out.set(
        "attention.layer_norm_epsilon",
        "f32",
        config.number("layer_norm_epsilon", 1e-12, minimum=0, maximum=1),
    )
    out.set("attention.causal", "bool", value=False)
    out.set("rope.freq_base", "f32", config.number("rotary_emb_base", 10000.0, minimum=1))
    out.set("vocab_size", "u32", n_vocab)
    out.metadata.append(KeyValue("tokenizer.ggml.token_type_count", "u32", n_types))
    set_pooling(out, weights.folder)
    out.matrix("token_embd.weight", weights.take("embeddings.word_embeddings.weight", (n_vocab, n_embd)))
    out.matrix(
        "token_types.weight", weights.take("embeddings.token_type_embeddings.weight", (n_types, n_embd))
    )
    _add_norm(out, weights, "token_embd_norm", "emb_ln", n_embd)
    for layer in range(n_layers):
        at = f"encoder.layers.{layer}."
        for name, source, shape in (
            ("attn_qkv", "attn.Wqkv", (3 * n_embd, n_embd)),
            ("attn_output", "attn.out_proj", (n_embd, n_embd)),
            ("ffn_up", "mlp.fc11", (n_ff, n_embd)),
            ("ffn_gate", "mlp.fc12", (n_ff, n_embd)),
            ("ffn_down", "mlp.fc2", (n_embd, n_ff)),
        ):
            out.matrix(f"blk.{layer}.{name}.weight", weights.take(f"{at}{source}.weight", shape))
        _add_norm(out, weights, f"blk.{layer}.attn_output_norm", f"{at}norm1", n_embd)
        _add_norm(out, weights, f"blk.{layer}.layer_output_norm", f"{at}norm2", n_embd)
    return out


def _add_norm(out: Converted, weights: Checkpoint, ours: str, theirs: str, n: int) -> None:
    out.vector(f"{ours}.weight", weights.vector(f"{theirs}.weight", n))
    out.vector(f"{ours}.bias", weights.vector(f"{theirs}.bias", n))
