"""From events to OpenAI's JSON, whole and in chunks, for chats and for completions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from quantd.v1 import generate_pb2 as pb

_FINISH = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}


class Shape(ABC):
    """How one kind of answer is written.  One object for each request: chunks remember what came before."""

    whole_object: str
    chunk_object: str
    id_prefix: str

    def __init__(self, *, request_id: str, model: str) -> None:
        self._id = f"{self.id_prefix}-{request_id}"
        self._model = model
        self._created = 0

    def start(self, started: pb.Started) -> None:
        """Take the name and the time from the request as it was accepted."""
        self._model = started.model or self._model
        self._created = started.created_unix_ms // 1000

    def frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """What every answer and every chunk has."""
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }

    def whole(self, deltas: Iterable[pb.Delta], done: pb.Done) -> dict[str, Any]:
        """The answer in one piece."""
        deltas = list(deltas)
        logprobs = [item for delta in deltas for item in delta.logprobs]
        choice = self.choice("".join(delta.text for delta in deltas), logprobs, done)
        return {**self.frame(self.whole_object, [choice]), "usage": usage(done)}

    def chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        """One chunk with one choice."""
        return self.frame(self.chunk_object, [choice])

    def usage_chunk(self, done: pb.Done) -> dict[str, Any]:
        """The chunk that has the usage and no choices."""
        return {**self.frame(self.chunk_object, []), "usage": usage(done)}

    @abstractmethod
    def choice(self, text: str, logprobs: list[pb.TokenLogprob], done: pb.Done) -> dict[str, Any]:
        """The only choice of a whole answer."""

    @abstractmethod
    def opening(self) -> dict[str, Any] | None:
        """The choice of the first chunk, if it says anything."""

    @abstractmethod
    def part(self, text: str, logprobs: list[pb.TokenLogprob]) -> dict[str, Any]:
        """The choice of a chunk with text."""

    @abstractmethod
    def ending(self, logprobs: list[pb.TokenLogprob], done: pb.Done) -> dict[str, Any]:
        """The choice of the chunk that says why the answer ended."""


class ChatShape(Shape):
    """chat.completion."""

    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    id_prefix = "chatcmpl"

    def choice(self, text: str, logprobs: list[pb.TokenLogprob], done: pb.Done) -> dict[str, Any]:
        """Build the message."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return {
            "index": 0,
            "message": message,
            "logprobs": self._logprobs(logprobs),
            "finish_reason": _FINISH[done.finish_reason],
        }

    def opening(self) -> dict[str, Any]:
        """Say the role, once."""
        return self._delta({"role": "assistant", "content": ""}, None, None)

    def part(self, text: str, logprobs: list[pb.TokenLogprob]) -> dict[str, Any]:
        """Add text."""
        return self._delta({"content": text}, self._logprobs(logprobs), None)

    def ending(self, logprobs: list[pb.TokenLogprob], done: pb.Done) -> dict[str, Any]:
        """Say why it ended."""
        return self._delta({}, self._logprobs(logprobs), _FINISH[done.finish_reason])

    @staticmethod
    def _delta(delta: dict[str, Any], logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
        return {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, items: list[pb.TokenLogprob]) -> dict[str, Any] | None:
        if not items:
            return None
        content = [{**_token(item), "top_logprobs": [_token(top) for top in item.top]} for item in items]
        return {"content": content, "refusal": None}


class CompletionShape(Shape):
    """text_completion, with the log-probabilities as this older API has them."""

    whole_object = "text_completion"
    chunk_object = "text_completion"
    id_prefix = "cmpl"

    def __init__(self, *, request_id: str, model: str) -> None:
        super().__init__(request_id=request_id, model=model)
        self._offset = 0  # characters of the answer before the next token

    def choice(self, text: str, logprobs: list[pb.TokenLogprob], done: pb.Done) -> dict[str, Any]:
        """Build the text; tokens begin after the prompt where it is echoed."""
        tokens = b"".join(item.token for item in logprobs).decode("utf-8", "replace")
        self._offset = max(0, len(text) - len(tokens)) if logprobs else 0
        return self._choice(text, logprobs, _FINISH[done.finish_reason])

    def opening(self) -> None:
        """Say nothing: completions have no role."""

    def part(self, text: str, logprobs: list[pb.TokenLogprob]) -> dict[str, Any]:
        """Add text."""
        choice = self._choice(text, logprobs, None)
        if not logprobs:
            self._offset += len(text)
        return choice

    def ending(self, logprobs: list[pb.TokenLogprob], done: pb.Done) -> dict[str, Any]:
        """Say why it ended."""
        return self._choice("", logprobs, _FINISH[done.finish_reason])

    def _choice(self, text: str, logprobs: list[pb.TokenLogprob], reason: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": self._logprobs(logprobs), "finish_reason": reason}

    def _logprobs(self, items: list[pb.TokenLogprob]) -> dict[str, Any] | None:
        if not items:
            return None
        offsets = []
        for item in items:
            offsets.append(self._offset)
            self._offset += len(_text(item.token))
        return {
            "tokens": [_text(item.token) for item in items],
            "token_logprobs": [item.logprob for item in items],
            "top_logprobs": [{_text(top.token): top.logprob for top in item.top} for item in items],
            "text_offset": offsets,
        }


def usage(done: pb.Done) -> dict[str, Any]:
    """Tokens used."""
    prompt, completion = done.usage.prompt_tokens, done.usage.completion_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": done.usage.cached_tokens},
    }


def _text(token: bytes) -> str:
    return token.decode("utf-8", "replace")


def _token(item: pb.TokenLogprob) -> dict[str, Any]:
    return {"token": _text(item.token), "logprob": item.logprob, "bytes": list(item.token)}
