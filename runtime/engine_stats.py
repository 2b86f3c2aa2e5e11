"""What an engine has done, and does now: for metrics and the watchdog."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from runtime.pacing import LiveRates
from runtime.pages import PagePool
from runtime.scheduler import Scheduler

_MAX_UNCOUNTED = 4096  # steps; older ones lie outside of the window of the rates


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of the engine, for metrics and the watchdog."""

    running: int  # requests that hold a session
    waiting: int  # requests that wait for one
    pages_total: int  # KV pages of the arena
    pages_used: int  # pages that running requests hold, shared ones once
    pages_reserved: int  # pages promised to running requests, used ones included
    pages_cached: int  # pages that nobody holds and that keep a prefix for later requests
    prompt_tokens_total: int  # prompt tokens computed since the start
    generation_tokens_total: int  # tokens sampled since the start
    cache_queried_tokens_total: int  # prompt tokens of admitted requests that the prefix cache was asked for
    cache_hit_tokens_total: int  # of these, tokens whose keys and values were there
    preemptions_total: int  # requests that gave borrowed pages back and waited again
    drafts_total: int  # rows of answers that had guesses behind them
    drafted_tokens_total: int  # guessed tokens that were checked
    accepted_tokens_total: int  # of these, tokens that the model confirmed
    steps_total: int
    prompt_tokens_per_s: float  # over the last 5 seconds
    generation_tokens_per_s: float
    last_step_ms: float
    last_step_rows: int
    heartbeat_s: float  # time.monotonic() of the last pass of the loop; now, while the engine is idle
    failed: str | None  # why the engine failed


class StepCounters:
    """Counts the steps of one engine.

    Only the engine's thread counts, without a lock, because every thread waits while it does.  Readers, which hold the
    engine's lock against each other, may see the counters of a step a moment apart.
    """

    def __init__(self) -> None:
        self._rates = LiveRates()
        # Steps that nobody asked for since, counted when somebody does: (end, seconds, prompt rows, tokens).
        self._uncounted: deque[tuple[float, float, int, int]] = deque(maxlen=_MAX_UNCOUNTED)
        self._steps = 0
        self._prompt_tokens = 0
        self._generation_tokens = 0
        self._last_step_ms = 0.0
        self._last_step_rows = 0

    def count(self, *, end_s: float, step_s: float, prompt_rows: int, rows: int, tokens: int) -> None:
        """A step of `rows` rows that took `step_s` and gave `tokens` tokens."""
        self._steps += 1
        self._prompt_tokens += prompt_rows
        self._generation_tokens += tokens
        self._last_step_ms, self._last_step_rows = 1e3 * step_s, rows
        self._uncounted.append((end_s, step_s, prompt_rows, tokens))

    def stats(
        self,
        scheduler: Scheduler,
        pool: PagePool,
        *,
        num_inbox: int,
        now_s: float,
        heartbeat_s: float,
        failed: str | None,
    ) -> EngineStats:
        """A snapshot; `num_inbox` requests have not reached the scheduler yet."""
        while self._uncounted:
            self._rates.count(*self._uncounted.popleft())
        prompt_per_s, generation_per_s = self._rates.rates(now_s)
        counts, pages = scheduler.counts, pool.statistics()
        return EngineStats(
            running=scheduler.num_running,
            waiting=scheduler.num_waiting + num_inbox,
            pages_total=pages.pages_total,
            pages_used=pages.pages_used,
            pages_reserved=pages.pages_reserved,
            pages_cached=pages.pages_cached,
            prompt_tokens_total=self._prompt_tokens,
            generation_tokens_total=self._generation_tokens,
            cache_queried_tokens_total=counts.cache_queried_tokens,
            cache_hit_tokens_total=counts.cache_hit_tokens,
            preemptions_total=counts.preemptions,
            drafts_total=counts.drafts,
            drafted_tokens_total=counts.drafted_tokens,
            accepted_tokens_total=counts.accepted_tokens,
            steps_total=self._steps,
            prompt_tokens_per_s=prompt_per_s,
            generation_tokens_per_s=generation_per_s,
            last_step_ms=self._last_step_ms,
            last_step_rows=self._last_step_rows,
            heartbeat_s=heartbeat_s,
            failed=failed,
        )
