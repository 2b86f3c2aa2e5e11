"""How many rows the next step may have, and how fast the last seconds were.

Both are plain arithmetic on numbers that the engine measures; neither reads a clock.
"""

from __future__ import annotations

import math

_SMOOTHING = 0.2  # weight of the newest measurement
_MIN_PROMPT_ROWS = 16  # below this, reading the weights costs more than computing the rows
_FIRST_ROWS = 64  # rows of a prompt-only step before anything was measured
_SOLO_FACTOR = 4  # a step that delays nobody's answer may take this many budgets


class StepPacer:
    """Turns a time budget into a row budget.

    A step that only decodes costs mostly the reading of the weights, whatever its rows; prompt rows come on top, each
    at about the same cost.  So two numbers are followed: `decode_ms`, a step without prompts, and `prompt_row_ms`,
    what one prompt row adds.
    """

    def __init__(self, step_budget_ms: float, max_step_rows: int) -> None:
        self.step_budget_ms = step_budget_ms
        self.max_step_rows = max_step_rows
        self.decode_ms: float | None = None
        self.prompt_row_ms: float | None = None

    def row_budget(self, num_decoding: int) -> int:
        """Rows of the next step, the `num_decoding` rows of running answers included.

        Also where nobody decodes a step is kept to a few budgets: a cancelled prompt, a deadline or a newcomer waits
        for the end of it.
        """
        if num_decoding:
            free_ms = self.step_budget_ms - (self.decode_ms or 0.0)
        else:
            free_ms = self.step_budget_ms * _SOLO_FACTOR
        # Before a prompt was measured: one of its rows costs at most what a step of one row does.
        row_ms = self.prompt_row_ms or self.decode_ms
        prompt_rows = _FIRST_ROWS if row_ms is None else max(_MIN_PROMPT_ROWS, int(free_ms / row_ms))
        if self.prompt_row_ms is None:
            prompt_rows = min(prompt_rows, _MIN_PROMPT_ROWS if num_decoding else _FIRST_ROWS)
        return min(num_decoding + prompt_rows, self.max_step_rows)

    def measured(self, *, decode_rows: int, prompt_rows: int, step_ms: float) -> None:
        """Take in a step that had these rows and took `step_ms`."""
        if not prompt_rows:
            self.decode_ms = _follow(self.decode_ms, step_ms)
        elif prompt_rows >= _MIN_PROMPT_ROWS:
            added_ms = step_ms - (self.decode_ms or 0.0) if decode_rows else step_ms
            self.prompt_row_ms = _follow(self.prompt_row_ms, max(added_ms, 1e-3) / prompt_rows)


def _follow(average: float | None, value: float) -> float:
    """Exponential moving average that starts at the first value."""
    return value if average is None else average + _SMOOTHING * (value - average)


class LiveRates:
    """Tokens per second over about the last `WINDOW_S` seconds, in a fixed ring of counters."""

    WINDOW_S = 5.0
    _NUM_BUCKETS = 10
    _BUCKET_S = WINDOW_S / _NUM_BUCKETS

    def __init__(self) -> None:
        self._epochs = [-1] * self._NUM_BUCKETS  # which stretch of time a bucket counts
        self._prompt = [0] * self._NUM_BUCKETS
        self._generated = [0] * self._NUM_BUCKETS
        self._busy_since_s = -math.inf
        self._step_s = 0.0

    def count(self, now_s: float, step_s: float, prompt_tokens: int, generated_tokens: int) -> None:
        """Count the tokens of a step that took `step_s` and ended at `now_s`."""
        epoch = int(now_s / self._BUCKET_S)
        index = epoch % self._NUM_BUCKETS
        if not any(self._recent(now_s)):
            self._busy_since_s = now_s - step_s
        if self._epochs[index] != epoch:
            self._epochs[index] = epoch
            self._prompt[index] = self._generated[index] = 0
        self._step_s = step_s
        self._prompt[index] += prompt_tokens
        self._generated[index] += generated_tokens

    def rates(self, now_s: float) -> tuple[float, float]:
        """(prompt, generated) tokens per second; both fall to 0 within the window once nothing is computed."""
        recent = self._recent(now_s)
        # After a pause the time before the first step does not count, or a first second would look slow; a step that
        # is longer than the window counts whole, or it would look fast.
        span_s = max(self._BUCKET_S, min(max(self.WINDOW_S, self._step_s), now_s - self._busy_since_s))
        prompt = sum(count for count, counts in zip(self._prompt, recent, strict=True) if counts)
        generated = sum(count for count, counts in zip(self._generated, recent, strict=True) if counts)
        return prompt / span_s, generated / span_s

    def _recent(self, now_s: float) -> list[bool]:
        """Which buckets lie inside the window."""
        oldest = int(now_s / self._BUCKET_S) - self._NUM_BUCKETS + 1
        return [epoch >= oldest for epoch in self._epochs]
