"""Ranges and defaults of a request's options, as the comments in proto/quantd/v1/generate.proto state them."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from daemon.access.line import MAX_PRIORITY, MIN_PRIORITY
from daemon.errors import ApiError
from quantd.v1 import generate_pb2 as pb
from runtime.sampling import SamplingParams

MIN_CONTEXT_TOKENS = 16
MAX_CONTEXT_TOKENS = 2**24
MAX_STOPS = 16
MAX_STOP_BYTES = 256
MAX_LOGIT_BIAS = 1024
MAX_TOP_LOGPROBS = 20
MAX_NUM_CHOICES = 16
MAX_TEXT_BYTES = 4 * 2**20
MAX_MESSAGES = 4096
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}

_DEFAULTS = SamplingParams()


@dataclass(frozen=True, slots=True)
class Options:
    """Checked options of one request."""

    max_tokens: int | None  # None: what the session has room for
    stop: tuple[str, ...]
    ignore_eos: bool
    context_tokens: int  # of prompt and answer together
    sampling: SamplingParams
    num_choices: int = 1
    best_of: int = 1


def invalid(field: str, message: str) -> ApiError:
    """A refusal that names the field and what it may be."""
    return ApiError("INVALID_ARGUMENT", f"{field.rsplit('.', 1)[-1]}: {message}", field=field)


def read_options(
    options: pb.GenerationOptions,
    *,
    n_vocab: int,
    context_tokens: int,
    encode: Callable[[str], list[int]],
    min_tokens: int = 1,
) -> Options:
    """Checks every field and fills in the defaults; ApiError INVALID_ARGUMENT names the first bad one.

    `encode` gives the tokens of a text that is to be biased; max_tokens is at least `min_tokens`.
    """
    max_tokens = options.max_tokens if options.HasField("max_tokens") else None
    if max_tokens is not None and not min_tokens <= max_tokens <= context_tokens:
        raise invalid(
            "options.max_tokens",
            f"must be {min_tokens} to {context_tokens} (the session's context), not {max_tokens}",
        )
    top_logprobs = options.top_logprobs if options.HasField("top_logprobs") else None
    check_top_logprobs("options.top_logprobs", top_logprobs)
    num_choices = options.num_choices if options.HasField("num_choices") else 1
    if not 1 <= num_choices <= MAX_NUM_CHOICES:
        raise invalid("options.num_choices", f"must be 1 to {MAX_NUM_CHOICES}, not {num_choices}")
    best_of = options.best_of if options.HasField("best_of") else num_choices
    if not num_choices <= best_of <= MAX_NUM_CHOICES:
        raise invalid(
            "options.best_of",
            f"must be {num_choices} (the number of choices) to {MAX_NUM_CHOICES}, not {best_of}",
        )
    wanted_tokens = options.context_tokens if options.HasField("context_tokens") else context_tokens
    if not MIN_CONTEXT_TOKENS <= wanted_tokens <= MAX_CONTEXT_TOKENS:
        raise invalid(
            "options.context_tokens",
            f"must be {MIN_CONTEXT_TOKENS} to {MAX_CONTEXT_TOKENS}, not {wanted_tokens}",
        )
    return Options(
        max_tokens=max_tokens,
        context_tokens=min(wanted_tokens, context_tokens),
        stop=_read_stops(options.stop),
        ignore_eos=options.ignore_eos,
        sampling=_read_sampling(options.sampling, top_logprobs, n_vocab, encode),
        num_choices=num_choices,
        best_of=best_of,
    )


def check_top_logprobs(field: str, value: int | None) -> None:
    """Refuses a number of alternatives that no step can report."""
    if value is not None and not 0 <= value <= MAX_TOP_LOGPROBS:
        raise invalid(field, f"must be 0 to {MAX_TOP_LOGPROBS}, not {value}")


def read_priority(options: pb.GenerationOptions, highest: int) -> int:
    """The priority of a request of a key whose own is `highest`; ApiError INVALID_ARGUMENT for one that is no priority."""
    if not options.HasField("priority"):
        return highest
    if not MIN_PRIORITY <= options.priority <= MAX_PRIORITY:
        raise invalid("options.priority", f"must be {MIN_PRIORITY} to {MAX_PRIORITY}, not {options.priority}")
    return min(highest, options.priority)


def _read_stops(stops: Any) -> tuple[str, ...]:
    if len(stops) > MAX_STOPS:
        raise invalid("options.stop", f"at most {MAX_STOPS} texts, not {len(stops)}")
    for index, stop in enumerate(stops):
        if not 1 <= len(stop.encode()) <= MAX_STOP_BYTES:
            raise invalid(
                f"options.stop[{index}]", f"must be 1 to {MAX_STOP_BYTES} bytes, not {len(stop.encode())}"
            )
    return tuple(dict.fromkeys(stops))


def _read_sampling(
    sampling: pb.SamplingParams, top_logprobs: int | None, n_vocab: int, encode: Callable[[str], list[int]]
) -> SamplingParams:
    number = _Numbers(sampling)
    return SamplingParams(
        temperature=number("temperature", 0, 2),
        top_k=int(number("top_k", 0, 1000)),
        top_p=number("top_p", 0, 1, above=True),
        min_p=number("min_p", 0, 1),
        repeat_penalty=number("repeat_penalty", 0, 2, above=True),
        repeat_last_n=int(number("repeat_last_n", 0, 4096)),
        presence_penalty=number("presence_penalty", -2, 2),
        frequency_penalty=number("frequency_penalty", -2, 2),
        logit_bias=_read_logit_bias(sampling, n_vocab, encode),
        seed=sampling.seed if sampling.HasField("seed") else secrets.randbits(64),
        top_logprobs=top_logprobs,
    )


class _Numbers:
    """Reads optional numbers of one message, each within its range."""

    def __init__(self, sampling: pb.SamplingParams) -> None:
        self._sampling = sampling

    def __call__(self, name: str, low: float, high: float, *, above: bool = False) -> float:
        """The field, or its default if unset.  `above`: `low` itself is not allowed."""
        if not self._sampling.HasField(name):  # type: ignore[arg-type]
            return float(getattr(_DEFAULTS, name))
        value: float = getattr(self._sampling, name)
        if not math.isfinite(value) or not low <= value <= high or (above and value == low):
            words = f"above {low:g} to {high:g}" if above else f"{low:g} to {high:g}"
            raise invalid(f"options.sampling.{name}", f"must be {words}, not {value:g}")
        return value


def _read_logit_bias(
    sampling: pb.SamplingParams, n_vocab: int, encode: Callable[[str], list[int]]
) -> tuple[tuple[int, float], ...]:
    field = "options.sampling.logit_bias"
    num_entries = len(sampling.logit_bias) + len(sampling.text_bias)
    if num_entries > MAX_LOGIT_BIAS:
        raise invalid(field, f"at most {MAX_LOGIT_BIAS} tokens, not {num_entries}")
    biases: dict[int, float] = dict(sampling.logit_bias)
    for token_id in biases:
        if not 0 <= token_id < n_vocab:
            raise invalid(field, f"token ids are 0 to {n_vocab - 1}, not {token_id}")
    for text, bias in sorted(sampling.text_bias.items()):
        if not 1 <= len(text.encode()) <= MAX_STOP_BYTES:
            raise invalid(field, f"texts must be 1 to {MAX_STOP_BYTES} bytes, not {len(text.encode())}")
        for token_id in encode(text):
            biases.setdefault(token_id, bias)
    for bias in biases.values():
        if not (math.isfinite(bias) and -100 <= bias <= 100):
            raise invalid(field, f"must be -100 to 100, not {bias:g}")
    return tuple(sorted(biases.items()))
