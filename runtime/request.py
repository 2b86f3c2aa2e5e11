"""Requests, their states, and the events that answer them.

Rules:
1. Everything that changes a request's state is a transition of the table below, taken by `Sequence.move`.
2. A request that was accepted ends with exactly one FinishEvent, and nothing comes after it.

    WAITING  --admit-->    RUNNING     a session and pages for its worst case are reserved
    RUNNING  --preempt-->  WAITING     it gives borrowed pages back; what it said stays said, and is computed again
    RUNNING  --stop, length-->  DONE   the model ended it, or its token limit did
    WAITING or RUNNING  --cancelled, deadline, failed-->  DONE

There are no phases for prompt and answer: a sequence has tokens that are known (prompt and sampled) and tokens that are
computed, and it wants the second to catch up with the first.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from runtime._native import Copier, Progress
from runtime.constraint import TokenConstraint
from runtime.pages import Lease
from runtime.sampling import SamplingParams
from runtime.step_plan import items


class FinishReason(enum.Enum):
    """Why a request ended."""

    STOP = "stop"  # the model sampled a stop token
    LENGTH = "length"  # max_tokens or the context is used up
    CANCELLED = "cancelled"  # the caller went away or asked for it
    DEADLINE = "deadline"  # the request's deadline passed
    FAILED = "failed"  # FinishEvent.error says why


class Move(enum.Enum):
    """What can happen to a request that does not end it."""

    ADMIT = "admit"
    PREEMPT = "preempt"


class State(enum.Enum):
    """Where a request is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"


Trigger = Move | FinishReason

TRANSITIONS: dict[State, dict[Trigger, State]] = {
    State.WAITING: {
        Move.ADMIT: State.RUNNING,
        FinishReason.CANCELLED: State.DONE,
        FinishReason.DEADLINE: State.DONE,
        FinishReason.FAILED: State.DONE,
    },
    State.RUNNING: {
        Move.PREEMPT: State.WAITING,
        FinishReason.STOP: State.DONE,
        FinishReason.LENGTH: State.DONE,
        FinishReason.CANCELLED: State.DONE,
        FinishReason.DEADLINE: State.DONE,
        FinishReason.FAILED: State.DONE,
    },
    State.DONE: {},
}


# Words of FinishEvent.error.
ERROR_NON_FINITE_LOGITS = "non_finite_logits"  # the model gave NaN or infinity for this request
ERROR_NO_TOKEN = "no_token"  # noqa: S105  the constraint's mask ruled out every token
ERROR_CONSTRAINT_FAILED = "constraint_failed"  # the grammar became too complex, or could not go on
ERROR_ENGINE_FAILED = "engine_failed"  # a step broke; the engine takes no more requests
ERROR_ENGINE_STOPPED = "engine_stopped"  # the engine was stopped before the request ended
ERROR_MODEL_FILE_CHANGED = "model_file_changed"  # the mapped weights changed or could not be read


def next_state(state: State, trigger: Trigger) -> State:
    """The state after `trigger`; a transition that is not in the table is our own mistake (RuntimeError)."""
    try:
        return TRANSITIONS[state][trigger]
    except KeyError:
        raise RuntimeError(f"a {state.value} request cannot take {trigger.value!r}") from None


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to continue.  Immutable; the engine checks it when it is submitted."""

    id: str  # unique among the requests that have not ended
    prompt_ids: tuple[int, ...] | list[int]  # at least one token
    max_tokens: int  # tokens to generate at most, at least 1
    sampling: SamplingParams = SamplingParams()  # noqa: RUF009  frozen
    stop_token_ids: frozenset[int] = frozenset()  # tokens that end the answer; empty: only max_tokens does
    deadline: float | None = None  # time.monotonic() seconds; None: no deadline
    constraint: TokenConstraint | None = None  # structured output; this request's own
    # Requests share computed prefixes only within a scope; the services set it from the caller's API key.
    cache_scope: str = ""
    speculate: bool = True  # False: do not guess tokens for this request, whatever the engine's setting
    # Alternatives to report with the log-probability of each prompt token, 0 to 20; None: none.  The whole prompt is computed then.
    prompt_logprobs: int | None = None


class TokenEvent(NamedTuple):
    """One generated token.  The stop token that ends an answer is counted but not reported.

    A tuple, because there is one for each token: a frozen dataclass takes four times as long to make.
    """

    request_id: str
    token_id: int
    logprob: float | None  # of the raw logits; None unless the request asked for log-probabilities
    top: tuple[tuple[int, float], ...]  # (token id, log-probability), best first


class PromptEvent(NamedTuple):
    """Prompt tokens whose log-probability is known now; the first token of a prompt has none."""

    request_id: str
    start: int  # index in the prompt of the first of them
    logprobs: tuple[float, ...]  # of the raw logits, one for each token
    tops: tuple[tuple[tuple[int, float], ...], ...]  # (token id, log-probability) for each token, best first


@dataclass(frozen=True, slots=True)
class FinishEvent:
    """The last event of a request."""

    request_id: str
    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int  # sampled tokens, the stop token included
    queue_ms: float  # from submission to a session
    prefill_ms: float  # from there to the first token
    decode_ms: float  # from there to the end
    error: str | None  # one of the ERROR_ words when the reason is FAILED
    cached_tokens: int = 0  # prompt tokens whose keys and values were in the arena already
    drafted_tokens: int = 0  # tokens of the answer that were guessed and checked
    accepted_tokens: int = 0  # of these, guesses that the model confirmed


Event = TokenEvent | PromptEvent | FinishEvent


class Sequence(Progress):
    """A request on its way: its state, its tokens and its pages.  Owned by the scheduler.

    What every token changes is the native part's (runtime/native/progress.h), which does it for all answers of a step at once.

    tokens  [0 ........ num_computed)[num_computed ........ num_known)[num_known ........ limit)
            keys and values in pages  wanted: the next rows            not sampled yet

    Full pages of the computed part are published for others, num_published of them so far.
    """

    __slots__ = (
        "accepted_tokens",
        "admitted_s",
        "arrival",
        "cached_tokens",
        "drafted_tokens",
        "first_token_s",
        "keys",
        "last_step",
        "lease",
        "may_guess",
        "need_pages",
        "num_bypassed",
        "num_preempted",
        "num_scored",
        "prompt_tokens",
        "request",
        "sampler",
        "scorers",
        "state",
        "submitted_s",
        "token_items",
        "tokens",
    )

    def __init__(
        self, request: Request, sampler: Any, *, limit_tokens: int, page_tokens: int, submitted_s: float
    ) -> None:
        """`limit_tokens`: known tokens at which it ends; `page_tokens` sizes its worst case in pages."""
        super().__init__(
            # Its tokens are told without log-probabilities, and nothing but the model says which they are.
            is_plain=request.constraint is None and request.sampling.top_logprobs is None,
            limit_tokens=limit_tokens,
            page_tokens=page_tokens,
            stop_ids=list(request.stop_token_ids),
        )
        self.request = request
        self.sampler = sampler  # runtime._native.Sampler or what stands for it in a test
        self.scorers: list[Any] | None = (
            None  # report the alternatives of prompt tokens, where they are wanted
        )
        self.num_scored = 1  # prompt tokens whose log-probability was told, or is none
        self.state = State.WAITING
        self.prompt_tokens = len(request.prompt_ids)
        self.need_pages = -(-limit_tokens // page_tokens)
        self.lease: Lease | None = None
        self._keep(np.array(request.prompt_ids, np.int32))
        self.num_known = self.prompt_tokens
        self.may_guess = False  # it gets a copier with its first token
        self.keys: list[bytes] = []  # root and keys of full pages (runtime/prefix.py); empty: shares nothing
        self.cached_tokens = 0
        self.drafted_tokens = self.accepted_tokens = 0
        self.arrival = 0  # its number in the order of arrival
        self.last_step = 0  # number of the last step with a row of it that had none for some others
        self.num_preempted = 0  # times that it gave its session back
        self.num_bypassed = 0  # later requests that were admitted before this one
        self.submitted_s = submitted_s
        self.admitted_s: float | None = None
        self.first_token_s: float | None = None

    @property
    def is_scoring(self) -> bool:
        """True: it computes all rows of its prompt, because their log-probabilities are wanted."""
        return self.scorers is not None and self.num_scored < self.prompt_tokens

    @property
    def num_wanted(self) -> int:
        """Tokens that are known and not computed: at least 1 while running."""
        return self.num_known - self.num_computed

    def move(self, trigger: Trigger) -> None:
        """Take a transition of the table."""
        self.state = next_state(self.state, trigger)
        self.is_running = self.state is State.RUNNING

    def admit(self, lease: Lease, now_s: float) -> None:
        """Enter a session: from here on it holds `lease` and room for all its tokens."""
        self.move(Move.ADMIT)
        self.lease = lease
        if self.admitted_s is not None:
            return  # it was here before
        self.admitted_s = now_s
        tokens = np.empty(self.limit_tokens, np.int32)
        tokens[: self.prompt_tokens] = self.tokens
        self._keep(tokens)

    def preempt(self) -> None:
        """Leave the session, whose lease the caller has released: all known tokens are to be computed again."""
        self.move(Move.PREEMPT)
        self.lease = None
        self.num_computed = self.num_published = self.paged_tokens = 0
        self.num_preempted += 1
        self.num_bypassed += 1

    def skip(self, n_tokens: int) -> None:
        """Its next tokens are in pages that it shares: they count as computed."""
        self.num_computed += n_tokens
        if not self.num_preempted:  # after that it finds its own pages
            self.cached_tokens += n_tokens

    def append(self, token_id: int, now_s: float) -> None:
        """Add a sampled token, which the next step has to compute."""
        self.append_token(token_id)
        if self.first_token_s is None:
            self.first_token_s = now_s
            if self.may_guess:
                self.copier = Copier(self.tokens, self.num_known)

    def finish(self, reason: FinishReason, now_s: float, error: str | None = None) -> FinishEvent:
        """End it and say so; the lease stays for the caller to release."""
        self.move(reason)
        admitted_s = self.admitted_s if self.admitted_s is not None else now_s
        first_token_s = self.first_token_s if self.first_token_s is not None else now_s
        return FinishEvent(
            request_id=self.request.id,
            reason=reason,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            queue_ms=1e3 * (admitted_s - self.submitted_s),
            prefill_ms=1e3 * (first_token_s - admitted_s),
            decode_ms=1e3 * (now_s - first_token_s),
            error=error,
            cached_tokens=self.cached_tokens,
            drafted_tokens=self.drafted_tokens,
            accepted_tokens=self.accepted_tokens,
        )

    def _keep(self, tokens: npt.NDArray[np.int32]) -> None:
        """`tokens`: (prompt_tokens,) until it is admitted, (limit_tokens,) from then on."""
        self.hold(tokens)
        self.tokens, self.token_items = tokens, items(tokens)
