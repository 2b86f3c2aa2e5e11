"""What a family gives back, and the words that families share: metadata of a decoder, its rotation, its frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quant.convert.checkpoint import Checkpoint
from quant.convert.config import Config
from quant.convert.views import Computed, Permuted, PermutedVector, Plus, View, Widened
from quant.gguf_header import KeyValue
from quant.policy import TensorShape, is_quantized
from quant.recipes import F32
from runtime.errors import UnsupportedModelError

MAX_LAYERS = 1024


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A tensor of the GGUF model: its shape (row length first) and where its rows come from."""

    name: str
    shape: tuple[int, ...]
    view: View


@dataclass
class Converted:
    """The model in GGUF's terms, without its tokenizer."""

    architecture: str
    metadata: list[KeyValue] = field(default_factory=list)
    tensors: dict[str, OutputTensor] = field(default_factory=dict)

    def set(self, key: str, kind: str, value: Any) -> None:
        """Set `<architecture>.key`."""
        self.metadata.append(KeyValue(f"{self.architecture}.{key}", kind, value))

    def matrix(self, name: str, view: View, n_slices: int = 1) -> None:
        """Add a matrix; `n_slices` above one: that many below each other, as experts are.

        What the recipes keep as it is becomes F32, as readers of GGUF expect of norms and routers.
        """
        rows = view.n_rows // n_slices
        shape = (view.n_cols, rows) if n_slices == 1 else (view.n_cols, rows, n_slices)
        keep = not is_quantized(TensorShape(name, view.type_id, shape)) and view.type_id != F32
        self.tensors[name] = OutputTensor(name, shape, Widened(view) if keep else view)

    def vector(self, name: str, view: View) -> None:
        """Add a vector, in F32."""
        self.tensors[name] = OutputTensor(
            name, (view.n_cols,), view if view.type_id == F32 else Widened(view)
        )


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The sizes that config.json gives."""

    n_layers: int
    n_embd: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_ff: int
    n_vocab: int


def read_shape(config: Config, weights: Checkpoint, embedding: str) -> DecoderShape:
    """Read the sizes; the number of rows of the embedding counts where config.json says another."""
    n_embd = config.integer("hidden_size", maximum=1 << 20)
    n_heads = config.integer("num_attention_heads", maximum=4096)
    n_kv_heads = config.integer("num_key_value_heads", n_heads, maximum=n_heads)
    if n_heads % n_kv_heads:
        config.fail(
            "num_key_value_heads", f"is {n_kv_heads}; it must divide num_attention_heads, which is {n_heads}"
        )
    if "head_dim" not in config and n_embd % n_heads:
        config.fail("num_attention_heads", f"is {n_heads}; it must divide hidden_size, which is {n_embd}")
    rows = weights.shape_of(embedding)
    return DecoderShape(
        n_layers=config.integer("num_hidden_layers", maximum=MAX_LAYERS),
        n_embd=n_embd,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=config.integer("head_dim", n_embd // n_heads, maximum=4096),
        n_ff=config.integer("intermediate_size", maximum=1 << 20),
        n_vocab=rows[0] if len(rows) == 2 else config.integer("vocab_size"),
    )


def set_decoder(out: Converted, config: Config, s: DecoderShape) -> None:
    """Add the metadata that every decoder with RMS norms and rotation has."""
    out.set("block_count", "u32", s.n_layers)
    out.set("context_length", "u32", config.integer("max_position_embeddings"))
    out.set("embedding_length", "u32", s.n_embd)
    out.set("feed_forward_length", "u32", s.n_ff)
    out.set("attention.head_count", "u32", s.n_heads)
    out.set("attention.head_count_kv", "u32", s.n_kv_heads)
    out.set("attention.layer_norm_rms_epsilon", "f32", config.number("rms_norm_eps", minimum=0, maximum=1))
    if "head_dim" in config:
        out.set("attention.key_length", "u32", s.head_dim)
        out.set("attention.value_length", "u32", s.head_dim)
    out.set("vocab_size", "u32", s.n_vocab)


def rope_parameters(config: Config) -> Config:
    """Return the scaling's parameters: rope_scaling, or rope_parameters of newer files."""
    found = config.part("rope_parameters" if "rope_parameters" in config else "rope_scaling")
    return found.part("full_attention") if "full_attention" in found else found


def rope_base(config: Config, default: float | None = 10000.0) -> float:
    """Return the base of the rotation's frequencies."""
    scaling = rope_parameters(config)
    return (scaling if "rope_theta" in scaling else config).number(
        "rope_theta", default, minimum=1, maximum=1e12
    )


def set_rope(out: Converted, config: Config, rope_dim: int, *, default_base: float | None = 10000.0) -> None:
    """Add base, rotated length and scaling; Llama 3's scaling becomes the tensor rope_freqs.weight."""
    scaling = rope_parameters(config)
    base = rope_base(config, default_base)
    out.set("rope.freq_base", "f32", base)
    out.set("rope.dimension_count", "u32", rope_dim)
    kind = scaling.string("rope_type", scaling.string("type", "default"))
    if kind == "default":
        return
    if kind == "llama3":
        factors = _llama3_factors(scaling, base, rope_dim)
        out.vector("rope_freqs.weight", Computed(factors, "rope_scaling of config.json"))
    elif kind in {"linear", "yarn"}:
        out.set("rope.scaling.type", "string", kind)
        out.set("rope.scaling.factor", "f32", scaling.number("factor", minimum=1e-3, maximum=1e6))
        if kind == "yarn":
            original = config.integer("max_position_embeddings")
            original = scaling.integer("original_max_position_embeddings", original)
            out.set("rope.scaling.original_context_length", "u32", original)
    else:
        raise UnsupportedModelError(
            f"{config.path}: rope scaling {kind!r} is not converted; quantd converts default, linear, llama3 and yarn"
        )


def _llama3_factors(
    scaling: Config, base: float, rope_dim: int
) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Divisors (rope_dim / 2,) of the frequencies: none for short waves, `factor` for long ones, smooth between.

    Source: Llama 3.1's published model code, apply_scaling.
    """
    factor = scaling.number("factor", 8.0, minimum=1, maximum=1e6)
    low = scaling.number("low_freq_factor", 1.0, minimum=1e-3)
    high = scaling.number("high_freq_factor", 4.0, minimum=1e-3)
    original = scaling.integer("original_max_position_embeddings", 8192)
    if not low < high:
        scaling.fail("high_freq_factor", f"is {high}; it must be above low_freq_factor, which is {low}")
    factors = []
    for i in range(rope_dim // 2):
        wavelength = 2 * math.pi * base ** (2 * i / rope_dim)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def norm(weights: Checkpoint, name: str, n: int, *, plus_one: bool = False) -> View:
    """Return a norm's weights (n,) in F32."""
    view = weights.vector(name, n)
    return Plus(view, 1.0) if plus_one else view


def add_frame(
    out: Converted,
    weights: Checkpoint,
    config: Config,
    s: DecoderShape,
    prefix: str,
    *,
    plus_one: bool = False,
) -> None:
    """Add the embedding, the last norm, and the output matrix where it is not the embedding."""
    out.matrix("token_embd.weight", weights.take(f"{prefix}embed_tokens.weight", (s.n_vocab, s.n_embd)))
    out.vector("output_norm.weight", norm(weights, f"{prefix}norm.weight", s.n_embd, plus_one=plus_one))
    tied = config.boolean("tie_word_embeddings", "lm_head.weight" not in weights)
    if tied:
        weights.ignore("lm_head.weight")
    else:
        out.matrix("output.weight", weights.take("lm_head.weight", (s.n_vocab, s.n_embd)))


def add_attention(
    out: Converted, weights: Checkpoint, layer: int, s: DecoderShape, prefix: str, *, permuted: bool
) -> None:
    """Add q, k, v and output projection of a layer with the biases that are there."""
    for ours, theirs, heads, n_in in (
        ("attn_q", "q_proj", s.n_heads, s.n_embd),
        ("attn_k", "k_proj", s.n_kv_heads, s.n_embd),
        ("attn_v", "v_proj", s.n_kv_heads, s.n_embd),
        ("attn_output", "o_proj", 0, s.n_heads * s.head_dim),
    ):
        name, n_out = f"{prefix}self_attn.{theirs}", heads * s.head_dim or s.n_embd
        turn = permuted and theirs in {"q_proj", "k_proj"}
        matrix: View = weights.take(f"{name}.weight", (n_out, n_in))
        out.matrix(f"blk.{layer}.{ours}.weight", Permuted(matrix, heads) if turn else matrix)
        if f"{name}.bias" in weights:
            bias = weights.vector(f"{name}.bias", n_out)
            out.vector(f"blk.{layer}.{ours}.bias", PermutedVector(bias, heads) if turn else bias)


def add_feed_forward(  # noqa: PLR0917 - the words of a sentence
    out: Converted, weights: Checkpoint, layer: int, n_embd: int, n_ff: int, prefix: str
) -> None:
    """Add gate, up and down of a layer with the biases that are there."""
    for part, shape in (("gate", (n_ff, n_embd)), ("up", (n_ff, n_embd)), ("down", (n_embd, n_ff))):
        name = f"{prefix}mlp.{part}_proj"
        out.matrix(f"blk.{layer}.ffn_{part}.weight", weights.take(f"{name}.weight", shape))
        if f"{name}.bias" in weights:
            out.vector(f"blk.{layer}.ffn_{part}.bias", weights.vector(f"{name}.bias", shape[0]))


def check_layer_types(config: Config, n_layers: int, full_every: int) -> None:
    """Refuse a mix of window and full layers other than the one that readers of GGUF take for granted."""
    kinds = config.get("layer_types")
    wanted = ["full_attention" if (i + 1) % full_every == 0 else "sliding_attention" for i in range(n_layers)]
    if kinds is not None and kinds != wanted:
        config.fail(
            "layer_types", f"must have full attention in every {full_every}th layer and windows in the others"
        )


def model_prefix(weights: Checkpoint, candidates: Sequence[str] = ("model.", "")) -> str:
    """Return what stands before embed_tokens.weight."""
    return next((one for one in candidates if f"{one}embed_tokens.weight" in weights), candidates[0])
