"""From events to OpenAI's JSON, whole and in chunks, for chats and for completions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from daemon.gateway.events import Event
from quantd.v1 import generate_pb2 as pb

FINISH: dict[int, str] = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_TOOL_CALLS: "tool_calls",
}


@dataclass(slots=True)
class Choice:
    """One answer as far as it has come."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, pb.ToolCallDelta] = field(default_factory=dict)
    logprobs: list[pb.TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[pb.TokenLogprob] = field(default_factory=list)
    finish_reason: int = pb.FINISH_REASON_UNSPECIFIED

    def add(self, delta: pb.Delta) -> None:
        """Take in more of it."""
        self.text.append(delta.text)
        self.reasoning.append(delta.reasoning)
        self.logprobs += delta.logprobs
        self.prompt_logprobs += delta.prompt_logprobs
        self.finish_reason = delta.finish_reason or self.finish_reason
        for part in delta.tool_calls:
            call = self.calls.setdefault(part.index, pb.ToolCallDelta(index=part.index))
            call.id, call.name = call.id or part.id, call.name or part.name
            call.arguments += part.arguments


@dataclass(slots=True)
class Whole:
    """A whole answer, with all its choices."""

    started: pb.Started = field(default_factory=pb.Started)
    choices: dict[int, Choice] = field(default_factory=dict)
    done: pb.Done | None = None

    def add(self, event: Event) -> None:
        """Take in one event."""
        if isinstance(event, pb.Started):
            self.started = event
        elif isinstance(event, pb.Delta):
            self.choices.setdefault(event.choice, Choice()).add(event)
        elif isinstance(event, pb.Done):
            self.done = event
            first = self.choices.setdefault(0, Choice())
            first.finish_reason = first.finish_reason or event.finish_reason


class Shape(ABC):
    """How one kind of answer is written.  One object for each request: chunks remember what came before."""

    whole_object: str
    chunk_object: str
    id_prefix: str

    def __init__(self, *, request_id: str, model: str) -> None:
        self._id = f"{self.id_prefix}-{request_id}"
        self._model = model
        self._created = 0
        self._fingerprint: str | None = None

    def start(self, started: pb.Started) -> None:
        """Take the name and the time from the request as it was accepted."""
        self._model = started.model or self._model
        self._created = started.created_unix_ms // 1000
        self._fingerprint = started.system_fingerprint or None

    def frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """What every answer and every chunk has."""
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": self._fingerprint,
            "choices": choices,
        }

    def whole(self, answer: Whole) -> dict[str, Any]:
        """The answer in one piece."""
        assert answer.done is not None
        self.start(answer.started)
        choices = [self.choice(index, choice) for index, choice in sorted(answer.choices.items())]
        return {**self.frame(self.whole_object, choices), "usage": usage(answer.done)}

    def chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        """One chunk with one choice."""
        return self.frame(self.chunk_object, [choice])

    def usage_chunk(self, done: pb.Done) -> dict[str, Any]:
        """The chunk that has the usage and no choices."""
        return {**self.frame(self.chunk_object, []), "usage": usage(done)}

    @abstractmethod
    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """One choice of a whole answer."""

    @abstractmethod
    def opening(self, index: int) -> dict[str, Any] | None:
        """The first chunk of a choice, if it says anything."""

    @abstractmethod
    def part(self, delta: pb.Delta, logprobs: list[pb.TokenLogprob]) -> dict[str, Any]:
        """The choice of a chunk with more of an answer."""

    @abstractmethod
    def ending(self, index: int, logprobs: list[pb.TokenLogprob], reason: int) -> dict[str, Any]:
        """The choice of the chunk that says why an answer ended."""


class ChatShape(Shape):
    """chat.completion."""

    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    id_prefix = "chatcmpl"

    def __init__(self, *, request_id: str, model: str, with_reasoning: bool = True) -> None:
        super().__init__(request_id=request_id, model=model)
        self._with_reasoning = with_reasoning

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """Build the message."""
        text, reasoning = "".join(choice.text), "".join(choice.reasoning)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if reasoning and self._with_reasoning:
            message["reasoning_content"] = reasoning
        if choice.calls:
            message["content"] = text or None
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for _, call in sorted(choice.calls.items())
            ]
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(choice.logprobs),
            "finish_reason": FINISH[choice.finish_reason],
        }

    def opening(self, index: int) -> dict[str, Any]:
        """Say the role, once."""
        return self._delta(index, {"role": "assistant", "content": ""}, None, None)

    def part(self, delta: pb.Delta, logprobs: list[pb.TokenLogprob]) -> dict[str, Any]:
        """Add text, thoughts or calls."""
        added: dict[str, Any] = {}
        if delta.text:
            added["content"] = delta.text
        if delta.reasoning and self._with_reasoning:
            added["reasoning_content"] = delta.reasoning
        if delta.tool_calls:
            added["tool_calls"] = [self._call(call) for call in delta.tool_calls]
        return self._delta(delta.choice, added, self._logprobs(logprobs), None)

    def ending(self, index: int, logprobs: list[pb.TokenLogprob], reason: int) -> dict[str, Any]:
        """Say why it ended."""
        return self._delta(index, {}, self._logprobs(logprobs), FINISH[reason])

    @staticmethod
    def _call(call: pb.ToolCallDelta) -> dict[str, Any]:
        function = {"arguments": call.arguments}
        if not call.name:
            return {"index": call.index, "function": function}
        named = {"name": call.name, **function}
        return {"index": call.index, "id": call.id, "type": "function", "function": named}

    @staticmethod
    def _delta(
        index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None, reason: str | None
    ) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    @staticmethod
    def _logprobs(items: list[pb.TokenLogprob]) -> dict[str, Any] | None:
        if not items:
            return None
        return {"content": [logprob_item(item) for item in items], "refusal": None}


class CompletionShape(Shape):
    """text_completion, with the log-probabilities as this older API has them."""

    whole_object = "text_completion"
    chunk_object = "text_completion"
    id_prefix = "cmpl"

    def __init__(self, *, request_id: str, model: str) -> None:
        super().__init__(request_id=request_id, model=model)
        self._offsets: dict[int, int] = {}  # characters of each answer before the next token
        self._prompt_offsets: dict[
            int, int
        ] = {}  # the same within the echoed prompt, while its tokens are told
        self._echoed: dict[int, str] = {}

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """Build the text; the answer's tokens begin after the prompt where it is echoed."""
        text = "".join(choice.text)
        tokens = b"".join(item.token for item in choice.logprobs).decode("utf-8", "replace")
        told = _Told(_prompt_start(choice.prompt_logprobs, text))
        told.add(choice.prompt_logprobs)
        told.offset = max(0, len(text) - len(tokens))
        told.add(choice.logprobs)
        return self._choice(index, text, told, FINISH[choice.finish_reason])

    def opening(self, index: int) -> None:
        """Say nothing: completions have no role."""

    def part(self, delta: pb.Delta, logprobs: list[pb.TokenLogprob]) -> dict[str, Any]:
        """Add text, or tell of the tokens of a prompt that was echoed before."""
        index = delta.choice
        if delta.prompt_logprobs:
            start = _prompt_start(delta.prompt_logprobs, self._echoed.get(index, ""))
            told = _Told(self._prompt_offsets.get(index, start))
            told.add(delta.prompt_logprobs)
            self._prompt_offsets[index] = told.offset
            return self._choice(index, delta.text, told, None)
        self._echoed.setdefault(index, delta.text)
        if not logprobs:
            self._offsets[index] = self._offsets.get(index, 0) + len(delta.text)
        return self._choice(index, delta.text, self._tell(index, logprobs), None)

    def ending(self, index: int, logprobs: list[pb.TokenLogprob], reason: int) -> dict[str, Any]:
        """Say why it ended."""
        return self._choice(index, "", self._tell(index, logprobs), FINISH[reason])

    def _tell(self, index: int, items: list[pb.TokenLogprob]) -> _Told:
        told = _Told(self._offsets.get(index, 0))
        told.add(items)
        if items:
            self._offsets[index] = told.offset
        return told

    @staticmethod
    def _choice(index: int, text: str, told: _Told, reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": told.lists(), "finish_reason": reason}


class _Told:
    """Tokens with their log-probabilities in the four lists of the older API."""

    def __init__(self, offset: int) -> None:
        self.offset = (
            offset  # characters before the next token; below 0 in the space that some tokenizers put first
        )
        self._tokens: list[str] = []
        self._logprobs: list[float | None] = []
        self._tops: list[dict[str, float] | None] = []
        self._offsets: list[int] = []

    def add(self, items: Iterable[pb.TokenLogprob]) -> None:
        """Take in tokens that follow; the first one of a prompt has no log-probability."""
        for item in items:
            is_first = math.isnan(item.logprob)
            self._tokens.append(_text(item.token))
            self._logprobs.append(None if is_first else item.logprob)
            self._tops.append(None if is_first else {_text(top.token): top.logprob for top in item.top})
            self._offsets.append(max(0, self.offset))
            self.offset += len(self._tokens[-1])

    def lists(self) -> dict[str, Any] | None:
        """What was taken in; None for nothing."""
        if not self._tokens:
            return None
        return {
            "tokens": self._tokens,
            "token_logprobs": self._logprobs,
            "top_logprobs": self._tops,
            "text_offset": self._offsets,
        }


def _prompt_start(items: Iterable[pb.TokenLogprob], text: str) -> int:
    """Where a prompt's tokens begin: one character before it, where the tokenizer put a space in front."""
    first = next((item.token for item in items if item.token), b"")
    return -1 if first.startswith(b" ") and not text.startswith(" ") else 0


def usage(done: pb.Done) -> dict[str, Any]:
    """Tokens used."""
    prompt, completion = done.usage.prompt_tokens, done.usage.completion_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": done.usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": done.usage.reasoning_tokens},
    }


def logprob_item(item: pb.TokenLogprob) -> dict[str, Any]:
    """A token with its log-probability and those of the likeliest others."""
    return {**_token(item), "top_logprobs": [_token(top) for top in item.top]}


def _text(token: bytes) -> str:
    return token.decode("utf-8", "replace")


def _token(item: pb.TokenLogprob) -> dict[str, Any]:
    return {"token": _text(item.token), "logprob": item.logprob, "bytes": list(item.token)}
