"""The place of one model file in the host: who uses it, when it was used last, and when it may go."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from daemon.keep_alive import FOREVER
from daemon.services.folder import ModelEntry
from daemon.services.served import Served, override_template
from daemon.text.template import ChatTemplate
from runtime.memory import MemoryPlan

_MAX_TEMPLATES = 16
_TIMER_EARLY_S = 0.01  # a timer may come a little before its time

WeightsKey = tuple[Path, int, int]


def weights_key(entry: ModelEntry) -> WeightsKey:
    """What makes two names the same model in memory: one version of one file."""
    return (entry.path, entry.modified_ns, entry.size_bytes)


class Slot:
    """One model file that is in memory, or that somebody waits for."""

    def __init__(self, entry: ModelEntry, keep_alive_s: float, on_idle: Callable[[Slot], None]) -> None:
        """`on_idle` is told when the last request has ended, and again when keep_alive is over."""
        self.entry = entry
        self.served: Served | None = None
        self.loading: asyncio.Task[None] | None = None
        self.last_used_s = time.monotonic()
        self.loaded_unix_ms = 0
        self._keep_alive_s = keep_alive_s
        self._on_idle = on_idle
        self._num_preparing = 0  # admitted requests that the engine does not have yet
        self._timer: asyncio.TimerHandle | None = None
        self._templates: dict[str, ChatTemplate | None] = {}  # of names that bring their own

    @property
    def num_preparing(self) -> int:
        """Admitted requests that the engine does not have yet: they wait in line, or are being encoded."""
        return self._num_preparing

    @property
    def num_requests(self) -> int:
        """Requests that were admitted and have not ended."""
        return self._num_preparing + (self.served.bridge.num_open if self.served else 0)

    @property
    def is_idle(self) -> bool:
        """True: in memory, and nobody uses it."""
        return self.served is not None and not self.num_requests

    @property
    def is_expired(self) -> bool:
        """True: idle for as long as keep_alive says."""
        return self.is_idle and time.monotonic() - self.last_used_s >= self._keep_alive_s - _TIMER_EARLY_S

    @property
    def keep_alive_s(self) -> float:
        """Seconds that the model stays after its last request; FOREVER, or 0 for not at all."""
        return self._keep_alive_s

    @keep_alive_s.setter
    def keep_alive_s(self, seconds: float) -> None:
        self._keep_alive_s = seconds

    @property
    def expires_in_s(self) -> float:
        """Seconds until the model goes if nobody asks for it; keep_alive itself while it is in use."""
        if self._keep_alive_s == FOREVER or not self.is_idle:
            return self._keep_alive_s
        return max(0.0, self.last_used_s + self._keep_alive_s - time.monotonic())

    @property
    def plan(self) -> MemoryPlan:
        """The memory plan of the model; only while it is in memory."""
        assert self.served is not None
        plan: MemoryPlan = self.served.model.plan
        return plan

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """One request more, until it ends or its engine has it."""
        self.end_timer()
        self._num_preparing += 1
        self.last_used_s = time.monotonic()
        try:
            yield
        finally:
            self._num_preparing -= 1
            self.touch()

    def begin(self, served: Served) -> None:
        """The model is in memory from now on."""
        self.served = served
        self.loaded_unix_ms = time.time_ns() // 1_000_000
        served.bridge.on_empty = self.touch

    def end(self) -> None:
        """The model is on its way out of memory."""
        if self.served is not None:
            self.served.bridge.on_empty = None
        self.served = None

    def view(self, entry: ModelEntry) -> Served:
        """The model in memory, under the name of `entry` and with its template."""
        assert self.served is not None
        source = entry.overrides.template if entry.overrides is not None else None
        if source is None:
            return self.served if entry == self.served.entry else replace(self.served, entry=entry)
        return replace(self.served, entry=entry, template=self._templates.get(source))

    async def prepare(self, entry: ModelEntry) -> None:
        """Compiles the template that the name brings, once."""
        source = entry.overrides.template if entry.overrides is not None else None
        if source is None or source in self._templates or self.served is None:
            return
        tokenizer = self.served.model.tokenizer
        template = await asyncio.to_thread(override_template, source, tokenizer, entry.name)
        if len(self._templates) >= _MAX_TEMPLATES:
            self._templates.clear()
        self._templates[source] = template

    def touch(self) -> None:
        """A request has ended: notes the time, and sees to it that the model goes when keep_alive is over."""
        self.last_used_s = time.monotonic()
        self.end_timer()
        if self.num_requests:
            return
        if self._keep_alive_s not in (0.0, FOREVER):
            self._timer = asyncio.get_running_loop().call_later(self._keep_alive_s, self._on_idle, self)
        self._on_idle(self)

    def end_timer(self) -> None:
        """No keep_alive runs from now on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
