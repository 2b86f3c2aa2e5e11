"""What a model file says of its shape: every foreign key is read, checked and named here, once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from runtime.errors import ModelFormatError, UnsupportedModelError
from runtime.gguf import ModelFile
from runtime.models import architecture_names

MAX_LAYERS = 1024
MAX_WIDTH = 1 << 20
MAX_HEADS = 4096
MAX_HEAD_DIM = 4096
MAX_CONTEXT_TOKENS = 1 << 24
MAX_ROPE_FACTOR = 1e6


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a model.  Every value has been checked against the others."""

    architecture: str  # "llama", "qwen2", "qwen3"
    n_layers: int
    n_embd: int  # width of the residual stream
    n_heads: int  # query heads
    n_kv_heads: int  # key and value heads; divides n_heads
    head_dim: int
    n_ff: int  # width of the feed-forward layer
    n_vocab: int
    context_length: int  # positions that the model was made for
    rms_eps: float
    rope_freq_base: float
    rope_dim: int  # rotated elements of a head, even
    rope_scale: float  # positions are divided by it (linear scaling); 1: none


def read_config(file: ModelFile) -> ModelConfig:
    """Read the configuration of a model that this version serves.

    Raises UnsupportedModelError for a sound file of a kind that is not served, ModelFormatError naming the key
    whose value is missing or makes no sense.
    """
    arch = file.architecture
    if arch not in architecture_names():
        served = ", ".join(architecture_names())
        raise UnsupportedModelError(
            f"{file.path}: architecture {arch!r} is not served; quantd serves {served}"
        )
    _refuse_unserved(file, arch)
    n_embd = file.integer(f"{arch}.embedding_length", minimum=1, maximum=MAX_WIDTH)
    n_heads, n_kv_heads, head_dim = _read_heads(file, arch, n_embd)
    rope_dim = file.integer(f"{arch}.rope.dimension_count", head_dim, minimum=2, maximum=head_dim)
    if rope_dim % 2 != 0:
        raise _bad(file, f"{arch}.rope.dimension_count", f"is {rope_dim}; it must be even")
    return ModelConfig(
        architecture=arch,
        n_layers=_read_layers(file, arch),
        n_embd=n_embd,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        n_ff=file.integer(f"{arch}.feed_forward_length", minimum=1, maximum=MAX_WIDTH),
        n_vocab=_read_vocab(file, arch),
        context_length=_read_context(file, arch),
        rms_eps=_positive(file, f"{arch}.attention.layer_norm_rms_epsilon", maximum=1.0),
        rope_freq_base=_positive(file, f"{arch}.rope.freq_base", 10000.0, maximum=1e12),
        rope_dim=rope_dim,
        rope_scale=_read_rope_scale(file, arch),
    )


def _refuse_unserved(file: ModelFile, arch: str) -> None:
    """Refuse what would load and then answer wrongly."""
    experts = file.integer(f"{arch}.expert_count", 0, minimum=0)
    if experts > 0:
        raise UnsupportedModelError(
            f"{file.path}: {arch}.expert_count is {experts}; mixture-of-experts models are not served"
        )
    if not file.boolean(f"{arch}.attention.causal", True):
        raise UnsupportedModelError(
            f"{file.path}: {arch}.attention.causal is false; this model does not generate"
        )


def _read_layers(file: ModelFile, arch: str) -> int:
    key = f"{arch}.block_count"
    n_layers = file.integer(key, minimum=1, maximum=MAX_LAYERS)
    for name in file.tensors:
        parts = name.split(".", 2)
        if parts[0] == "blk" and len(parts) == 3 and parts[1].isdecimal() and int(parts[1][:9]) >= n_layers:
            raise _bad(file, key, f"is {n_layers}, but there is a tensor {name}")
    return n_layers


def _read_heads(file: ModelFile, arch: str, n_embd: int) -> tuple[int, int, int]:
    """Return (n_heads, n_kv_heads, head_dim)."""
    heads_key, kv_key = f"{arch}.attention.head_count", f"{arch}.attention.head_count_kv"
    length_key = f"{arch}.attention.key_length"
    n_heads = file.integer(heads_key, minimum=1, maximum=MAX_HEADS)
    n_kv_heads = file.integer(kv_key, n_heads, minimum=1, maximum=n_heads)
    if n_heads % n_kv_heads != 0:
        raise _bad(file, kv_key, f"is {n_kv_heads}; it must divide {heads_key}, which is {n_heads}")
    if length_key in file:
        head_dim = file.integer(length_key, minimum=1, maximum=MAX_HEAD_DIM)
    elif n_embd % n_heads == 0 and n_embd // n_heads <= MAX_HEAD_DIM:
        head_dim = n_embd // n_heads
    else:
        raise _bad(
            file, heads_key, f"is {n_heads}; it must divide {arch}.embedding_length, which is {n_embd}"
        )
    value_length = file.integer(f"{arch}.attention.value_length", head_dim, minimum=1, maximum=MAX_HEAD_DIM)
    if value_length != head_dim:
        raise UnsupportedModelError(
            f"{file.path}: {arch}.attention.value_length is {value_length} and key_length is {head_dim}; "
            "models whose keys and values differ in length are not served"
        )
    return n_heads, n_kv_heads, head_dim


def _read_vocab(file: ModelFile, arch: str) -> int:
    """Return the rows of the embedding; every key that also says it must agree."""
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        what = "is missing" if table is None else f"has shape {table.shape}; it must be a matrix"
        raise ModelFormatError(
            "BAD_TENSORS", "token_embd.weight", 0, f"{file.path}: tensor token_embd.weight {what}"
        )
    n_vocab = table.shape[1]
    key = f"{arch}.vocab_size"
    declared = file.integer(key, n_vocab, minimum=1)
    if declared != n_vocab:
        raise _bad(file, key, f"is {declared}, but token_embd.weight has {n_vocab} rows")
    tokens_key = "tokenizer.ggml.tokens"
    if tokens_key in file and file.length(tokens_key) != n_vocab:
        raise _bad(
            file,
            tokens_key,
            f"has {file.length(tokens_key)} entries, but token_embd.weight has {n_vocab} rows",
        )
    return n_vocab


def _read_context(file: ModelFile, arch: str) -> int:
    """Return the context; a sliding window caps it, because within one window attention is plain attention."""
    context = file.integer(f"{arch}.context_length", minimum=1, maximum=MAX_CONTEXT_TOKENS)
    window_key = f"{arch}.attention.sliding_window"
    if window_key in file:
        context = min(context, file.integer(window_key, minimum=1, maximum=MAX_CONTEXT_TOKENS))
    return context


def _read_rope_scale(file: ModelFile, arch: str) -> float:
    """Return the divisor of positions.  Llama 3's scaling needs none: it lies in rope_freqs.weight."""
    type_key, factor_key = f"{arch}.rope.scaling.type", f"{arch}.rope.scaling.factor"
    kind = file.string(type_key, "none" if factor_key not in file else "linear")
    if kind == "none":
        return _positive(file, f"{arch}.rope.scale_linear", 1.0, maximum=MAX_ROPE_FACTOR)
    if kind == "linear":
        return _positive(file, factor_key, 1.0, maximum=MAX_ROPE_FACTOR)
    raise UnsupportedModelError(
        f'{file.path}: {type_key} is {kind!r}; quantd serves "none", "linear" and Llama 3\'s rope_freqs.weight'
    )


def _positive(file: ModelFile, key: str, default: float | None = None, *, maximum: float) -> float:
    value = file.number(key, default, maximum=maximum)
    if not value > 0 or not math.isfinite(value):
        raise _bad(file, key, f"is {value}; it must be above 0")
    return value


def _bad(file: ModelFile, key: str, what: str) -> ModelFormatError:
    return ModelFormatError("OUT_OF_RANGE", key, 0, f"{file.path}: metadata key {key} {what}")
