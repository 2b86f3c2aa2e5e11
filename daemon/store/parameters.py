"""Ollama's parameters of models, and ours: one table of names and ranges, for registries and for Modelfiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantd.v1 import generate_pb2 as pb

MAX_CONTEXT_TOKENS = 2**24
MAX_STOPS, MAX_STOP_BYTES = 16, 256

# Name: type, least, most.  In GenerationOptions.sampling under the same name.
_SAMPLING: dict[str, tuple[type[int | float], float, float]] = {
    "temperature": (float, 0, 2),
    "top_k": (int, 0, 1000),
    "top_p": (float, 1e-6, 1),
    "min_p": (float, 0, 1),
    "repeat_penalty": (float, 1e-6, 2),
    "repeat_last_n": (int, 0, 4096),
    "presence_penalty": (float, -2, 2),
    "frequency_penalty": (float, -2, 2),
    "seed": (int, 0, 2**64 - 1),
}
# In GenerationOptions itself, under another name.
_LIMITS = {
    "num_ctx": ("context_tokens", 16, MAX_CONTEXT_TOKENS),
    "num_predict": ("max_tokens", 1, MAX_CONTEXT_TOKENS),
}
_NAMES_OF_LIMITS = {ours: name for name, (ours, _, _) in _LIMITS.items()}
# Values that mean "as without it": no limit, a random seed.
_UNSET = {"num_predict": (-1, -2), "seed": (-1,)}
# How Ollama's own runner works; taken without effect, as its newer versions do with most of them.
WITHOUT_EFFECT = frozenset(
    [
        "num_keep",
        "num_batch",
        "num_gpu",
        "main_gpu",
        "num_thread",
        "use_mmap",
        "use_mlock",
        "low_vram",
        "f16_kv",
        "numa",
        "vocab_only",
        "logits_all",
        "typical_p",
        "tfs_z",
        "mirostat",
        "mirostat_eta",
        "mirostat_tau",
        "penalize_newline",
        "draft_num_predict",
    ]
)
KNOWN = (*_SAMPLING, *_LIMITS, "stop")


def set_parameter(options: pb.GenerationOptions, name: str, value: Any) -> bool:
    """Sets one parameter, a number or its text; False for one that has no effect here.

    ValueError, in words that follow the name, for a parameter that nobody knows and for a value that it cannot have.
    """
    if name in WITHOUT_EFFECT:
        return False
    if name == "stop":
        _add_stop(options, value)
        return True
    if name not in _SAMPLING and name not in _LIMITS:
        raise ValueError(f"is no parameter; there are {', '.join(KNOWN)}")
    ours, (kind, low, high) = name, _SAMPLING.get(name, (int, 0, 0))
    if name in _LIMITS:
        ours, low, high = _LIMITS[name]
    number = _number(value, kind)
    if number is None:
        raise ValueError(
            f"must be {'a whole number' if kind is int else 'a number'}, not {str(value)[:40]!r}"
        )
    if number in _UNSET.get(name, ()):
        return True
    if name == "repeat_last_n" and number == -1:
        number = int(high)  # the whole context, as far as it is looked at
    if not low <= number <= high:
        raise ValueError(f"must be {low:g} to {high:g}, not {number:g}")
    setattr(options if name in _LIMITS else options.sampling, ours, number)
    return True


def options_of_ollama(parameters: Mapping[str, Any]) -> pb.GenerationOptions:
    """Parameters of a registry as defaults of requests; what is out of our ranges or unknown is left out."""
    options = pb.GenerationOptions()
    for name, value in parameters.items():
        for one in value if name == "stop" and isinstance(value, list) else [value]:
            try:
                set_parameter(options, name, one)
            except ValueError:
                continue
    return options


def parameter_values(options: pb.GenerationOptions) -> list[tuple[str, Any]]:
    """The defaults of a model under Ollama's names; "stop" once for each text."""
    values: list[tuple[str, Any]] = []
    for message in (options.sampling, options):
        for field, value in message.ListFields():
            if field.message_type is not None:
                continue
            name = _NAMES_OF_LIMITS.get(field.name, field.name)
            values += [(name, one) for one in value] if field.name == "stop" else [(name, value)]
    return values


def number_text(value: float) -> str:
    """A number as people write it: "0.7", not what the nearest F32 is."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _add_stop(options: pb.GenerationOptions, value: Any) -> None:
    if not isinstance(value, str) or not 1 <= len(value.encode()) <= MAX_STOP_BYTES:
        raise ValueError(f"must be a text of 1 to {MAX_STOP_BYTES} bytes")
    if len(options.stop) >= MAX_STOPS:
        raise ValueError(f"at most {MAX_STOPS} of them")
    options.stop.append(value)


def _number(value: Any, kind: type[int | float]) -> int | float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = kind(value)
    except (ValueError, OverflowError):
        return None
    return number if number == number and abs(number) < 2**64 else None  # noqa: PLR0124  NaN is not itself
