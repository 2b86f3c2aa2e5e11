"""Server-sent events: the frames of a streamed answer, with comments in the silence before and between tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
from sse_starlette import EventSourceResponse, ServerSentEvent

from daemon.errors import ApiError
from daemon.gateway.answers import Shape
from daemon.gateway.events import Event, EventSource
from quantd.v1 import generate_pb2 as pb

PING_S = 15.0
SEND_TIMEOUT_S = 60.0
DONE = b"data: [DONE]\n\n"


def frame(value: Any) -> bytes:
    """One event with a JSON value."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class _EventStream(EventSourceResponse):
    """The library's response without its watcher of uvicorn's exit, which would wake an idle process twice a second.

    The daemon ends streams itself: it drains the engine, and uvicorn cancels what is left.
    """

    @staticmethod
    async def _listen_for_exit_signal() -> None:
        await anyio.sleep_forever()


def event_response(
    content: AsyncIterator[bytes], *, ping_s: float, send_timeout_s: float
) -> EventSourceResponse:
    """A response that sends frames as they come and a comment every `ping_s`.

    It ends when the client goes away, or reads nothing for `send_timeout_s`.
    """
    return _EventStream(
        content,
        media_type="text/event-stream",
        sep="\n",
        ping=ping_s,
        send_timeout=send_timeout_s,
        ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
    )


async def frames(
    source: EventSource,
    head: list[Event],
    waiting: asyncio.Task[Event | None] | None,
    shape: Shape,
    *,
    with_usage: bool,
    error_body: Callable[[Exception], dict[str, Any]],
) -> AsyncIterator[bytes]:
    """The frames of one answer.

    `head` and `waiting` are what EventSource.peek gave.  A failure on the way becomes one frame with the error, and the
    stream ends without [DONE].
    """
    writer = _Writer(shape, with_usage=with_usage)
    try:
        for event in head:
            for part in writer.frames(event):
                yield part
        if waiting is not None:
            # shield: when this stream is cancelled, the task is cancelled below, not in the middle of a hand-over
            event_or_end = await asyncio.shield(waiting)
            for part in writer.frames(event_or_end) if event_or_end is not None else ():
                yield part
        async for event in source:
            for part in writer.frames(event):
                yield part
        if not writer.finished:
            raise ApiError("INTERNAL", "The answer broke off.")
        yield DONE
    except Exception as failure:  # noqa: BLE001 - the status is sent; the stream itself must say it
        yield frame(error_body(failure))
    finally:
        source.cancel()
        if waiting is not None:
            waiting.cancel()


class _Writer:
    """Turns events into chunks: the role, texts that are never empty, the end, the usage."""

    def __init__(self, shape: Shape, *, with_usage: bool) -> None:
        self.finished = False
        self._shape = shape
        self._with_usage = with_usage
        self._logprobs: list[pb.TokenLogprob] = []  # of tokens whose text is held back

    def frames(self, event: Event) -> list[bytes]:
        """One event as it is sent.  A place in the line is a comment: clients that do not know it never see it."""
        if isinstance(event, pb.Queued):
            return [b": queue position %d\n\n" % event.position]
        return [frame(chunk) for chunk in self._write(event)]

    def _write(self, event: pb.Started | pb.Delta | pb.Done) -> list[dict[str, Any]]:
        """The chunks of one event."""
        if isinstance(event, pb.Started):
            self._shape.start(event)
            opening = self._shape.opening()
            return [] if opening is None else [self._chunk(opening)]
        if isinstance(event, pb.Delta):
            self._logprobs += event.logprobs
            if not event.text:
                return []
            logprobs, self._logprobs = self._logprobs, []
            return [self._chunk(self._shape.part(event.text, logprobs))]
        self.finished = True
        chunks = [self._chunk(self._shape.ending(self._logprobs, event))]
        if self._with_usage:
            chunks.append(self._shape.usage_chunk(event))
        return chunks

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        chunk = self._shape.chunk(choice)
        return {**chunk, "usage": None} if self._with_usage else chunk
