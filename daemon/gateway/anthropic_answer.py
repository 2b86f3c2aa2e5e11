"""Answers in the form of Anthropic's Messages API, whole and as its stream of events."""

from __future__ import annotations

import json
from typing import Any

from daemon.errors import ApiError, to_api_error
from daemon.gateway.answers import Choice, Whole
from daemon.gateway.events import Event
from daemon.gateway.replies import log_unexpected
from daemon.gateway.sse import named_frame, queued_frame
from quantd.v1 import generate_pb2 as pb

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_body(failure: Exception, request_id: str) -> tuple[ApiError, dict[str, Any]]:
    """A failure as Anthropic's API tells it."""
    error = to_api_error(failure, request_id)
    log_unexpected(error, failure, request_id)
    kind = _ERROR_TYPES.get(
        error.http_status, "api_error" if error.http_status >= 500 else "invalid_request_error"
    )
    return error, {
        "type": "error",
        "error": {"type": kind, "message": error.message},
        "request_id": request_id,
    }


def stop_reason(done: pb.Done) -> str:
    """Why the answer ended."""
    if done.stop_text:
        return "stop_sequence"
    return {
        pb.FINISH_REASON_LENGTH: "max_tokens",
        pb.FINISH_REASON_TOOL_CALLS: "tool_use",
    }.get(done.finish_reason, "end_turn")


class MessageShape:
    """The message object around what a request got."""

    def __init__(self, *, request_id: str, model: str) -> None:
        self._id = f"msg_{request_id}"
        self.model = model

    def frame(
        self, content: list[dict[str, Any]], usage: dict[str, int], done: pb.Done | None = None
    ) -> dict[str, Any]:
        """A message in some state."""
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": None if done is None else stop_reason(done),
            "stop_sequence": None if done is None else done.stop_text or None,
            "usage": usage,
        }

    def whole(self, answer: Whole) -> dict[str, Any]:
        """The message in one piece."""
        assert answer.done is not None
        self.model = answer.started.model or self.model
        return self.frame(_content(answer.choices[0]), _usage(answer.done.usage), answer.done)


def _content(choice: Choice) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = []
    if reasoning := "".join(choice.reasoning):
        content.append({"type": "thinking", "thinking": reasoning, "signature": ""})
    text = "".join(choice.text)
    if text or not choice.calls:
        content.append({"type": "text", "text": text})
    content += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": _input(call.arguments)}
        for _, call in sorted(choice.calls.items())
    ]
    return content


def _input(arguments: str) -> Any:
    """The arguments of a call; one that max_tokens cut off has none that could be read."""
    try:
        return json.loads(arguments)
    except ValueError:
        return {}


def _usage(usage: pb.Usage) -> dict[str, int]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
    }


class MessageWriter:
    """The events of one streamed message: each block is started, filled and stopped before the next."""

    end = b""

    def __init__(self, shape: MessageShape, request_id: str) -> None:
        self.finished = False
        self._shape = shape
        self._request_id = request_id
        self._num_blocks = 0
        self._open: tuple[str, int] | None = None

    def write(self, event: Event) -> list[bytes]:
        """The frames of one event."""
        if isinstance(event, pb.Queued):
            return [queued_frame(event)]
        if isinstance(event, pb.Started):
            self._shape.model = event.model or self._shape.model
            usage = _usage(pb.Usage(prompt_tokens=event.prompt_tokens))
            return [
                _frame("message_start", message=self._shape.frame([], usage)),
                _frame("ping"),
            ]
        if isinstance(event, pb.Delta):
            return self._write_delta(event)
        self.finished = True
        has_blocks = self._num_blocks or self._open
        frames = [] if has_blocks else self._switch("text", 0, {"type": "text", "text": ""})
        frames += self._stop()
        ending = {"stop_reason": stop_reason(event), "stop_sequence": event.stop_text or None}
        frames.append(_frame("message_delta", delta=ending, usage=_usage(event.usage)))
        return [*frames, _frame("message_stop")]

    def failed(self, failure: Exception) -> bytes:
        """The last frame of a message that broke off."""
        body = error_body(failure, self._request_id)[1]
        return named_frame("error", body)

    def _write_delta(self, delta: pb.Delta) -> list[bytes]:
        frames: list[bytes] = []
        if delta.reasoning:
            frames += self._switch("thinking", 0, {"type": "thinking", "thinking": "", "signature": ""})
            frames.append(self._delta(type="thinking_delta", thinking=delta.reasoning))
        if delta.text:
            frames += self._switch("text", 0, {"type": "text", "text": ""})
            frames.append(self._delta(type="text_delta", text=delta.text))
        for part in delta.tool_calls:
            block = {"type": "tool_use", "id": part.id, "name": part.name, "input": {}}
            frames += self._switch("tool_use", part.index, block)
            if part.arguments:
                frames.append(self._delta(type="input_json_delta", partial_json=part.arguments))
        return frames

    def _switch(self, kind: str, index: int, block: dict[str, Any]) -> list[bytes]:
        if self._open == (kind, index):
            return []
        frames = self._stop()
        self._open = (kind, index)
        frames.append(_frame("content_block_start", index=self._num_blocks, content_block=block))
        return frames

    def _stop(self) -> list[bytes]:
        if self._open is None:
            return []
        self._open = None
        self._num_blocks += 1
        return [_frame("content_block_stop", index=self._num_blocks - 1)]

    def _delta(self, **delta: Any) -> bytes:
        return _frame("content_block_delta", index=self._num_blocks, delta=delta)


def _frame(kind: str, **fields: Any) -> bytes:
    return named_frame(kind, {"type": kind, **fields})
