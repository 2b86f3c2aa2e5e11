"""The one bridge between the event loop and the engine's thread.

    event loop: submit ---------------------------> engine thread
    event loop: deliver <-- one ring of an eventfd a step -- engine's sink (all events of the step)

The ring is the last thing before a step computes, so it has to be cheap: call_soon_threadsafe takes two to three times as
long, with a handle, a copy of the context and a socket.

Each request has a bounded queue here.  The engine never waits for it: a consumer that reads nothing for
STALL_S seconds, or that is MAX_PENDING events behind, loses its request (SLOW_CONSUMER) and its session is free.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from daemon.errors import ApiError
from runtime.request import Event, FinishEvent, Request

STALL_S = 30.0
MAX_PENDING = 4096  # events; about 64 KiB of text


class EngineLike(Protocol):
    """What the bridge needs of runtime.engine.Engine; tests bring their own."""

    def submit(self, request: Request) -> None: ...
    def cancel(self, request_id: str) -> None: ...


class RequestStream:
    """Events of one request, for one consumer."""

    def __init__(self, request_id: str, cancel: Callable[[], None], stall_s: float) -> None:
        self.request_id = request_id
        self.on_stall: Callable[[], object] | None = None  # told once when the consumer is given up
        self.on_finish: Callable[[FinishEvent], None] | None = None  # told once, whether or not anybody reads
        self._cancel = cancel
        self._stall_s = stall_s
        self._pending: deque[Event] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._stalled = False
        self._ended = False

    def deliver(self, event: Event) -> None:
        """Called by the bridge in the event loop."""
        if isinstance(event, FinishEvent):
            self._ended = True
            # Whoever is told holds this stream: let go, or only the collector would end the pair, and the model with it.
            tell, self.on_finish = self.on_finish, None
            if tell is not None:
                tell(event)
        if self._stalled:
            return
        self._pending.append(event)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
        elif self._stall_timer is None:
            self._stall_timer = asyncio.get_running_loop().call_later(self._stall_s, self._give_up)
        if len(self._pending) > MAX_PENDING:
            self._give_up()

    async def next(self) -> Event:
        """The next event; raises ApiError SLOW_CONSUMER if this consumer was given up."""
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        while not self._pending:
            if self._stalled:
                raise ApiError(
                    "SLOW_CONSUMER", "The answer was not read for too long; the request was ended."
                )
            self._wake = asyncio.get_running_loop().create_future()
            try:
                await self._wake
            finally:
                self._wake = None
        return self._pending.popleft()

    def stop(self) -> None:
        """Asks the engine to end the request; its FinishEvent still comes."""
        if not self._ended:
            self._cancel()

    def close(self) -> None:
        """The consumer is gone: the engine frees the session before its next step."""
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        self.stop()

    def _give_up(self) -> None:
        self._stall_timer = None
        if self._stalled:
            return
        self._stalled = True
        self._pending.clear()
        self.stop()
        if self.on_stall is not None:
            self.on_stall()


class Bridge:
    """Submits requests to the engine and hands its events to their streams.  Lives in one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, stall_s: float = STALL_S) -> None:
        self._loop = loop
        self._stall_s = stall_s
        self._engine: EngineLike | None = None
        self._handed: deque[list[Event]] = deque()  # by the engine, not delivered yet
        self._bell_lock = threading.Lock()  # of the next, which a late ring must not find closed
        self._bell: int | None = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        loop.add_reader(self._bell, self._answer_bell)
        self._streams: dict[str, RequestStream] = {}
        self._empty = asyncio.Event()
        self.on_empty: Callable[[], None] | None = None  # told each time when the last open request has ended

    def attach(self, engine: EngineLike) -> None:
        """The engine is made with `sink` and attached afterwards."""
        self._engine = engine

    def detach(self) -> None:
        """The engine has ended, takes no more requests and has no more to say.

        It and this bridge know each other, and the collector may never look at the pair (gc.freeze): without this, the
        memory of the model that the engine holds would stay.
        """
        self._engine = None
        with self._bell_lock:
            bell, self._bell = self._bell, None
        if bell is not None:
            self._loop.remove_reader(bell)
            os.close(bell)
        self._deliver_all()

    @property
    def num_open(self) -> int:
        """Requests whose FinishEvent has not come."""
        return len(self._streams)

    def sink(self, events: list[Event]) -> None:
        """Called in the engine's thread, once a step with all its events: one wake-up whatever the batch."""
        self._handed.append(events)
        with self._bell_lock:
            if self._bell is not None:  # otherwise the engine was given up, and nobody listens
                os.eventfd_write(self._bell, 1)

    def submit(self, request: Request) -> RequestStream:
        """Gives a request to the engine; raises what Engine.submit raises."""
        engine = self._engine
        if engine is None:
            raise ApiError("UNAVAILABLE", "No model is loaded.")
        stream = RequestStream(request.id, lambda: engine.cancel(request.id), self._stall_s)
        self._streams[request.id] = stream
        try:
            engine.submit(request)
        except BaseException:
            del self._streams[request.id]
            raise
        return stream

    async def wait_empty(self, timeout_s: float) -> None:
        """Returns when every request has its FinishEvent, or after `timeout_s`."""
        if self._streams:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), timeout_s)

    def _answer_bell(self) -> None:
        """Called in the event loop after `sink`; one call may find what several left."""
        if self._bell is not None:
            os.eventfd_read(self._bell)
        self._deliver_all()

    def _deliver_all(self) -> None:
        while self._handed:
            self._deliver(self._handed.popleft())

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            stream = self._streams.get(event.request_id)
            if stream is None:
                continue
            if isinstance(event, FinishEvent):
                del self._streams[event.request_id]
            stream.deliver(event)
        if not self._streams:
            self._empty.set()
            if self.on_empty is not None:
                self.on_empty()
