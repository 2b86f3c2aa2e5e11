"""Perplexity of a model on a text, by the method of llama-perplexity, so that the numbers can be compared.

The text is tokenized once and cut into chunks of `ctx` tokens; what is left over is dropped.  The first token of each
chunk becomes BOS where the model adds one.  Only the second half of a chunk is scored, where every token has at least
half a context before it: ctx - ctx // 2 - 1 predictions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.errors import QuantdError, RequestError
from runtime.step_plan import Outcome, StepPlan, StepResult

DEFAULT_CTX = 512
MIN_CTX = 8
MIN_CHUNKS_OF_TEXT = 2  # a shorter text says nothing

Int32 = NDArray[np.int32]


class ScoringTokenizer(Protocol):
    """What is asked of a tokenizer."""

    @property
    def bos_id(self) -> int | None: ...
    @property
    def add_bos(self) -> bool: ...
    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]: ...


class ScoringModel(Protocol):
    """What is asked of a model: runtime.model.LoadedModel, loaded with one session of at least `ctx` tokens."""

    @property
    def tokenizer(self) -> ScoringTokenizer: ...
    @property
    def page_tokens(self) -> int: ...
    def step(self, plan: StepPlan) -> StepResult: ...


class NonFiniteLogitsError(QuantdError):
    """The model gave a NaN or an infinity: a damaged file, or weights beyond what the arithmetic holds."""

    reason = "NON_FINITE_LOGITS"


@dataclass(frozen=True, slots=True)
class Perplexity:
    """exp of the mean negative log-likelihood, with its standard error."""

    perplexity: float
    stderr: float
    chunks: int


class Score:
    """The running sums over all predictions."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._sum_of_squares = 0.0
        self._count = 0
        self.chunks = 0

    def add_chunk(self, logprobs: NDArray[np.float64]) -> None:
        self._sum -= float(logprobs.sum())
        self._sum_of_squares += float((logprobs**2).sum())
        self._count += len(logprobs)
        self.chunks += 1

    def result(self) -> Perplexity:
        mean = self._sum / self._count
        variance = self._sum_of_squares / self._count - mean * mean
        perplexity = math.exp(mean) if mean < 700 else math.inf
        spread = math.sqrt(variance / (self._count - 1)) if variance > 0 and self._count > 1 else 0.0
        return Perplexity(perplexity, spread * perplexity, self.chunks)


def measure(
    model: ScoringModel,
    text: str,
    *,
    ctx: int = DEFAULT_CTX,
    chunks: int | None = None,
    step_rows: int = 256,
    parse_special: bool = False,
    on_progress: Callable[[Perplexity, int], None] | None = None,
) -> Perplexity:
    """Score the text; `chunks` limits how much of it.  `on_progress` gets the estimate so far and the chunks in all.

    `step_rows` is the most rows of one step that the model takes.  `parse_special` reads the names of control tokens in
    the text as these tokens, which llama-perplexity does not.  Raises RequestError for a text of less than two
    chunks, NonFiniteLogitsError, and what LoadedModel.step raises.
    """
    _check(ctx, chunks)
    tokens = model.tokenizer.encode(text, add_special=True, parse_special=parse_special)
    if len(tokens) < MIN_CHUNKS_OF_TEXT * ctx:
        raise RequestError(
            "file",
            f"the text has {len(tokens)} tokens; at least {MIN_CHUNKS_OF_TEXT * ctx} are needed with a context of {ctx}",
        )
    n_chunks = min(len(tokens) // ctx, chunks or len(tokens))
    bos = model.tokenizer.bos_id if model.tokenizer.add_bos else None
    score = Score()
    for i in range(n_chunks):
        chunk = np.array(tokens[i * ctx : (i + 1) * ctx], np.int32)
        following = chunk[1:].copy()
        if bos is not None:
            chunk[0] = bos
        score.add_chunk(_second_half(model, chunk, following, step_rows))
        if on_progress is not None:
            on_progress(score.result(), n_chunks)
    return score.result()


def _check(ctx: int, chunks: int | None) -> None:
    if ctx < MIN_CTX:
        raise RequestError("ctx", f"ctx must be at least {MIN_CTX}, not {ctx}")
    if chunks is not None and chunks < 1:
        raise RequestError("chunks", f"chunks must be at least 1, not {chunks}")


def _second_half(model: ScoringModel, chunk: Int32, following: Int32, step_rows: int) -> NDArray[np.float64]:
    """Log-probability of each token after the first half, (ctx - ctx // 2 - 1,), in steps of at most step_rows."""
    first_scored, last_scored = len(chunk) // 2, len(chunk) - 2
    parts: list[NDArray[np.float64]] = []
    for start in range(0, last_scored + 1, step_rows):
        stop = min(start + step_rows, last_scored + 1)  # the last token predicts nothing: not computed
        scored = np.arange(max(start, first_scored), stop, dtype=np.int32)
        plan = sequence_plan(chunk[start:stop], start, scored - start, following[scored], model.page_tokens)
        result = model.step(plan)
        if (result.outcomes == Outcome.NON_FINITE).any():
            raise NonFiniteLogitsError("the model's logits are not finite; the file may be damaged")
        parts.append(result.target_logprobs.astype(np.float64))
    return np.concatenate(parts)


def sequence_plan(tokens: Int32, start: int, out_rows: Int32, targets: Int32, page_tokens: int) -> StepPlan:
    """Return one step of one sequence that holds the first pages of the arena; its rows begin at position `start`."""
    n_pages = -(-(start + len(tokens)) // page_tokens)
    return StepPlan(
        tokens=np.ascontiguousarray(tokens),
        positions=np.arange(start, start + len(tokens), dtype=np.int32),
        seq_starts=_ints((0, len(tokens))),
        page_starts=_ints((0, n_pages)),
        pages=np.arange(n_pages, dtype=np.int32),
        out_rows=out_rows,
        samplers=[None] * len(out_rows),
        targets=targets,
    )


def _ints(values: Sequence[int]) -> Int32:
    return np.array(values, np.int32)
