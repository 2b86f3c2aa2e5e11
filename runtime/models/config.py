"""What a model file says of its shape: every foreign key is read, checked and named here, once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from runtime.errors import ModelFormatError, UnsupportedModelError
from runtime.gguf import ModelFile
from runtime.models import Architecture, architecture, architecture_names

MAX_LAYERS = 1024
MAX_WIDTH = 1 << 20
MAX_HEADS = 4096
MAX_HEAD_DIM = 4096
MAX_CONTEXT_TOKENS = 1 << 24
MAX_ROPE_FACTOR = 1e6
MAX_EXPERTS = 1024
MAX_SCALE = 1e6

_POOLINGS = {1: "mean", 2: "cls", 3: "last"}  # as GGUF numbers them


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How the rotation is stretched beyond the context that a model was first trained on."""

    kind: str = "none"  # "none", "linear", "yarn" (arXiv:2309.00071), "longrope" (arXiv:2402.13753)
    factor: float = 1.0  # positions are divided by it (linear), or those of slow frequencies are (yarn)
    original_context: int = 0  # tokens of that first context
    magnitude: float = 1.0  # q and k are multiplied by it, beside what yarn itself does
    beta_fast: float = 32.0  # yarn: turns within the original context above which a frequency stays as it is,
    beta_slow: float = 1.0  # and below which it is divided by the factor
    extrapolation: float = 1.0  # yarn: how much of the above is applied
    log_multiplier: float = 0.0  # yarn: of the logarithm in its magnitude; 0: one


@dataclass(frozen=True, slots=True)
class Experts:
    """Feed-forward layers of which each token uses a few."""

    n_experts: int
    n_used: int  # experts of one token
    n_ff: int  # width of one expert


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a model.  Every value has been checked against the others."""

    architecture: str  # one of runtime.models.architecture_names()
    n_layers: int
    n_embd: int  # width of the residual stream
    n_heads: int  # query heads
    n_kv_heads: int  # key and value heads; divides n_heads
    head_dim: int
    n_ff: int  # width of the feed-forward layer
    n_vocab: int
    context_length: int  # positions that the model was made for
    norm_eps: float
    rope_freq_base: float
    rope_dim: int  # rotated elements of a head, even
    rope_scaling: RopeScaling = RopeScaling()
    rope_freq_base_window: float = 10000.0  # of layers with a sliding window
    windows: tuple[int, ...] = ()  # of each layer: newest positions that it sees, 0 for all; (): all see all
    experts: Experts | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    attention_scale: float | None = None  # of the scores; None: the architecture's own
    attention_softcap: float = 0.0  # 0: none
    logit_scale: float = 1.0
    logit_softcap: float = 0.0  # 0: none
    pooling: str | None = None  # of an encoder: "mean", "cls" or "last"
    n_token_types: int = 0  # of an encoder

    def window(self, layer: int) -> int:
        """Return how many of the newest positions a layer sees, 0 for all."""
        return self.windows[layer] if self.windows else 0

    @property
    def generates(self) -> bool:
        """False for an encoder, which gives embeddings."""
        return self.pooling is None


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
    traits = architecture(arch)
    _refuse_unserved(file, arch, traits)
    n_embd = file.integer(f"{arch}.embedding_length", minimum=1, maximum=MAX_WIDTH)
    n_heads, n_kv_heads, head_dim = _read_heads(file, arch, n_embd)
    rope_dim = file.integer(f"{arch}.rope.dimension_count", head_dim, minimum=2, maximum=head_dim)
    if rope_dim % 2 != 0:
        raise _bad(file, f"{arch}.rope.dimension_count", f"is {rope_dim}; it must be even")
    n_layers = _read_layers(file, arch)
    freq_base = _positive(file, f"{arch}.rope.freq_base", 10000.0, maximum=1e12)
    context = file.integer(f"{arch}.context_length", minimum=1, maximum=MAX_CONTEXT_TOKENS)
    windows = _read_windows(file, arch, traits, n_layers)
    if traits.windows is None:
        # Within one window attention is plain attention.
        context = min(context, *(window for window in windows if window), context)
        windows = ()
    eps_key = "layer_norm_epsilon" if traits.encoder else "layer_norm_rms_epsilon"
    return ModelConfig(
        architecture=arch,
        n_layers=n_layers,
        n_embd=n_embd,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        n_ff=file.integer(f"{arch}.feed_forward_length", minimum=1, maximum=MAX_WIDTH),
        n_vocab=_read_vocab(file, arch),
        context_length=context,
        norm_eps=_positive(file, f"{arch}.attention.{eps_key}", maximum=1.0),
        rope_freq_base=freq_base,
        rope_dim=rope_dim,
        rope_scaling=_read_rope_scaling(file, arch, context),
        rope_freq_base_window=_positive(
            file, f"{arch}.rope.freq_base_swa", 10000.0 if arch == "gemma3" else freq_base, maximum=1e12
        ),
        windows=windows,
        experts=_read_experts(file, arch, traits),
        embedding_scale=_positive(file, f"{arch}.embedding_scale", 1.0, maximum=MAX_SCALE),
        residual_scale=_positive(file, f"{arch}.residual_scale", 1.0, maximum=MAX_SCALE),
        attention_scale=_optional_positive(file, f"{arch}.attention.scale"),
        attention_softcap=_optional_positive(file, f"{arch}.attn_logit_softcapping") or 0.0,
        logit_scale=_positive(file, f"{arch}.logit_scale", 1.0, maximum=MAX_SCALE),
        logit_softcap=_optional_positive(file, f"{arch}.final_logit_softcapping") or 0.0,
        pooling=_read_pooling(file, arch) if traits.encoder else None,
        n_token_types=_read_token_types(file) if traits.encoder else 0,
    )


def _refuse_unserved(file: ModelFile, arch: str, traits: Architecture) -> None:
    """Refuse what would load and then answer wrongly."""
    experts = file.integer(f"{arch}.expert_count", 0, minimum=0)
    if experts > 0 and traits.experts is False:
        raise UnsupportedModelError(
            f"{file.path}: {arch}.expert_count is {experts}; {arch} is not served as a mixture of experts"
        )
    key = f"{arch}.attention.causal"
    if not traits.encoder and not file.boolean(key, True):
        raise UnsupportedModelError(f"{file.path}: {key} is false; this model does not generate")
    if traits.encoder and file.boolean(key, False):
        raise UnsupportedModelError(f"{file.path}: {key} is true; quantd serves {arch} with false only")


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


def _read_windows(file: ModelFile, arch: str, traits: Architecture, n_layers: int) -> tuple[int, ...]:
    """Return each layer's sliding window, 0 where a layer sees all; () where no layer has one."""
    key = f"{arch}.attention.sliding_window"
    if key not in file and arch != "gemma2":
        return ()
    # 4096 is what gemma2 means when it does not say
    least = 0 if arch == "phi3" else 1  # Phi 3's converter writes 0 for none
    window = file.integer(key, 4096, minimum=least, maximum=MAX_CONTEXT_TOKENS)
    if window == 0:
        return ()
    every = traits.windows or 0
    pattern = f"{arch}.attention.sliding_window_pattern"
    if (file.kind(pattern) or "").startswith("array"):
        n_flags = file.length(pattern)
        flags = file.get(pattern) if n_flags == n_layers else None
        if not isinstance(flags, list) or not all(flag in (0, 1) for flag in flags):
            raise _bad(
                file, pattern, f"has {n_flags} entries; it must be a flag for each of {n_layers} layers"
            )
        return tuple(window if flag else 0 for flag in flags)
    if traits.windows:
        every = file.integer(pattern, every, minimum=1, maximum=MAX_LAYERS)
    return tuple(0 if every and (layer + 1) % every == 0 else window for layer in range(n_layers))


def _read_rope_scaling(file: ModelFile, arch: str, context: int) -> RopeScaling:
    """Return the scaling.  Llama 3's needs none: it lies in rope_freqs.weight."""
    prefix = f"{arch}.rope.scaling"
    type_key, factor_key, original_key = (
        f"{prefix}.type",
        f"{prefix}.factor",
        f"{prefix}.original_context_length",
    )
    kind = file.string(type_key, "none" if factor_key not in file else "linear")
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise UnsupportedModelError(
            f'{file.path}: {type_key} is {kind!r}; quantd serves "none", "linear", "yarn", "longrope" '
            "and Llama 3's rope_freqs.weight"
        )
    # A model without a factor is scaled by none; what its factor tensors do is the graph's.
    factor = 1.0
    if kind == "none":
        factor = _positive(file, f"{arch}.rope.scale_linear", 1.0, maximum=MAX_ROPE_FACTOR)
    elif kind != "longrope":
        factor = _positive(file, factor_key, 1.0, maximum=MAX_ROPE_FACTOR)
    if kind == "yarn" and factor < 1:
        raise _bad(file, factor_key, f"is {factor}; yarn needs at least 1")
    if kind == "yarn" and not file.number(f"{arch}.rope.freq_base", 10000.0) > 1:
        raise _bad(file, f"{arch}.rope.freq_base", "must be above 1 for yarn")
    return RopeScaling(
        kind="linear" if kind == "none" and factor != 1 else kind,
        factor=factor,
        original_context=file.integer(original_key, context, minimum=1, maximum=MAX_CONTEXT_TOKENS),
        magnitude=_positive(file, f"{prefix}.attn_factor", 1.0, maximum=MAX_SCALE),
        beta_fast=_positive(file, f"{prefix}.yarn_beta_fast", 32.0, maximum=MAX_ROPE_FACTOR),
        beta_slow=_positive(file, f"{prefix}.yarn_beta_slow", 1.0, maximum=MAX_ROPE_FACTOR),
        extrapolation=_positive(file, f"{prefix}.yarn_ext_factor", 1.0, maximum=1.0),
        log_multiplier=file.number(f"{prefix}.yarn_log_multiplier", 0.0, minimum=0.0, maximum=MAX_SCALE),
    )


def _read_experts(file: ModelFile, arch: str, traits: Architecture) -> Experts | None:
    count_key, used_key = f"{arch}.expert_count", f"{arch}.expert_used_count"
    if traits.experts is False or (traits.experts is None and file.integer(count_key, 0, minimum=0) == 0):
        return None
    n_experts = file.integer(count_key, minimum=1, maximum=MAX_EXPERTS)
    return Experts(
        n_experts=n_experts,
        n_used=file.integer(used_key, minimum=1, maximum=n_experts),
        n_ff=file.integer(
            f"{arch}.expert_feed_forward_length",
            file.integer(f"{arch}.feed_forward_length", minimum=1, maximum=MAX_WIDTH),
            minimum=1,
            maximum=MAX_WIDTH,
        ),
    )


def _read_pooling(file: ModelFile, arch: str) -> str:
    """Return how an encoder's rows become one vector; the mean where the file does not say."""
    key = f"{arch}.pooling_type"
    number = file.integer(key, 1, minimum=0)
    if number not in _POOLINGS:
        served = ", ".join(f"{i} ({name})" for i, name in _POOLINGS.items())
        raise UnsupportedModelError(f"{file.path}: {key} is {number}; quantd serves {served}")
    return _POOLINGS[number]


def _read_token_types(file: ModelFile) -> int:
    """Return the rows of token_types.weight, 0 where there is none."""
    table = file.tensors.get("token_types.weight")
    return 0 if table is None else table.shape[-1]


def _optional_positive(file: ModelFile, key: str) -> float | None:
    """Return a number above 0, or None where the key is absent or 0, which some writers write for none."""
    if key not in file or file.number(key) == 0:
        return None
    return _positive(file, key, maximum=MAX_SCALE)


def _positive(file: ModelFile, key: str, default: float | None = None, *, maximum: float) -> float:
    value = file.number(key, default, maximum=maximum)
    if not value > 0 or not math.isfinite(value):
        raise _bad(file, key, f"is {value}; it must be above 0")
    return value


def _bad(file: ModelFile, key: str, what: str) -> ModelFormatError:
    return ModelFormatError("OUT_OF_RANGE", key, 0, f"{file.path}: metadata key {key} {what}")
