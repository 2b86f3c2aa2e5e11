"""What the tokens of a step do to their sequences: which guesses hold, what is told, and where an answer ends.

    results of the step -> confirm_draft -> extend -> events of the sequence, and why it ended, if it did

Nothing here knows other sequences, pages or the plan of a step: that is the scheduler's.
"""

from __future__ import annotations

from runtime.constraint import ConstraintError
from runtime.request import (
    ERROR_CONSTRAINT_FAILED,
    ERROR_NO_TOKEN,
    ERROR_NON_FINITE_LOGITS,
    Event,
    FinishReason,
    Sequence,
    TokenEvent,
)
from runtime.step_plan import Outcome, StepResult

Ending = tuple[FinishReason, str | None]
"""Why a sequence ends, and the ERROR_ word where it failed."""

_FULL: Ending = (FinishReason.LENGTH, None)
_NO_TOP: tuple[tuple[int, float], ...] = ()
_ERROR_OF_OUTCOME = {Outcome.NON_FINITE: ERROR_NON_FINITE_LOGITS, Outcome.NO_TOKEN: ERROR_NO_TOKEN}


def confirm_draft(sequence: Sequence, result: StepResult, index: int) -> int:
    """Guesses of a sequence that the step confirmed, from entry `index` of its results on: computed tokens now."""
    drafted = sequence.tokens[sequence.num_known : sequence.num_known + sequence.num_drafted].tolist()
    token_ids = result.token_ids
    num_accepted = 0
    for drafted_id in drafted:
        if token_ids[index + num_accepted] != drafted_id:
            break
        num_accepted += 1
    sequence.num_computed += num_accepted
    sequence.drafted_tokens += len(drafted)
    sequence.accepted_tokens += num_accepted
    return num_accepted


def extend(
    sequence: Sequence, result: StepResult, index: int, events: list[Event], now_s: float
) -> Ending | None:
    """Add the token of entry `index`, and what a constraint forces behind it; None while the answer goes on.

    A stop token ends the answer, counts, and is not told.
    """
    token_id = result.token_ids[index]
    if token_id < 0:
        return FinishReason.FAILED, _ERROR_OF_OUTCOME[Outcome(int(result.outcomes[index]))]
    request = sequence.request
    sequence.append(token_id, now_s)
    if token_id in request.stop_token_ids:
        return FinishReason.STOP, None
    num_top = request.sampling.top_logprobs
    if num_top is None:
        events.append(TokenEvent(request.id, token_id, None, _NO_TOP))
    else:
        top = top_of(result, index, num_top)
        events.append(TokenEvent(request.id, token_id, float(result.logprobs[index]), top))
    if request.constraint is not None:
        return _follow_constraint(sequence, token_id, events, now_s)
    return _FULL if sequence.num_known >= sequence.limit_tokens else None


def _follow_constraint(sequence: Sequence, token_id: int, events: list[Event], now_s: float) -> Ending | None:
    """Tell the constraint of a sampled token; tokens that it forces are known without a step of their own.

    They are computed together in the next step, as the rows of a prompt are.  Where log-probabilities were asked
    for, each token is sampled, or there would be none to report.
    """
    request, constraint = sequence.request, sequence.request.constraint
    assert constraint is not None
    try:
        advance = constraint.accept(token_id, want_forced=request.sampling.top_logprobs is None)
        mask = None if advance.done else constraint.mask()
    except ConstraintError:
        return FinishReason.FAILED, ERROR_CONSTRAINT_FAILED
    forced = advance.forced[: sequence.limit_tokens - sequence.num_known]
    for forced_id in forced:
        sequence.append(forced_id, now_s)
        events.append(TokenEvent(request.id, forced_id, None, _NO_TOP))
    if forced and request.sampling.has_penalties:
        sequence.sampler.accept(list(forced))
    if advance.done and len(forced) == len(advance.forced):
        return FinishReason.STOP, None
    if sequence.num_known >= sequence.limit_tokens:
        return FinishReason.LENGTH, None
    sequence.sampler.set_mask(mask)
    return None


def top_of(result: StepResult, index: int, num_top: int) -> tuple[tuple[int, float], ...]:
    """The best `num_top` alternatives of a row, without the padding."""
    ids = result.top_ids[index, :num_top].tolist()
    logprobs = result.top_logprobs[index, :num_top].tolist()
    return tuple(
        (token_id, logprob) for token_id, logprob in zip(ids, logprobs, strict=True) if token_id >= 0
    )
