"""Which sequence advances by how many tokens in the next step.

The scheduler is a synchronous object without clock, I/O or model: times come in as arguments, and a test can drive it
with a fake model.  It knows no prefill and no decode.  Every running sequence has known tokens (prompt and sampled) and
computed ones, and wants the second to catch up with the first:

1. Sequences that want one token go first.  These are the answers being generated, and nobody waits for a prompt.
2. Sequences that want more (prompts) share the rest of the row budget, the one with the fewest tokens to go first, with
   a part for the one that was admitted first (runtime/prompt_shares.py).
3. Waiting requests are admitted in order of arrival as soon as a session is free and the arena can promise their worst
   case.  A request that does not fit yet may be passed by smaller ones, `max_bypass` times at most; then all wait for it.
   Where one that stays within its share does not fit, requests that borrowed beyond theirs wait again, the youngest first:
   idle pages are lent, guarantees hold.  That happens to a request once at most, counts as being passed,
   and it finds most of its pages again.

A prompt's pages that somebody computed before are not computed again (runtime/page_sharing.py): they are found at admission
and, for prompts that come in at the same time, page by page while the first of them computes.  The last prompt token is
always computed, because its logits are wanted.

Only a sequence whose last known token is in the step needs logits, and only for that row and the guesses behind it
(runtime/speculation.py), which steps without prompts may carry.  Guessed tokens stand behind the known ones; those that
the model confirms become known and computed at once, and the rows of the others are computed again.  Whatever ends a sequence
releases its pages at once, so before the next step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from runtime._native import LEFT_PAGE_FULL, LEFT_UNTAKEN, advance_all, count_ready
from runtime.continuation import confirm_draft, extend
from runtime.drafts import Drafts
from runtime.pacing import StepCosts
from runtime.page_sharing import PageSharing
from runtime.pages import PagePool
from runtime.prefix import PrefixKeys
from runtime.prompt_scores import prompt_event
from runtime.prompt_shares import share_among_prompts
from runtime.request import (
    ERROR_NON_FINITE_LOGITS,
    Event,
    FinishEvent,
    FinishReason,
    Request,
    Sequence,
    State,
    TokenEvent,
)
from runtime.step_batch import StepBatch
from runtime.step_plan import StepPlan, StepResult

_MAX_PREEMPTIONS = 1  # of one request


@dataclass(slots=True)
class Counts:
    """What was done since the start."""

    generated_tokens: int = 0  # sampled, or forced by a constraint
    cache_queried_tokens: int = 0  # prompt tokens of admitted requests
    cache_hit_tokens: int = 0  # of these, tokens that were not computed
    preemptions: int = 0  # requests that gave borrowed pages back
    drafts: int = 0  # rows of answers that had guesses behind them
    drafted_tokens: int = 0  # guesses that were checked
    accepted_tokens: int = 0  # of these, guesses that the model confirmed


class Scheduler:
    """Owns every sequence from submission to its FinishEvent, and the page pool.  Not thread-safe."""

    def __init__(
        self,
        pool: PagePool,
        *,
        page_tokens: int,
        context_tokens: int,
        max_step_rows: int,
        max_bypass: int = 8,
        prefix: PrefixKeys | None = None,
        costs: StepCosts | None = None,
    ) -> None:
        """`context_tokens` limits one sequence; `max_step_rows` limits one step; buffers for both are taken here.

        `prefix` makes the keys under which pages are shared; None: every request computes all of its tokens.
        `costs` says what a step of some rows takes, by which guesses are chosen; None: nothing is guessed.
        """
        if page_tokens < 1 or context_tokens < 1 or max_step_rows < 1 or max_bypass < 0:
            raise ValueError(
                f"page_tokens {page_tokens}, context_tokens {context_tokens}, max_step_rows {max_step_rows}"
                f" and max_bypass {max_bypass} must be at least 1, 1, 1 and 0"
            )
        self.pool = pool
        self.page_tokens = page_tokens
        self.context_tokens = context_tokens
        self.max_step_rows = max_step_rows
        self.max_bypass = max_bypass
        self.counts = Counts()
        self._sharing = PageSharing(pool, prefix, page_tokens)
        self._drafts = None if costs is None else Drafts(costs)
        self._num_steps = 0
        self._num_arrived = 0
        self.next_deadline_s = math.inf  # no request's comes before it
        self._may_admit = False  # something changed since nobody could be admitted
        self._waiting: dict[str, Sequence] = {}  # request id -> sequence, in order of arrival
        self._running: list[Sequence] = []  # in order of admission
        self._by_id: dict[str, Sequence] = {}  # request id -> waiting or running sequence
        self._batch = StepBatch(pool, page_tokens, context_tokens, max_step_rows)

    # For the engine: what is there.

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def has_work(self) -> bool:
        return bool(self._by_id)

    @property
    def num_ready(self) -> int:
        """Running sequences that want one token only."""
        return count_ready(self._running)

    @property
    def has_prompts(self) -> bool:
        """Whether the next step may hold rows of prompts: of running sequences, or of one that is admitted."""
        return bool(self._waiting) or self.num_ready < len(self._running)

    @property
    def step_rows(self) -> tuple[int, int]:
        """(prompt rows, rows of answers) of the scheduled step."""
        return self._batch.prompt_rows, self._batch.total_rows - self._batch.prompt_rows

    # For the engine: what changes.

    def prepare(
        self, request: Request, sampler: Any, now_s: float, scorers: list[Any] | None = None
    ) -> Sequence:
        """A sequence for `add`.  Reads constants only, so any thread may do this part, which copies the prompt.

        `scorers`: those of runtime/prompt_scores.py, for a request that wants its prompt's log-probabilities.
        """
        if not request.prompt_ids or request.max_tokens < 1:
            raise ValueError(f"request {request.id!r} has no prompt or wants no tokens")
        if len(request.prompt_ids) >= self.context_tokens:
            raise ValueError(f"request {request.id!r} can never fit")
        sequence = Sequence(
            request,
            sampler,
            limit_tokens=min(len(request.prompt_ids) + request.max_tokens, self.context_tokens),
            page_tokens=self.page_tokens,
            submitted_s=now_s,
        )
        sequence.scorers = scorers
        sequence.may_guess = self._drafts is not None and self._drafts.suit(request)
        self._sharing.begin(sequence)
        return sequence

    def add(self, sequence: Sequence) -> None:
        """Queue a prepared sequence.  The caller has checked that it can ever fit; ValueError where it has not."""
        id_ = sequence.request.id
        if id_ in self._by_id:
            raise ValueError(f"request id {id_!r} is in use")
        if sequence.need_pages > self.pool.n_pages:
            raise ValueError(f"request {id_!r} can never fit")
        self._num_arrived += 1
        sequence.arrival = self._num_arrived
        self._waiting[id_] = self._by_id[id_] = sequence
        if sequence.request.deadline is not None:
            self.next_deadline_s = min(self.next_deadline_s, sequence.request.deadline)
        self._may_admit = True

    def cancel(self, request_id: str, now_s: float) -> FinishEvent | None:
        """End a request between two steps; None where it has ended already or was never there."""
        sequence = self._by_id.get(request_id)
        return None if sequence is None else self._finish(sequence, FinishReason.CANCELLED, now_s)

    def expire(self, now_s: float) -> list[Event]:
        """End every request whose deadline has come, also halfway through its prompt."""
        if now_s < self.next_deadline_s:
            return []
        due = [
            sequence
            for sequence in self._by_id.values()
            if sequence.request.deadline is not None and sequence.request.deadline <= now_s
        ]
        events: list[Event] = [self._finish(sequence, FinishReason.DEADLINE, now_s) for sequence in due]
        deadlines = [sequence.request.deadline for sequence in self._by_id.values()]
        self.next_deadline_s = min((each for each in deadlines if each is not None), default=math.inf)
        return events

    def fail_waiting(self, error: str, now_s: float) -> list[Event]:
        """End every request that had no session yet."""
        new = [sequence for sequence in self._waiting.values() if sequence.admitted_s is None]
        return self._fail(new, error, now_s)

    def fail_all(self, error: str, now_s: float) -> list[Event]:
        """End every request, also those of a scheduled step that will never be applied."""
        self._batch.clear()
        return self._fail(list(self._by_id.values()), error, now_s)

    def schedule(self, row_budget: int, now_s: float) -> StepPlan | None:
        """Admit what fits and plan a step of at most `row_budget` rows; None where nothing runs.

        The plan is made of views that are valid until the next call; `apply` must come before it.
        """
        if self._batch.is_scheduled:
            raise RuntimeError("the scheduled step was not applied")
        self._admit(now_s)
        running = self._running
        if not running:
            return None
        row_budget = max(1, min(row_budget, self.max_step_rows))
        if len(running) <= row_budget and count_ready(running) == len(running):
            return self._plan_drafts(row_budget) or self._batch.plan(dict.fromkeys(running, 1))
        return self._batch.plan(self._share_rows(running, row_budget))

    def schedule_again(self) -> StepPlan | None:
        """The step before with new tokens, as `schedule` would plan it; None where that is to be asked.

        Nearly all steps are of answers alone, which differ by one token each; while Python plans a step, nothing computes.
        """
        if self._waiting and self._may_admit:
            return None
        batch = self._batch
        again = None if batch.is_scheduled else batch.plan_again(self._running)
        if again is None:
            return None
        plan, has_guess = again
        return (has_guess and self._plan_drafts(self.max_step_rows)) or plan

    def apply(self, result: StepResult, now_s: float) -> list[Event]:
        """Take in what the planned step found: tokens, and the ends that they bring."""
        batch = self._batch
        if batch.is_plain:
            return self._apply_plain(result, now_s)
        for sequence, n_rows in zip(batch.sequences, batch.num_rows, strict=True):
            if sequence.state is not State.RUNNING:
                raise RuntimeError(f"a {sequence.state.value} request was in a step")
            sequence.num_computed += n_rows - sequence.num_drafted
        taken: list[
            tuple[Sequence, int, int]
        ] = []  # with the first entry of `result` that counts, and their number
        for sequence, index in zip(batch.sampled, batch.sampled_at, strict=True):
            num_taken = 1
            if sequence.num_drafted:
                num_taken += self._confirm_draft(sequence, result, index)
            taken.append((sequence, index, num_taken))
        scored = batch.scored
        for sequence in batch.sequences:
            self._publish(sequence)
        batch.clear()
        events: list[Event] = []
        for one in scored:
            told = prompt_event(one, result)
            if told is not None:
                events.append(told)
            else:
                events.append(self._finish(one.sequence, FinishReason.FAILED, now_s, ERROR_NON_FINITE_LOGITS))
        for sequence, index, num_taken in taken:
            if sequence.state is State.DONE:
                continue
            entries = range(index, index + num_taken)
            self.counts.generated_tokens += self._extend(sequence, result, entries, events, now_s)
        return events

    def _apply_plain(self, result: StepResult, now_s: float) -> list[Event]:
        """The same for a step of answers alone, one row each: natively, but for what comes now and then."""
        batch = self._batch
        sequences = batch.sequences
        told: list[Event]
        told, left = advance_all(sequences, batch.request_ids, result.token_ids, TokenEvent)
        batch.clear()
        if not left:
            self.counts.generated_tokens += len(sequences)
            return told
        events: list[Event] = []
        num_told = num_generated = 0
        for index, bits in left:
            sequence = sequences[index]
            if bits & LEFT_PAGE_FULL:
                self._publish(sequence)
            if bits & LEFT_UNTAKEN:
                events += told[num_told:index]
                num_generated += index - num_told
                num_told = index + 1
                num_generated += self._extend(sequence, result, range(index, index + 1), events, now_s)
        events += told[num_told:]
        self.counts.generated_tokens += num_generated + len(sequences) - num_told
        return events

    def _extend(
        self, sequence: Sequence, result: StepResult, entries: range, events: list[Event], now_s: float
    ) -> int:
        """Add the tokens of these entries, up to the one that ends the sequence; returns how many tokens it got."""
        before = sequence.completion_tokens
        for index in entries:
            ending = extend(sequence, result, index, events, now_s)
            if ending is not None:
                events.append(self._finish(sequence, ending[0], now_s, ending[1]))
                break
        return sequence.completion_tokens - before

    def _confirm_draft(self, sequence: Sequence, result: StepResult, index: int) -> int:
        num_accepted = confirm_draft(sequence, result, index)
        self.counts.drafts += 1
        self.counts.drafted_tokens += sequence.num_drafted
        self.counts.accepted_tokens += num_accepted
        return num_accepted

    def _publish(self, sequence: Sequence) -> None:
        self._may_admit |= self._sharing.publish(sequence)

    # Inside.

    def _admit(self, now_s: float) -> None:
        """Move waiting requests into free sessions, by rule 3."""
        while self._may_admit and self._waiting and self.pool.has_session:
            passed: list[Sequence] = []
            for sequence in self._waiting.values():
                shared = self._sharing.match(sequence)
                if self.pool.fits(sequence.need_pages, shared) or self._reclaim(sequence.need_pages, shared):
                    break
                if sequence.num_bypassed >= self.max_bypass:
                    self._may_admit = False
                    return
                passed.append(sequence)
            else:
                self._may_admit = False
                return
            for other in passed:
                other.num_bypassed += 1
            del self._waiting[sequence.request.id]
            sequence.admit(self.pool.reserve(sequence.need_pages, shared), now_s)
            self.counts.cache_hit_tokens += self._sharing.admitted(sequence, len(shared))
            if not sequence.num_preempted:
                self.counts.cache_queried_tokens += sequence.prompt_tokens
            self._running.append(sequence)

    def _reclaim(self, need_pages: int, shared: list[int]) -> bool:
        """Make room for a request within its share, where borrowers have what it takes."""
        borrowers = [
            sequence
            for sequence in reversed(self._running)
            if sequence.need_pages > self.pool.share_pages
            and sequence.num_preempted < _MAX_PREEMPTIONS
            and sequence.num_bypassed < self.max_bypass
        ]
        leases = [sequence.lease for sequence in borrowers if sequence.lease is not None]
        num_released = self.pool.borrowers_give(need_pages, shared, leases)
        if num_released is None:
            return False
        for sequence in borrowers[:num_released]:
            assert sequence.lease is not None
            self._running.remove(sequence)
            self.pool.release(sequence.lease)
            sequence.preempt()
            self._waiting[sequence.request.id] = sequence
            self.counts.preemptions += 1
        if num_released:  # each to its place in the order of arrival
            arrived = sorted(self._waiting.values(), key=lambda sequence: sequence.arrival)
            self._waiting = {sequence.request.id: sequence for sequence in arrived}
        return True

    def _plan_drafts(self, row_budget: int) -> StepPlan | None:
        """A step of all running sequences, each of which wants one token, with guesses; None where none pays."""
        drafts, running = self._drafts, self._running
        counts = None if drafts is None else drafts.choose(running, row_budget)
        if drafts is None or counts is None:
            return None
        rows = {each: 1 + drafts.place(each, count) for each, count in zip(running, counts, strict=True)}
        return self._batch.plan(rows)

    def _share_rows(self, running: list[Sequence], row_budget: int) -> dict[Sequence, int]:
        """Rows of each sequence of the step, by rules 1 and 2."""
        ready: list[Sequence] = []
        behind: list[Sequence] = []
        for sequence in running:
            if sequence.num_known - sequence.num_computed > 1:
                self.counts.cache_hit_tokens += self._sharing.adopt(sequence)
                (ready if sequence.num_wanted == 1 else behind).append(sequence)
            else:
                ready.append(sequence)
        # One row is kept for prompts, so that they move even where answers alone would fill the step.
        num_ready = min(len(ready), row_budget - 1 if behind and row_budget > 1 else row_budget)
        if num_ready < len(ready):  # those that waited longest
            ready.sort(key=lambda sequence: sequence.last_step)
            del ready[num_ready:]
            self._num_steps += 1
            for sequence in ready:
                sequence.last_step = self._num_steps
        rows = dict.fromkeys(ready, 1)
        if behind:
            rows |= share_among_prompts(behind, row_budget - num_ready, self.page_tokens)
        return rows

    def _fail(self, sequences: Iterable[Sequence], error: str, now_s: float) -> list[Event]:
        return [self._finish(sequence, FinishReason.FAILED, now_s, error) for sequence in sequences]

    def _finish(
        self, sequence: Sequence, reason: FinishReason, now_s: float, error: str | None = None
    ) -> FinishEvent:
        """End a sequence wherever it is and give back what it held."""
        if self._batch.is_scheduled:
            raise RuntimeError("a request cannot end inside a step")
        event = sequence.finish(reason, now_s, error)
        self._batch.forget()
        del self._by_id[sequence.request.id]
        self._may_admit = True  # its place in the queue or its pages
        if sequence.lease is None:
            del self._waiting[sequence.request.id]
        else:
            self._running.remove(sequence)
            # Where the logits were no numbers, keys and values may be none either.
            self.pool.release(sequence.lease, discard=error == ERROR_NON_FINITE_LOGITS)
        return event
