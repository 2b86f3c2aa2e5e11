"""What a place has of a model: the files to fetch, and what comes with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from daemon.store.download import Wanted
from quantd.v1 import generate_pb2 as pb


@dataclass(frozen=True, slots=True)
class Variant:
    """A quantization that a place offers."""

    quant: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Offer:
    """One model at one place."""

    weights: tuple[Wanted, ...]
    source: str  # in words
    quant: str = ""
    variants: tuple[Variant, ...] = ()  # everything that the place has, this one included
    template: Wanted | None = None  # a Go template or a Jinja template
    system: Wanted | None = None
    parameters: Wanted | None = None
    licenses: tuple[Wanted, ...] = field(default=())

    @property
    def size_bytes(self) -> int:
        """Of the weights."""
        return sum(wanted.size_bytes for wanted in self.weights)

    @property
    def texts(self) -> list[Wanted]:
        """Everything but the weights."""
        single = [self.template, self.system, self.parameters]
        return [*(wanted for wanted in single if wanted is not None), *self.licenses]


# Ollama's names of parameters, and ours.  Others (num_gpu, use_mmap, ...) say how its own runner works.
_SAMPLING = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repeat_penalty": float,
    "repeat_last_n": int,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": int,
}
_RANGES = {
    "temperature": (0, 2),
    "top_k": (0, 1000),
    "top_p": (1e-6, 1),
    "min_p": (0, 1),
    "repeat_penalty": (1e-6, 2),
    "repeat_last_n": (0, 4096),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "seed": (0, 2**64 - 1),
}
_MAX_STOPS, _MAX_STOP_BYTES = 16, 256


def options_of_ollama(parameters: dict[str, Any]) -> pb.GenerationOptions:
    """Ollama's parameters as defaults of requests; what is out of our ranges or unknown is left out."""
    options = pb.GenerationOptions()
    for name, kind in _SAMPLING.items():
        value = _number(parameters.get(name), kind)
        low, high = _RANGES[name]
        if value is not None and low <= value <= high:
            setattr(options.sampling, name, value)
    context, most = _number(parameters.get("num_ctx"), int), _number(parameters.get("num_predict"), int)
    if context is not None and 16 <= context <= 2**24:
        options.context_tokens = int(context)
    if most is not None and 1 <= most < 2**24:
        options.max_tokens = int(most)
    stops = parameters.get("stop", [])
    for stop in [stops] if isinstance(stops, str) else stops if isinstance(stops, list) else []:
        if (
            isinstance(stop, str)
            and 1 <= len(stop.encode()) <= _MAX_STOP_BYTES
            and len(options.stop) < _MAX_STOPS
        ):
            options.stop.append(stop)
    return options


def _number(value: Any, kind: type[int | float]) -> int | float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return kind(value) if value == value and abs(value) < 2**64 else None  # noqa: PLR0124  NaN is not itself
