"""Log-probabilities of a prompt's own tokens.

The row of a prompt token has the logits of the token behind it: for a request that asks, each such row is an output of the step
that computes it, with that token as its target.  Alternatives are reported to a sampler, and a step takes each sampler once (rows
with the same one are a draft): so the rows of a step get samplers of their own.  What these draw is not looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from runtime.continuation import top_of
from runtime.request import PromptEvent, Request, Sequence
from runtime.sampling import SamplingParams
from runtime.step_plan import Outcome, StepResult


class Scored(NamedTuple):
    """Rows of one sequence in a step whose targets are prompt tokens."""

    sequence: Sequence
    start: int  # index in the prompt of the first target
    output: int  # the first of these rows among the outputs of the step
    num_rows: int


def make_scorers(
    request: Request, factory: Callable[[SamplingParams], Any], max_step_rows: int
) -> list[Any] | None:
    """Samplers that report alternatives, enough for a step of this prompt; [None] where no alternatives are wanted."""
    if request.prompt_logprobs is None:
        return None
    if not request.prompt_logprobs:
        return [None]
    params = SamplingParams(temperature=0.0, repeat_last_n=0, top_logprobs=request.prompt_logprobs)
    return [factory(params) for _ in range(max(1, min(len(request.prompt_ids) - 1, max_step_rows)))]


def scored_rows(sequence: Sequence, n_rows: int) -> range:
    """Positions among its next `n_rows` whose logits tell of a prompt token that was not told of yet."""
    begin = max(sequence.num_computed, sequence.num_scored - 1)
    return range(begin, min(sequence.num_computed + n_rows, sequence.prompt_tokens - 1))


def prompt_event(scored: Scored, result: StepResult) -> PromptEvent | None:
    """What a step found for these rows; None where the model's numbers are none."""
    sequence, start, output, num_rows = scored
    rows = slice(output, output + num_rows)
    if (result.outcomes[rows] == Outcome.NON_FINITE).any():
        return None
    num_top = sequence.request.prompt_logprobs or 0
    sequence.num_scored = start + num_rows
    return PromptEvent(
        sequence.request.id,
        start,
        tuple(result.target_logprobs[rows].tolist()),
        tuple(top_of(result, at, num_top) for at in range(output, output + num_rows)),
    )
