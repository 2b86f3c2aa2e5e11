"""A backend's stream of events, pulled by a task of its own, so that whoever waits may stop waiting at any time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request

from quantd.v1 import generate_pb2 as pb

Result = TypeVar("Result")
Event = pb.Started | pb.Queued | pb.Delta | pb.Done

# So many events may wait for a slow client; then the backend notices that it is slow.
_MAX_WAITING = 16


class ClientGoneError(Exception):
    """The client closed the connection before there was an answer."""


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`; if the client goes away first, cancels it and raises ClientGoneError."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_wait_gone(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        for task in (working, gone):
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))


async def _wait_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventSource:
    """Started, Delta and Done of one request.

    `cancel` ends the request at once and may be called from anywhere; after it nothing more comes.
    """

    def __init__(self, stream: AsyncIterator[Any]) -> None:
        """`stream` yields messages with a oneof `event`; it is closed when this ends."""
        self._waiting: asyncio.Queue[Event | Exception | None] = asyncio.Queue(_MAX_WAITING)
        self._task = asyncio.create_task(self._pull(stream))

    async def _pull(self, stream: Any) -> None:
        try:
            async with aclosing(stream):
                async for message in stream:
                    await self._waiting.put(getattr(message, message.WhichOneof("event")))
        except Exception as failure:  # noqa: BLE001 - handed to whoever waits
            await self._waiting.put(failure)
        else:
            await self._waiting.put(None)

    async def next(self) -> Event | None:
        """The next event, None after the last; raises what the backend raised."""
        event = await self._waiting.get()
        if isinstance(event, Exception):
            raise event
        return event

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[Event]:
        while (event := await self.next()) is not None:
            yield event

    def cancel(self) -> None:
        """End the request wherever it is."""
        self._task.cancel()

    async def peek(self, wait_s: float) -> tuple[list[Event], asyncio.Task[Event | None] | None]:
        """Events up to the first that is part of an answer, waiting at most `wait_s` for it.

        Returns them and, if the time ran out, the task that still waits for the next.  Raises what the backend raises.
        """
        loop = asyncio.get_running_loop()
        end_s = loop.time() + wait_s
        events: list[Event] = []
        while True:
            waiting = asyncio.ensure_future(self.next())
            try:
                await asyncio.wait((waiting,), timeout=max(0.0, end_s - loop.time()))
            except asyncio.CancelledError:
                waiting.cancel()
                raise
            if not waiting.done():
                return events, waiting
            event = waiting.result()
            if event is None:
                return events, None
            events.append(event)
            if not isinstance(event, pb.Started | pb.Queued):
                return events, None
