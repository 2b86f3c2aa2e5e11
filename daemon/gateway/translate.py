"""From OpenAI's JSON to quantd.v1 messages."""

from __future__ import annotations

import re
from typing import Any

from daemon.gateway.schema import ChatCompletionRequest, CompletionRequest, GenerationRequest, refuse
from quantd.v1 import generate_pb2 as pb

# What OpenAI documents for completions that do not say how long they may get.
DEFAULT_COMPLETION_TOKENS = 16
MAX_LOGIT_BIAS = 1024
MAX_STOPS = 16

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TOKEN_ID = re.compile(r"[0-9]{1,9}")
_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repeat_penalty",
    "repeat_last_n",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)


def chat_request(request: ChatCompletionRequest) -> pb.ChatRequest:
    """The message of a chat completion; ApiError INVALID_ARGUMENT names the first bad field."""
    options = _options(request)
    wanted, older = request.max_completion_tokens, request.max_tokens
    if wanted is not None and older is not None and wanted != older:
        raise refuse("max_tokens", "contradicts max_completion_tokens; give one of them")
    if wanted is not None or older is not None:
        options.max_tokens = wanted if wanted is not None else older or 0
    if request.top_logprobs is not None and not request.logprobs:
        raise refuse("top_logprobs", "needs logprobs: true")
    if request.logprobs:
        options.top_logprobs = request.top_logprobs or 0
    return pb.ChatRequest(model=request.model, messages=_messages(request.messages), options=options)


def completion_request(request: CompletionRequest) -> pb.GenerateRequest:
    """The message of a completion; ApiError INVALID_ARGUMENT names the first bad field."""
    options = _options(request)
    options.max_tokens = DEFAULT_COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
    if request.logprobs is not None:
        options.top_logprobs = request.logprobs
    message = pb.GenerateRequest(model=request.model, options=options, echo=bool(request.echo))
    _set_prompt(message, request.prompt)
    return message


def _options(request: GenerationRequest) -> pb.GenerationOptions:
    """Options that are set where the request sets them: the services know the defaults."""
    sampling = pb.SamplingParams()
    for name in _SAMPLING:
        value = getattr(request, name)
        if value is not None:
            setattr(sampling, name, value)
    for key, bias in _logit_bias(request.logit_bias or {}).items():
        sampling.logit_bias[key] = bias
    return pb.GenerationOptions(
        sampling=sampling,
        stop=_stops(request.stop),
        ignore_eos=bool(request.ignore_eos),
        report_queue_position=bool(request.stream),
    )


def _logit_bias(biases: dict[str, float]) -> dict[int, float]:
    if len(biases) > MAX_LOGIT_BIAS:
        raise refuse("logit_bias", f"at most {MAX_LOGIT_BIAS} tokens")
    if not all(map(_TOKEN_ID.fullmatch, biases)):
        raise refuse("logit_bias", "keys must be token ids")
    return {int(key): bias for key, bias in biases.items()}


def _stops(value: Any) -> list[str]:
    if value is None:
        return []
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops[: MAX_STOPS + 1]):
        raise refuse("stop", "must be a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise refuse("stop", f"at most {MAX_STOPS} texts")
    return stops


def _messages(value: Any) -> list[pb.ChatMessage]:
    if not isinstance(value, list) or not value:
        raise refuse("messages", "must be a list of at least one message")
    return [_message(f"messages[{index}]", message) for index, message in enumerate(value)]


def _message(where: str, value: Any) -> pb.ChatMessage:
    if not isinstance(value, dict):
        raise refuse(where, "must be an object")
    role = value.get("role")
    if not isinstance(role, str):
        raise refuse(f"{where}.role", "must be a string" if "role" in value else "is required")
    for field in ("tool_calls", "function_call", "audio"):
        if value.get(field):
            raise refuse(f"{where}.{field}", "is not supported by this server")
    if role == "tool" and not isinstance(value.get("tool_call_id"), str):
        raise refuse(f"{where}.tool_call_id", "is required in a tool message")
    name = value.get("name")
    if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise refuse(f"{where}.name", "must be 1 to 64 letters, digits, - or _")
    content = _content(f"{where}.content", value.get("content"))
    return pb.ChatMessage(role=role, content=content, name=name or "")


def _content(where: str, value: Any) -> str:
    """The text of a message; the parts of a list stand on lines of their own."""
    if isinstance(value, str):
        return value
    if value is None:
        raise refuse(where, "is required")
    if not isinstance(value, list):
        raise refuse(where, "must be a string or a list of parts")
    if not value:
        raise refuse(where, "has no parts")
    return "\n".join(_part(f"{where}[{index}]", part) for index, part in enumerate(value))


def _part(where: str, part: Any) -> str:
    if not isinstance(part, dict):
        raise refuse(where, "must be an object")
    kind = part.get("type")
    if kind != "text":
        known = isinstance(kind, str) and kind in ("image_url", "input_audio", "file", "refusal", "video_url")
        raise refuse(
            f"{where}.type", f'{kind} parts are not supported; only "text" is' if known else 'must be "text"'
        )
    text = part.get("text")
    if not isinstance(text, str):
        raise refuse(f"{where}.text", "must be a string")
    return text


def _set_prompt(message: pb.GenerateRequest, value: Any) -> None:
    """A string, a list of one string, token ids, or a list of one list of token ids."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        if not value:
            raise refuse("prompt", "must not be empty")
        message.text = value
        return
    if not isinstance(value, list):
        raise refuse("prompt", "must be a string or a list of token ids")
    if not value:
        raise refuse("prompt", "must not be empty")
    if isinstance(value[0], str | list):
        raise refuse("prompt", f"only one prompt in a request is supported, not {len(value)}")
    if not all(type(item) is int and 0 <= item < 2**31 for item in value):
        raise refuse("prompt", "must be a string or a list of token ids")
    message.tokens.ids.extend(value)
