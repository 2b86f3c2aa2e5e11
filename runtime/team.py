"""How many threads compute a step of answers: all of them, or one less while something else wants a core.

A step ends each of its regions when the last thread has done its part.  Where another process shares a core with one of
the threads, that thread is off the core for milliseconds at a time and the others wait for it: all threads together can
then be slower than one less, which leaves the core to the neighbour.  Neither the load of the machine nor the number of
lost time slices says which is better, so both are tried and the faster one is kept.

Steps are looked at four at a time, because every thread waits while Python looks.

A trial costs a few slow steps.  It is made where steps have become slow, and now and then; the longer it has shown nothing
new, the more rarely.  Only steps with the same rows are compared, and steps with prompts always use all threads: they
are bound by arithmetic, of which every thread has its own.
"""

from __future__ import annotations

import statistics

_TRIAL_STEPS = 4  # of which the first is not counted: threads wake up, or the neighbour moves
_RECENT_STEPS = 4  # of the size in use, that a trial is compared with
_BETTER = 0.93  # a trial changes the size where its steps take at most this part
_SLOW = 1.25  # steps that take this many times as long as lately call for a trial
_LEVEL_WEIGHT = 0.02  # of the newest step in what "lately" means
_FIRST_TRIAL, _LAST_TRIAL = 16, 2048  # steps until a trial of fewer threads, without a cause
_SLOW_TRIAL = 128  # steps between trials that slow steps call for, at most
_LAST_RETURN = 64  # steps until a trial of all threads, at most: the neighbour may have gone


class Team:
    """Chooses a number of threads for each step.  Times come in as arguments."""

    def __init__(self, num_threads: int) -> None:
        """`num_threads` that there are; of one, one is used."""
        self.num_threads = num_threads
        self.size = num_threads  # that steps of answers use, trials apart
        self._rows = 0  # of the steps that are compared
        self._new_ms: list[float] = []  # not looked at yet, of `size` threads
        self._recent_ms: list[float] = []  # newest last, of `size` threads
        self._trial_ms: list[float] | None = None  # of the other size; None: no trial is made
        self._level_ms: float | None = None  # of a step of `_rows` rows and all threads, over a long time
        self._waited = 0  # steps since the last trial
        self._interval = _FIRST_TRIAL

    @property
    def other(self) -> int:
        """The size that is not in use: one less than all, or all."""
        return self.num_threads - 1 if self.size == self.num_threads else self.num_threads

    def choose(self, *, decode_rows: int, prompt_rows: int) -> int:
        """Threads of the next step."""
        if prompt_rows or self.num_threads == 1:
            return self.num_threads
        if decode_rows != self._rows:
            self._rows, self._new_ms, self._recent_ms = decode_rows, [], []
            self._trial_ms = self._level_ms = None
        if self._trial_ms is not None:
            return self.other
        if len(self._new_ms) < _RECENT_STEPS:
            return self.size
        self._look()
        if not self._is_due():
            return self.size
        self._trial_ms, self._waited = [], 0
        return self.other

    def measured(self, *, decode_rows: int, prompt_rows: int, step_ms: float) -> None:
        """Take in a step that ran with the threads that `choose` said."""
        if prompt_rows or self.num_threads == 1 or decode_rows != self._rows:
            return
        if self._trial_ms is not None:
            self._trial_ms.append(step_ms)
            if len(self._trial_ms) == _TRIAL_STEPS:
                self._compare(statistics.median(self._trial_ms[1:]))
            return
        self._new_ms.append(step_ms)

    def _look(self) -> None:
        """Take in the new steps, which are as many as are compared."""
        self._recent_ms, self._new_ms = self._new_ms, []
        self._waited += len(self._recent_ms)
        if self.size < self.num_threads:
            return
        for step_ms in self._recent_ms:
            level_ms = step_ms if self._level_ms is None else self._level_ms
            self._level_ms = min(step_ms, level_ms + _LEVEL_WEIGHT * (step_ms - level_ms))

    def _is_due(self) -> bool:
        """True where a trial may tell something."""
        if self._waited >= self._interval:
            return True
        if (
            self.size < self.num_threads
            or self._level_ms is None
            or self._waited < min(self._interval, _SLOW_TRIAL)
        ):
            return False
        return min(self._recent_ms) > _SLOW * self._level_ms

    def _compare(self, trial_ms: float) -> None:
        self._trial_ms = None
        if trial_ms <= _BETTER * statistics.median(self._recent_ms):
            self.size = self.other
            self._interval = _FIRST_TRIAL
        else:
            last = _LAST_TRIAL if self.size == self.num_threads else _LAST_RETURN
            self._interval = min(2 * self._interval, last)
