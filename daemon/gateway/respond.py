"""One request of generated text, whichever API it came over: whole, or as a stream of frames."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from daemon.errors import ApiError
from daemon.gateway.answers import Whole
from daemon.gateway.events import EventSource, unless_gone
from daemon.gateway.replies import JsonResponse
from daemon.gateway.sse import Writer, event_response, frames, line_response


@dataclass(frozen=True, slots=True)
class Responder:
    """Answers requests over event sources.

    A streamed answer waits up to `first_event_s` for its first token before it commits to status 200; then it
    sends a comment every `ping_s` seconds.  A client that reads nothing for `send_timeout_s` loses the connection.
    """

    first_event_s: float
    ping_s: float
    send_timeout_s: float

    async def whole(self, request: Request, source: EventSource, shape: Callable[[Whole], Any]) -> Response:
        """The answer in one piece, in the form that `shape` gives it."""
        try:
            return JsonResponse(shape(await unless_gone(request, _gather(source))))
        except BaseException:
            source.cancel()
            raise

    async def stream(self, request: Request, source: EventSource, writer: Writer) -> Response:
        """The answer as server-sent events; what fails before the first token is a real status."""
        content = await self._frames(request, source, writer)
        return event_response(content, ping_s=self.ping_s, send_timeout_s=self.send_timeout_s)

    async def lines(self, request: Request, source: EventSource, writer: Writer) -> Response:
        """The answer as lines of JSON; what fails before the first token is a real status."""
        content = await self._frames(request, source, writer)
        return line_response(content, send_timeout_s=self.send_timeout_s)

    async def _frames(self, request: Request, source: EventSource, writer: Writer) -> AsyncIterator[bytes]:
        try:
            head, waiting = await unless_gone(request, source.peek(self.first_event_s))
        except BaseException:
            source.cancel()
            raise
        return frames(source, head, waiting, writer)


async def _gather(source: EventSource) -> Whole:
    answer = Whole()
    async for event in source:
        answer.add(event)
    if answer.done is None:
        raise ApiError("INTERNAL", "The answer broke off.")
    return answer
