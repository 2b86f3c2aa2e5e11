"""From events to the JSON of Ollama's API, whole and as lines, and its words for failures."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

from starlette.responses import Response

from daemon.errors import retry_after_header, to_api_error
from daemon.gateway.answers import FINISH, Choice, Whole, logprob_item
from daemon.gateway.events import Event
from daemon.gateway.replies import JsonResponse, log_unexpected
from quantd.v1 import generate_pb2 as pb

# Where Ollama answers another status than OpenAI's API does.
_STATUS = {"QUEUE_FULL": 503, "QUEUE_TIMEOUT": 503, "NO_CHAT_TEMPLATE": 400}


def failure_message(failure: Exception, request_id: str) -> str:
    """What a client is told of a failure; one that nobody expected is logged and told without its text."""
    error = to_api_error(failure, request_id)
    log_unexpected(error, failure, request_id)
    return error.message


def failure_response(failure: Exception, request_id: str) -> Response:
    """The answer to a request that failed before anything was sent."""
    error = to_api_error(failure, request_id)
    headers = {}
    retry_after = retry_after_header(error)
    if retry_after is not None:
        headers["Retry-After"] = retry_after
    if error.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = {"error": failure_message(failure, request_id)}
    return JsonResponse(body, status_code=_STATUS.get(error.reason, error.http_status), headers=headers)


def json_line(value: Any) -> bytes:
    """One line of a stream."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def time_text(unix_ms: int) -> str:
    """A time as Ollama writes it: RFC 3339, UTC."""
    moment = datetime.fromtimestamp(unix_ms / 1e3, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


class OllamaShape:
    """Writes the answers of one request: of a chat as a message, of a prompt as a response."""

    def __init__(self, *, model: str, is_chat: bool) -> None:
        self._model = model
        self._is_chat = is_chat
        self._started_ns = time.monotonic_ns()

    def whole(self, answer: Whole) -> dict[str, Any]:
        """The answer in one piece."""
        assert answer.done is not None
        choice = answer.choices[0]
        text, reasoning = "".join(choice.text), "".join(choice.reasoning)
        line = self.line(text, reasoning, calls_of(choice), choice.logprobs)
        return {**line, **self.ending(answer.done)}

    def line(
        self,
        text: str,
        reasoning: str = "",
        calls: list[dict[str, Any]] | None = None,
        logprobs: list[pb.TokenLogprob] | None = None,
    ) -> dict[str, Any]:
        """A part of the answer."""
        line: dict[str, Any] = {"model": self._model, "created_at": time_text(time.time_ns() // 1_000_000)}
        said: dict[str, Any] = {"role": "assistant", "content": text} if self._is_chat else {"response": text}
        if reasoning:
            said["thinking"] = reasoning
        if calls:
            said["tool_calls"] = calls
        line |= {"message": said} if self._is_chat else said
        line["done"] = False
        if logprobs:
            line["logprobs"] = [logprob_item(item) for item in logprobs]
        return line

    def ending(self, done: pb.Done) -> dict[str, Any]:
        """Why it ended, and where the time went, in nanoseconds."""
        total_ns = time.monotonic_ns() - self._started_ns
        prefill_ns, decode_ns = round(done.timings.prefill_ms * 1e6), round(done.timings.decode_ms * 1e6)
        waited_ns = round(done.timings.queue_ms * 1e6)
        return {
            "done": True,
            # A call ends an answer as its last word does.
            "done_reason": "length" if FINISH[done.finish_reason] == "length" else "stop",
            "total_duration": total_ns,
            "load_duration": max(0, total_ns - waited_ns - prefill_ns - decode_ns),
            "prompt_eval_count": done.usage.prompt_tokens,
            "prompt_eval_duration": prefill_ns,
            "eval_count": done.usage.completion_tokens,
            "eval_duration": decode_ns,
        }

    def without_answer(self, reason: str) -> dict[str, Any]:
        """The whole answer to a request that only loads or unloads its model."""
        return {**self.line(""), "done": True, "done_reason": reason}


def calls_of(choice: Choice) -> list[dict[str, Any]]:
    """The calls of an answer, their arguments as objects."""
    return [
        {
            "id": call.id,
            "function": {"index": index, "name": call.name, "arguments": _arguments(call.arguments)},
        }
        for index, call in sorted(choice.calls.items())
    ]


def _arguments(text: str) -> Any:
    try:
        return json.loads(text or "{}")
    except ValueError:  # cut off by the limit of tokens
        return {}


class LineWriter:
    """The lines of a streamed answer: text and thoughts as they come, calls when they are complete, then the end."""

    end = b""

    def __init__(self, shape: OllamaShape, request_id: str) -> None:
        self.finished = False
        self._shape = shape
        self._request_id = request_id
        self._choice = Choice()  # holds calls and log-probabilities that are not written yet

    def write(self, event: Event) -> list[bytes]:
        """The lines of one event; a place in the queue has no word in this API."""
        if isinstance(event, pb.Delta):
            return self._write_delta(event)
        if not isinstance(event, pb.Done):
            return []
        self.finished = True
        lines = []
        calls = calls_of(self._choice)
        if calls:
            lines.append(json_line(self._shape.line("", calls=calls)))
        last = self._shape.line("", logprobs=self._choice.logprobs)
        return [*lines, json_line({**last, **self._shape.ending(event)})]

    def _write_delta(self, delta: pb.Delta) -> list[bytes]:
        self._choice.add(delta)
        if not delta.text and not delta.reasoning:
            return []
        logprobs, self._choice.logprobs = self._choice.logprobs, []
        return [json_line(self._shape.line(delta.text, delta.reasoning, logprobs=logprobs))]

    def failed(self, failure: Exception) -> bytes:
        """The last line of an answer that broke off."""
        return json_line({"error": failure_message(failure, self._request_id)})
