"""How far a quantized model is from its original on a text: paired perplexity and Kullback-Leibler divergence.

The method of `llama-perplexity --kl-divergence`: chunks and scored positions are those of quant.perplexity; at each of them
both models give the distribution of the next token.  KL divergence is sum p ln(p / q), p the original's.  Both models run
at once, a part of a chunk at a time: nothing is kept but one number a position.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quant.perplexity import (
    DEFAULT_CTX,
    MIN_CHUNKS_OF_TEXT,
    MIN_CTX,
    NonFiniteLogitsError,
    ScoringTokenizer,
    sequence_plan,
)
from runtime.errors import RequestError
from runtime.step_plan import Outcome, StepPlan, StepResult

LOGITS_BYTES = 32 << 20  # of one model at once
TILE_ELEMENTS = 1 << 20  # of the float64 temporaries
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
MAX_POSITIONS = 1 << 26  # numbers kept: one a position

Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]


class ComparedModel(Protocol):
    """What is asked of a model: runtime.model.LoadedModel, loaded with one session of at least `ctx` tokens."""

    @property
    def tokenizer(self) -> ScoringTokenizer: ...
    @property
    def page_tokens(self) -> int: ...
    @property
    def n_vocab(self) -> int: ...
    def step(self, plan: StepPlan, logits: NDArray[np.float32] | None = None) -> StepResult: ...


@dataclass(frozen=True, slots=True)
class Divergence:
    """What the comparison found; `_stderr` is the standard error of the value before it."""

    chunks: int
    positions: int
    original_perplexity: float
    original_perplexity_stderr: float
    quantized_perplexity: float
    quantized_perplexity_stderr: float
    ratio: float  # quantized over original
    ratio_stderr: float  # paired: of the difference at each position
    kl_mean: float
    kl_mean_stderr: float
    kl_percentiles: dict[str, float]  # "50", "90", "95", "99", "99.9"
    kl_max: float
    same_top: float  # share of positions where both rank the same token first
    same_top_stderr: float
    delta_p_mean: float  # of the probability of the text's token: quantized minus original
    delta_p_rms: float

    @property
    def increase_percent(self) -> float:
        """By how much the perplexity rises."""
        return 100.0 * (self.ratio - 1.0)

    def facts(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        return {**asdict(self), "increase_percent": self.increase_percent}


class Positions:
    """One number a scored position, in arrays that grow by chunk."""

    def __init__(self) -> None:
        self._original: list[Float64] = []  # negative log-likelihood of the text's token
        self._quantized: list[Float64] = []
        self._divergence: list[Float64] = []
        self._same_top: list[NDArray[np.bool_]] = []
        self.chunks = 0

    def add(
        self, original: Float64, quantized: Float64, divergence: Float64, same_top: NDArray[np.bool_]
    ) -> None:
        self._original.append(original)
        self._quantized.append(quantized)
        self._divergence.append(divergence)
        self._same_top.append(same_top)

    def result(self) -> Divergence:
        original = np.concatenate(self._original)
        quantized = np.concatenate(self._quantized)
        divergence = np.concatenate(self._divergence)
        same_top = np.concatenate(self._same_top)
        log_ratio, log_ratio_stderr = _mean(quantized - original)
        first, first_stderr = _mean(original)
        second, second_stderr = _mean(quantized)
        kl_mean, kl_mean_stderr = _mean(divergence)
        share, share_stderr = _mean(same_top.astype(np.float64))
        delta_p = np.exp(-quantized) - np.exp(-original)
        return Divergence(
            chunks=self.chunks,
            positions=len(original),
            original_perplexity=_exp(first),
            original_perplexity_stderr=_exp(first) * first_stderr,
            quantized_perplexity=_exp(second),
            quantized_perplexity_stderr=_exp(second) * second_stderr,
            ratio=_exp(log_ratio),
            ratio_stderr=_exp(log_ratio) * log_ratio_stderr,
            kl_mean=kl_mean,
            kl_mean_stderr=kl_mean_stderr,
            kl_percentiles={
                f"{percent:g}": float(value)
                for percent, value in zip(PERCENTILES, np.percentile(divergence, PERCENTILES), strict=True)
            },
            kl_max=float(divergence.max()),
            same_top=share,
            same_top_stderr=share_stderr,
            delta_p_mean=float(delta_p.mean()),
            delta_p_rms=float(np.sqrt((delta_p**2).mean())),
        )


def compare(
    original: ComparedModel,
    quantized: ComparedModel,
    text: str,
    *,
    ctx: int = DEFAULT_CTX,
    chunks: int | None = None,
    step_rows: int = 256,
    parse_special: bool = False,
    on_progress: Callable[[Divergence, int], None] | None = None,
) -> Divergence:
    """Run both models over the text; `chunks` limits how much of it, `on_progress` gets the result so far and the chunks in all.

    `parse_special` reads the names of control tokens in the text as these tokens.

    Raises RequestError for models of different vocabularies and for a text of less than two chunks,
    NonFiniteLogitsError, and what LoadedModel.step raises.
    """
    tokens = _tokens(original, quantized, text, ctx, chunks, parse_special=parse_special)
    bos = original.tokenizer.bos_id if original.tokenizer.add_bos else None
    n_chunks = min(len(tokens) // ctx, chunks or len(tokens))
    if n_chunks * ctx > MAX_POSITIONS:
        raise RequestError("chunks", f"at most {MAX_POSITIONS // ctx} chunks of {ctx} tokens are compared")
    rows = max(1, min(step_rows, LOGITS_BYTES // (4 * original.n_vocab)))
    both = (original, quantized)
    logits = tuple(np.empty((rows, original.n_vocab), np.float32) for _ in both)  # of the models, in turn
    positions = Positions()
    for i in range(n_chunks):
        chunk = np.array(tokens[i * ctx : (i + 1) * ctx], np.int32)
        following = chunk[1:].copy()
        if bos is not None:
            chunk[0] = bos
        first_scored, last_scored = ctx // 2, ctx - 2
        for start in range(0, first_scored, step_rows):
            _fill(both, chunk[start : min(start + step_rows, first_scored)], start)
        for start in range(first_scored, last_scored + 1, rows):
            stop = min(start + rows, last_scored + 1)
            outputs = np.arange(stop - start, dtype=np.int32)
            first, second = (each[: stop - start] for each in logits)
            for model, view in ((original, first), (quantized, second)):
                plan = sequence_plan(
                    chunk[start:stop], start, outputs, following[start:stop], model.page_tokens
                )
                if (model.step(plan, view).outcomes == Outcome.NON_FINITE).any():
                    raise NonFiniteLogitsError("a model's logits are not finite; the file may be damaged")
            _score(first, second, following[start:stop], positions)
        positions.chunks += 1
        if on_progress is not None:
            on_progress(positions.result(), n_chunks)
    return positions.result()


def _tokens(
    original: ComparedModel,
    quantized: ComparedModel,
    text: str,
    ctx: int,
    chunks: int | None,
    *,
    parse_special: bool,
) -> list[int]:
    if ctx < MIN_CTX:
        raise RequestError("ctx", f"ctx must be at least {MIN_CTX}, not {ctx}")
    if chunks is not None and chunks < 1:
        raise RequestError("chunks", f"chunks must be at least 1, not {chunks}")
    tokens, others = (
        model.tokenizer.encode(text, add_special=True, parse_special=parse_special)
        for model in (original, quantized)
    )
    if original.n_vocab != quantized.n_vocab or tokens != others:
        raise RequestError(
            "quantized", "the two models split the text into different tokens; compare files of one model"
        )
    require_chunks(len(tokens), ctx, "file")
    return tokens


def require_chunks(n_tokens: int, ctx: int, field: str) -> None:
    """Raise RequestError where a text is too short to be compared on."""
    if n_tokens < MIN_CHUNKS_OF_TEXT * ctx:
        raise RequestError(
            field,
            f"the text has {n_tokens} tokens; at least {MIN_CHUNKS_OF_TEXT * ctx} are needed with a context of {ctx}",
        )


def _fill(models: tuple[ComparedModel, ComparedModel], rows: Int32, start: int) -> None:
    """Compute rows of which no logits are wanted."""
    none = np.empty(0, np.int32)
    for model in models:
        model.step(sequence_plan(rows, start, none, none, model.page_tokens))


def _score(
    original: NDArray[np.float32], quantized: NDArray[np.float32], targets: Int32, positions: Positions
) -> None:
    """Compare rows of logits (n, n_vocab), a tile at a time."""
    rows = max(1, TILE_ELEMENTS // original.shape[1])
    for begin in range(0, len(original), rows):
        p_log, q_log = (
            _log_softmax(each[begin : begin + rows].astype(np.float64)) for each in (original, quantized)
        )
        at = np.arange(len(p_log)), targets[begin : begin + rows]
        divergence = (np.exp(p_log) * (p_log - q_log)).sum(1)
        positions.add(-p_log[at], -q_log[at], np.maximum(divergence, 0.0), p_log.argmax(1) == q_log.argmax(1))


def _log_softmax(x: Float64) -> Float64:
    x -= x.max(1, keepdims=True)
    x -= np.log(np.exp(x).sum(1, keepdims=True))
    return x


def _mean(values: Float64) -> tuple[float, float]:
    """Return the mean and its standard error."""
    spread = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()), spread


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
