"""The lines of all models in memory: one bound for each, wherever its requests come from."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from daemon.access.line import Line


class Lines:
    """Makes the line in front of a model when it is first asked for; it goes with the model."""

    def __init__(
        self, *, max_waiting: int = 64, max_waiting_tokens: int = 262_144, max_wait_s: float = 600.0
    ) -> None:
        self._max_waiting = max_waiting
        self._max_waiting_tokens = max_waiting_tokens
        self._max_wait_s = max_wait_s
        self._lines: WeakKeyDictionary[object, Line] = WeakKeyDictionary()

    def of(self, model: object, *, max_running: int) -> Line:
        """The line in front of a model in memory (whatever object lives as long as it); `max_running` sessions run at once."""
        line = self._lines.get(model)
        if line is None:
            line = self._lines[model] = Line(
                max_running=max_running,
                max_waiting=self._max_waiting,
                max_waiting_tokens=self._max_waiting_tokens,
                max_wait_s=self._max_wait_s,
            )
        return line
