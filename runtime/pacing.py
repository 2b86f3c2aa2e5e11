"""What a step costs on this machine, how many rows the next one may have, and how fast the last seconds were.

All of it is plain arithmetic on numbers that the engine measures; nothing here reads a clock.
"""

from __future__ import annotations

import math

_RISING, _FALLING = 0.5, 0.1  # weight of the newest measurement where it is dearer, or cheaper, than thought
_MIN_PROMPT_ROWS = 4  # of a step with answers: a prompt always moves
_MIN_SOLO_ROWS = 16  # of a step without: below this, reading the weights costs more than computing the rows
_SMALLEST_CLASS, _NUM_CLASSES = 2, 15  # of numbers of prompt rows: up to 4, and up to 2^14 and more
_FIRST_ROWS = 64  # rows of a prompt-only step before anything was measured
_SOLO_FACTOR = 4  # a step that delays nobody's answer may take this many budgets
# A machine is noisy and a prompt's rows grow dearer with its depth: steps are planned to this part of their limit.
_PLANNED_SHARE = 0.6
# Where answers alone take long already, a prompt may make a step this much longer than they are.
_SLOWDOWN = 3.0

_MAX_ROWS = 64  # decode rows whose cost is followed one by one
_ROW_COST = 0.3  # of a step with one row: what another row adds, before it was measured
_LEARNING = 4  # measurements of a number of rows before it is trusted
_SPEED_WEIGHT = 0.2
_SHAPE_WEIGHT = 0.02
_OUTLIER = 2.5  # one measurement may not say more than this many times what was thought
_FORGET_STEPS = 256
_MAX_NEW = 16  # measurements that wait for somebody who asks


class StepCosts:
    """Milliseconds of a step by its decode rows, followed while the machine's speed changes.

    cost(n) = speed * shape(n).  The speed (`_unit_ms`, a step of one row) follows quickly, because a neighbour on the
    machine slows everything alike; the shape changes slowly.  Numbers of rows that were not seen lately lie on the line
    between those that were.

    Measurements are worked in when a cost is asked for, or some have come together: taking one in stands between two steps,
    while nothing computes, and most steps ask for no cost.
    """

    def __init__(self) -> None:
        self._new: list[tuple[int, float]] = []  # (decode rows, milliseconds) not worked in yet, oldest first
        self._unit_ms: float | None = None
        self._seen = [0] * (_MAX_ROWS + 1)  # measurements of each number of rows, since it was forgotten
        self._last = [0] * (_MAX_ROWS + 1)  # number of the step that measured it last
        self._shape = [1.0 + _ROW_COST * (n - 1) for n in range(_MAX_ROWS + 1)]
        self._num_steps = 0
        self._anchor = 1  # the smallest number of rows that was seen lately

    @property
    def measured(self) -> bool:
        return self._unit_ms is not None or bool(self._new)

    def decode_ms(self, num_rows: int) -> float:
        """A step of `num_rows` decode rows, at least 1; in units of a one-row step before anything was measured."""
        if self._new:
            self._work_in()
        unit_ms = self._unit_ms or 1.0
        if num_rows > _MAX_ROWS:
            return unit_ms * self._shape[_MAX_ROWS] * num_rows / _MAX_ROWS
        return unit_ms * self._shape[max(num_rows, 1)]

    def measure(self, num_rows: int, step_ms: float) -> None:
        """Take in a step that had decode rows only."""
        self._new.append((num_rows, step_ms))
        if len(self._new) >= _MAX_NEW:
            self._work_in()

    def _work_in(self) -> None:
        new, self._new = self._new, []
        for num_rows, step_ms in new:
            self._add(num_rows, step_ms)

    def _add(self, num_rows: int, step_ms: float) -> None:
        n = min(num_rows, _MAX_ROWS)
        step_ms *= n / num_rows
        self._num_steps += 1
        if self._unit_ms is None:
            self._unit_ms = max(step_ms, 1e-3) / self._shape[n]
        unit_ms = self._unit_ms
        ratio = min(max(step_ms, 1e-3) / unit_ms, _OUTLIER * self._shape[n])
        if self._seen[n] < _LEARNING:
            self._shape[n] += (ratio - self._shape[n]) / (self._seen[n] + 1)
        else:
            if n != self._anchor:  # whose cost is the speed, by definition
                self._shape[n] += _SHAPE_WEIGHT * (ratio - self._shape[n])
            self._unit_ms += _SPEED_WEIGHT * (unit_ms * ratio / self._shape[n] - unit_ms)
        self._last[n] = self._num_steps
        self._seen[n] += 1
        if self._seen[n] <= _LEARNING or self._num_steps % _FORGET_STEPS == 0:
            self._interpolate()

    def _interpolate(self) -> None:
        """Forget what is old, and draw lines through the rest."""
        known = []
        for n in range(1, _MAX_ROWS + 1):
            if self._seen[n] and self._last[n] < self._num_steps - _FORGET_STEPS:
                self._seen[n] = 0
            if self._seen[n]:
                known.append(n)
        before, cost = 1, 1.0
        if known:
            self._anchor = known[0]
            cost = self._shape[1] if self._anchor == 1 else 1.0
        for n in known:
            self._line(before, n, cost, self._shape[n])
            before, cost = n, self._shape[n]
        slope = (cost - 1.0) / (before - 1) if before > 1 else _ROW_COST
        self._line(before, _MAX_ROWS + 1, cost, cost + max(slope, 0.0) * (_MAX_ROWS + 1 - before))

    def _line(self, begin: int, end: int, begin_cost: float, end_cost: float) -> None:
        for n in range(begin + 1, end):
            self._shape[n] = begin_cost + (end_cost - begin_cost) * (n - begin) / (end - begin)


class PromptCosts:
    """Milliseconds that a row of a prompt adds to a step, by how many of them there are: few cost more each.

    Numbers of rows are told apart by powers of two, from 4 on.  The machine's speed, and the depth of a prompt, change
    all costs alike: what is measured of one moves the others along.
    """

    def __init__(self) -> None:
        self._known: dict[int, float] = {}  # class c: 2^(c-1) < rows <= 2^c
        self._row_ms = [math.inf] * _NUM_CLASSES  # of every class: measured, or as the nearest one that was

    @property
    def measured(self) -> bool:
        return bool(self._known)

    def row_ms(self, num_rows: int) -> float:
        """Of one of so many rows; infinite before any was measured."""
        return self._row_ms[_class_of(num_rows)]

    def rows_within(self, free_ms: float, least: int, most: int) -> int:
        """As many rows as `free_ms` allows, at least `least` and at most `most`."""
        for c in range(_class_of(most), _SMALLEST_CLASS - 1, -1):
            rows = min(int(free_ms / self._row_ms[c]), 1 << c, most)
            if rows > 1 << (c - 1):
                return max(rows, least)
        return least

    def measure(self, num_rows: int, row_ms: float) -> None:
        """Take in what each of `num_rows` rows added."""
        known, c = self._known, _class_of(num_rows)
        before = known.get(c)
        if before is None:
            known[c] = row_ms
        else:
            # Quickly to the careful side: a step that is too long is felt, one that is too short is not.
            weight = _RISING if row_ms > before else _FALLING
            change = 1.0 + weight * (row_ms - before) / before
            known.update({each: change * each_ms for each, each_ms in known.items()})
        nearest = [min(known, key=lambda each: (abs(each - c), -each)) for c in range(_NUM_CLASSES)]
        self._row_ms = [known[each] for each in nearest]


def _class_of(num_rows: int) -> int:
    return min(max((num_rows - 1).bit_length(), _SMALLEST_CLASS), _NUM_CLASSES - 1)


class StepPacer:
    """Turns a time limit into a row budget.

    A step that only decodes costs what StepCosts says; prompt rows come on top, each at what PromptCosts says.
    """

    def __init__(self, step_budget_ms: float, max_step_rows: int) -> None:
        """`step_budget_ms`: how long a step that answers wait for may take."""
        self.step_budget_ms = step_budget_ms
        self.max_step_rows = max_step_rows
        self.costs = StepCosts()
        self.prompt_costs = PromptCosts()

    def row_budget(self, num_decoding: int) -> int:
        """Rows of the next step, the `num_decoding` rows of running answers included.

        Also where nobody decodes a step is kept to a few budgets: a cancelled prompt, a deadline or a newcomer waits
        for the end of it.
        """
        if num_decoding:
            decode_ms = self.costs.decode_ms(num_decoding) if self.costs.measured else 0.0
            free_ms = _PLANNED_SHARE * max(self.step_budget_ms, _SLOWDOWN * decode_ms) - decode_ms
            least = _MIN_PROMPT_ROWS
        else:
            free_ms = self.step_budget_ms * _SOLO_FACTOR
            least = _MIN_SOLO_ROWS
        if self.prompt_costs.measured:
            most = max(least, self.max_step_rows - num_decoding)
            rows = self.prompt_costs.rows_within(free_ms, least, most)
        elif self.costs.measured:  # one row of a prompt costs at most what a step of one row does
            first = _MIN_SOLO_ROWS if num_decoding else _FIRST_ROWS
            rows = min(max(int(free_ms / self.costs.decode_ms(1)), least), first)
        else:
            rows = _MIN_SOLO_ROWS if num_decoding else _FIRST_ROWS
        return min(num_decoding + rows, self.max_step_rows)

    def measured(self, *, decode_rows: int, prompt_rows: int, step_ms: float) -> None:
        """Take in a step that had these rows and took `step_ms`."""
        if not prompt_rows:
            self.costs.measure(decode_rows, step_ms)
        elif prompt_rows >= (_MIN_PROMPT_ROWS if decode_rows else _MIN_SOLO_ROWS):
            decode_ms = self.costs.decode_ms(decode_rows) if decode_rows and self.costs.measured else 0.0
            self.prompt_costs.measure(prompt_rows, max(step_ms - decode_ms, 1e-3) / prompt_rows)


class LiveRates:
    """Tokens per second over about the last `WINDOW_S` seconds, in a fixed ring of counters."""

    WINDOW_S = 5.0
    _NUM_BUCKETS = 10
    _BUCKET_S = WINDOW_S / _NUM_BUCKETS

    def __init__(self) -> None:
        self._epochs = [-1] * self._NUM_BUCKETS  # which stretch of time a bucket counts
        self._epoch = -self._NUM_BUCKETS  # the newest of them
        self._prompt = [0] * self._NUM_BUCKETS
        self._generated = [0] * self._NUM_BUCKETS
        self._busy_since_s = -math.inf
        self._step_s = 0.0

    def count(self, now_s: float, step_s: float, prompt_tokens: int, generated_tokens: int) -> None:
        """Count the tokens of a step that took `step_s` and ended at `now_s`."""
        epoch = int(now_s / self._BUCKET_S)
        index = epoch % self._NUM_BUCKETS
        if epoch - self._epoch >= self._NUM_BUCKETS:  # nothing was computed inside the window
            self._busy_since_s = now_s - step_s
        self._epoch = epoch
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
