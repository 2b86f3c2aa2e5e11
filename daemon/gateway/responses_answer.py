"""Answers in the form of OpenAI's Responses API, whole and as its stream of events."""

from __future__ import annotations

import time
from typing import Any

from daemon.gateway.answers import Choice, Whole, logprob_item
from daemon.gateway.events import Event
from daemon.gateway.responses_request import ResponsesRequest
from daemon.gateway.sse import ErrorBody, named_frame, queued_frame
from quantd.v1 import generate_pb2 as pb


class ResponseShape:
    """The response object around what a request got."""

    def __init__(self, asked: ResponsesRequest, *, request_id: str) -> None:
        self._asked = asked
        self.request_id = request_id
        self.created_s = int(time.time())
        self.model = asked.model

    def start(self, started: pb.Started) -> None:
        """Take the name and the time from the request as it was accepted."""
        self.model = started.model or self.model
        self.created_s = started.created_unix_ms // 1000

    def frame(self, status: str, output: list[dict[str, Any]], done: pb.Done | None = None) -> dict[str, Any]:
        """A response in some state."""
        asked = self._asked
        text = asked.text or {}
        reasoning = asked.reasoning or {}
        return {
            "id": f"resp_{self.request_id}",
            "object": "response",
            "created_at": self.created_s,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "model": self.model,
            "output": output,
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": reasoning.get("effort"), "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": asked.temperature,
            "text": {"format": text.get("format") or {"type": "text"}},
            "tool_choice": asked.tool_choice or "auto",
            "tools": asked.tools or [],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": asked.top_p,
            "truncation": "disabled",
            "usage": None if done is None else _usage(done),
        }

    def whole(self, answer: Whole) -> dict[str, Any]:
        """The response in one piece."""
        assert answer.done is not None
        self.start(answer.started)
        choice = answer.choices[0]
        return self.frame(status_of(answer.done), self._output(choice), answer.done)

    def _output(self, choice: Choice) -> list[dict[str, Any]]:
        output = []
        if reasoning := "".join(choice.reasoning):
            output.append(reasoning_item(f"rs_{self.request_id}", reasoning, "completed"))
        text = "".join(choice.text)
        if text or not choice.calls:
            logprobs = [logprob_item(item) for item in choice.logprobs]
            output.append(message_item(f"msg_{self.request_id}", text, logprobs, "completed"))
        for index, call in sorted(choice.calls.items()):
            output.append(call_item(f"fc_{self.request_id}_{index}", call, "completed"))
        return output


def status_of(done: pb.Done) -> str:
    """Whether the answer is whole."""
    return "incomplete" if done.finish_reason == pb.FINISH_REASON_LENGTH else "completed"


def reasoning_item(item_id: str, text: str, status: str) -> dict[str, Any]:
    """What the model thought."""
    content = [{"type": "reasoning_text", "text": text}] if text else []
    return {"id": item_id, "type": "reasoning", "summary": [], "content": content, "status": status}


def message_item(item_id: str, text: str | None, logprobs: list[Any], status: str) -> dict[str, Any]:
    """What the model said; None: nothing yet."""
    content = [] if text is None else [text_part(text, logprobs)]
    return {"id": item_id, "type": "message", "role": "assistant", "status": status, "content": content}


def text_part(text: str, logprobs: list[Any]) -> dict[str, Any]:
    """A part of text."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def call_item(item_id: str, call: pb.ToolCallDelta, status: str) -> dict[str, Any]:
    """A call of a tool."""
    return {
        "id": item_id,
        "type": "function_call",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
        "status": status,
    }


def _usage(done: pb.Done) -> dict[str, Any]:
    usage = done.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


class ResponseWriter:
    """The events of one streamed response, in OpenAI's order: each item is added, filled and done before the next."""

    end = b""

    def __init__(self, shape: ResponseShape, error_body: ErrorBody) -> None:
        self.finished = False
        self._shape = shape
        self._error_body = error_body
        self._sequence = 0
        self._output: list[dict[str, Any]] = []  # items that are done
        self._open: tuple[str, int] | None = None  # the item under way: what it is, which call
        self._text = ""  # of the item under way
        self._logprobs: list[Any] = []
        self._call = pb.ToolCallDelta()

    def write(self, event: Event) -> list[bytes]:
        """The frames of one event."""
        if isinstance(event, pb.Queued):
            return [queued_frame(event)]
        if isinstance(event, pb.Started):
            self._shape.start(event)
            response = self._shape.frame("in_progress", [])
            return [
                self._event("response.created", response=response),
                self._event("response.in_progress", response=response),
            ]
        if isinstance(event, pb.Delta):
            return self._write_delta(event)
        self.finished = True
        frames = [] if self._output or self._open else self._switch("message", 0)
        frames += self._close()
        status = status_of(event)
        response = self._shape.frame(status, self._output, event)
        return [*frames, self._event(f"response.{status}", response=response)]

    def failed(self, failure: Exception) -> bytes:
        """The last frame of a response that broke off."""
        error = self._error_body(failure)["error"]
        response = self._shape.frame("failed", self._output)
        response["error"] = {"code": "server_error", "message": error["message"]}
        return self._event("response.failed", response=response)

    def _write_delta(self, delta: pb.Delta) -> list[bytes]:
        frames: list[bytes] = []
        if delta.reasoning:
            frames += self._switch("reasoning", 0)
            self._text += delta.reasoning
            frames.append(
                self._item_event("response.reasoning_text.delta", content_index=0, delta=delta.reasoning)
            )
        if delta.text:
            frames += self._switch("message", 0)
            self._text += delta.text
            logprobs = [logprob_item(item) for item in delta.logprobs]
            self._logprobs += logprobs
            frames.append(
                self._item_event(
                    "response.output_text.delta", content_index=0, delta=delta.text, logprobs=logprobs
                )
            )
        for part in delta.tool_calls:
            frames += self._switch("function_call", part.index, part)
            if part.arguments:
                self._call.arguments += part.arguments
                frames.append(
                    self._item_event("response.function_call_arguments.delta", delta=part.arguments)
                )
        return frames

    def _switch(self, kind: str, index: int, call: pb.ToolCallDelta | None = None) -> list[bytes]:
        """End the item under way and begin another, unless it is the same."""
        if self._open == (kind, index):
            return []
        frames = self._close()
        self._open, self._text, self._logprobs = (kind, index), "", []
        if call is not None:
            self._call = pb.ToolCallDelta(id=call.id, name=call.name)
        frames.append(
            self._event(
                "response.output_item.added", output_index=self._place, item=self._item("in_progress")
            )
        )
        if kind != "function_call":
            frames.append(self._item_event("response.content_part.added", content_index=0, part=self._part()))
        return frames

    def _close(self) -> list[bytes]:
        """The frames that end the item under way."""
        if self._open is None:
            return []
        kind = self._open[0]
        frames = []
        if kind == "function_call":
            if not self._call.arguments:
                self._call.arguments = "{}"
            frames.append(
                self._item_event(
                    "response.function_call_arguments.done",
                    name=self._call.name,
                    arguments=self._call.arguments,
                )
            )
        else:
            name = "output_text" if kind == "message" else "reasoning_text"
            more = {"logprobs": self._logprobs} if kind == "message" else {}
            frames.append(self._item_event(f"response.{name}.done", content_index=0, text=self._text, **more))
            frames.append(self._item_event("response.content_part.done", content_index=0, part=self._part()))
        item = self._item("completed")
        frames.append(self._event("response.output_item.done", output_index=self._place, item=item))
        self._output.append(item)
        self._open = None
        return frames

    @property
    def _place(self) -> int:
        return len(self._output)

    @property
    def _item_id(self) -> str:
        assert self._open is not None
        kind, index = self._open
        prefix = {"reasoning": "rs", "message": "msg", "function_call": "fc"}[kind]
        suffix = f"_{index}" if kind == "function_call" else "" if self._first_of(kind) else f"_{self._place}"
        return f"{prefix}_{self._shape.request_id}{suffix}"

    def _first_of(self, kind: str) -> bool:
        return not any(item["type"] == kind for item in self._output)

    def _item(self, status: str) -> dict[str, Any]:
        assert self._open is not None
        kind = self._open[0]
        if kind == "reasoning":
            return reasoning_item(self._item_id, self._text, status)
        if kind == "message":
            return message_item(
                self._item_id, self._text if status == "completed" else None, self._logprobs, status
            )
        return call_item(self._item_id, self._call, status)

    def _part(self) -> dict[str, Any]:
        assert self._open is not None
        if self._open[0] == "message":
            return text_part(self._text, self._logprobs)
        return {"type": "reasoning_text", "text": self._text}

    def _item_event(self, kind: str, **fields: Any) -> bytes:
        return self._event(kind, item_id=self._item_id, output_index=self._place, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        frame = named_frame(kind, {"type": kind, "sequence_number": self._sequence, **fields})
        self._sequence += 1
        return frame
