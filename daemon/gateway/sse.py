"""Server-sent events: the frames of a streamed answer, with comments in the silence before and between tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import anyio
from sse_starlette import EventSourceResponse, ServerSentEvent

from daemon.errors import ApiError
from daemon.gateway.answers import Shape
from daemon.gateway.events import Event, EventSource
from quantd.v1 import generate_pb2 as pb

PING_S = 15.0
SEND_TIMEOUT_S = 60.0
_NEVER_S = 10**9
DONE = b"data: [DONE]\n\n"


def frame(value: Any) -> bytes:
    """One event with a JSON value."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def named_frame(name: str, value: Any) -> bytes:
    """One event with a name and a JSON value."""
    return b"event: " + name.encode() + b"\n" + frame(value)


def queued_frame(event: pb.Queued) -> bytes:
    """A place in the line, as a comment."""
    return b": queue position %d\n\n" % event.position


ErrorBody = Callable[[Exception], dict[str, Any]]


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


def line_response(content: AsyncIterator[bytes], *, send_timeout_s: float) -> EventSourceResponse:
    """A response that sends lines of JSON as they come; such streams have no comments.

    It ends when the client goes away, or reads nothing for `send_timeout_s`.
    """
    return _EventStream(
        content, media_type="application/x-ndjson", sep="\n", ping=_NEVER_S, send_timeout=send_timeout_s
    )


class Writer(Protocol):
    """Turns events into frames, in one API's form."""

    finished: bool  # the last event was written
    end: bytes  # what ends a stream that succeeded

    def write(self, event: Event) -> list[bytes]:
        """The frames of one event."""
        ...

    def failed(self, failure: Exception) -> bytes:
        """The frame that tells a failure on the way; the stream ends with it."""
        ...


async def frames(
    source: EventSource, head: list[Event], waiting: asyncio.Task[Event | None] | None, writer: Writer
) -> AsyncIterator[bytes]:
    """The frames of one answer; `head` and `waiting` are what EventSource.peek gave."""
    try:
        for event in head:
            for one in writer.write(event):
                yield one
        if waiting is not None:
            # shield: when this stream is cancelled, the task is cancelled below, not in the middle of a hand-over
            event_or_end = await asyncio.shield(waiting)
            for one in writer.write(event_or_end) if event_or_end is not None else ():
                yield one
        async for event in source:
            for one in writer.write(event):
                yield one
        if not writer.finished:
            raise ApiError("INTERNAL", "The answer broke off.")
        if writer.end:
            yield writer.end
    except Exception as failure:  # noqa: BLE001 - the status is sent; the stream itself must say it
        yield writer.failed(failure)
    finally:
        source.cancel()
        if waiting is not None:
            waiting.cancel()


class ChunkWriter:
    """Chunks of chats and completions: the role, parts that are never empty, the end of each choice, the usage.

    A failure on the way becomes one frame with the error, and the stream ends without [DONE].
    """

    end = DONE

    def __init__(self, shape: Shape, error_body: ErrorBody, *, with_usage: bool) -> None:
        self.finished = False
        self._shape = shape
        self._error_body = error_body
        self._with_usage = with_usage
        self._opened: set[int] = set()
        self._ended: set[int] = set()
        self._logprobs: dict[int, list[pb.TokenLogprob]] = {}  # of tokens whose text is held back

    def write(self, event: Event) -> list[bytes]:
        """The frames of one event.  A place in the line is a comment: clients that do not know it never see it."""
        if isinstance(event, pb.Queued):
            return [queued_frame(event)]
        return [frame(chunk) for chunk in self._chunks(event)]

    def failed(self, failure: Exception) -> bytes:
        """The frame of a failure on the way."""
        return frame(self._error_body(failure))

    def _chunks(self, event: pb.Started | pb.Delta | pb.Done) -> list[dict[str, Any]]:
        if isinstance(event, pb.Started):
            self._shape.start(event)
            return self._open(0)
        if isinstance(event, pb.Delta):
            return self._write_delta(event)
        self.finished = True
        chunks = [] if self._ended else self._open(0) + self._end(0, event.finish_reason)
        if self._with_usage:
            chunks.append(self._shape.usage_chunk(event))
        return chunks

    def _write_delta(self, delta: pb.Delta) -> list[dict[str, Any]]:
        chunks = self._open(delta.choice)
        held = self._logprobs.setdefault(delta.choice, [])
        held += delta.logprobs
        if delta.text or delta.reasoning or delta.tool_calls or delta.prompt_logprobs:
            self._logprobs[delta.choice] = []
            part = self._shape.part(delta, held)
            if part.get("delta") != {}:
                chunks.append(self._chunk(part))
        if delta.finish_reason:
            chunks += self._end(delta.choice, delta.finish_reason)
        return chunks

    def _open(self, index: int) -> list[dict[str, Any]]:
        if index in self._opened:
            return []
        self._opened.add(index)
        opening = self._shape.opening(index)
        return [] if opening is None else [self._chunk(opening)]

    def _end(self, index: int, reason: int) -> list[dict[str, Any]]:
        self._ended.add(index)
        return [self._chunk(self._shape.ending(index, self._logprobs.pop(index, []), reason))]

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        chunk = self._shape.chunk(choice)
        return {**chunk, "usage": None} if self._with_usage else chunk
