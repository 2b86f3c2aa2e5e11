"""BERT encoders such as MiniLM and BGE: learned positions, biases everywhere, layer norms behind each part."""

from __future__ import annotations

from quant.convert.checkpoint import Checkpoint
from quant.convert.config import Config
from quant.convert.converted import MAX_LAYERS, Converted
from quant.convert.pooling import set_pooling
from quant.gguf_header import KeyValue

_GELUS = frozenset({"gelu"})


def convert(config: Config, weights: Checkpoint, n_tokens: int) -> Converted:
    """Map BertModel, and the encoder of BertForMaskedLM."""
    del n_tokens
    if config.string("hidden_act", "gelu") not in _GELUS:
        config.fail("hidden_act", "must be gelu")
    if config.string("position_embedding_type", "absolute") != "absolute":
        config.fail("position_embedding_type", "must be absolute")
    prefix = "bert." if "bert.embeddings.word_embeddings.weight" in weights else ""
    n_embd = config.integer("hidden_size", maximum=1 << 20)
    n_ff = config.integer("intermediate_size", maximum=1 << 20)
    n_layers = config.integer("num_hidden_layers", maximum=MAX_LAYERS)
    n_vocab = config.integer("vocab_size")
    n_types, context = config.integer("type_vocab_size", 2), config.integer("max_position_embeddings")
    out = Converted("bert")
    out.set("block_count", "u32", n_layers)
    out.set("context_length", "u32", context)
    out.set("embedding_length", "u32", n_embd)
    out.set("feed_forward_length", "u32", n_ff)
    out.set("attention.head_count", "u32", config.integer("num_attention_heads", maximum=4096))
    out.set(
        "attention.layer_norm_epsilon", "f32", config.number("layer_norm_eps", 1e-12, minimum=0, maximum=1)
    )
    out.set("attention.causal", "bool", value=False)
    out.set("vocab_size", "u32", n_vocab)
    out.metadata.append(KeyValue("tokenizer.ggml.token_type_count", "u32", n_types))
    set_pooling(out, weights.folder)
    at = f"{prefix}embeddings."
    out.matrix("token_embd.weight", weights.take(f"{at}word_embeddings.weight", (n_vocab, n_embd)))
    out.matrix("position_embd.weight", weights.take(f"{at}position_embeddings.weight", (context, n_embd)))
    out.matrix("token_types.weight", weights.take(f"{at}token_type_embeddings.weight", (n_types, n_embd)))
    _add_norm(out, weights, "token_embd_norm", f"{at}LayerNorm", n_embd)
    for layer in range(n_layers):
        at = f"{prefix}encoder.layer.{layer}."
        for name, source, shape in (
            ("attn_q", "attention.self.query", (n_embd, n_embd)),
            ("attn_k", "attention.self.key", (n_embd, n_embd)),
            ("attn_v", "attention.self.value", (n_embd, n_embd)),
            ("attn_output", "attention.output.dense", (n_embd, n_embd)),
            ("ffn_up", "intermediate.dense", (n_ff, n_embd)),
            ("ffn_down", "output.dense", (n_embd, n_ff)),
        ):
            out.matrix(f"blk.{layer}.{name}.weight", weights.take(f"{at}{source}.weight", shape))
            out.vector(f"blk.{layer}.{name}.bias", weights.vector(f"{at}{source}.bias", shape[0]))
        _add_norm(out, weights, f"blk.{layer}.attn_output_norm", f"{at}attention.output.LayerNorm", n_embd)
        _add_norm(out, weights, f"blk.{layer}.layer_output_norm", f"{at}output.LayerNorm", n_embd)
    # The heads of other tasks: an embedding is made before them.
    for unused in (f"{prefix}pooler.", "cls."):
        weights.ignore(unused)
    return out


def _add_norm(out: Converted, weights: Checkpoint, ours: str, theirs: str, n: int) -> None:
    """Add a layer norm; older files call its parts gamma and beta."""
    old = f"{theirs}.gamma" in weights
    out.vector(f"{ours}.weight", weights.vector(f"{theirs}.{'gamma' if old else 'weight'}", n))
    out.vector(f"{ours}.bias", weights.vector(f"{theirs}.{'beta' if old else 'bias'}", n))
