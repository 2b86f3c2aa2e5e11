"""From the JSON of Ollama's API to quantd.v1 messages."""

from __future__ import annotations

import math
import re
from typing import Any

from daemon.gateway.fields import refuse
from daemon.gateway.schema import Body, Int32, Messages, Object, Objects
from daemon.gateway.translate import response_format
from daemon.gateway.translate_chat import messages, tools
from daemon.keep_alive import FOREVER, parse_keep_alive
from quantd.v1 import generate_pb2 as pb

MAX_STOPS = 16
MAX_REPEAT_LAST_N = 4096

_FLOATS = ("temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
_EFFORTS = {False: "none", True: "medium", "low": "low", "medium": "medium", "high": "high", "max": "xhigh"}
_SPEAKER = re.compile(r"[A-Za-z0-9_-]{1,64}")


class OllamaFields(Body):
    """Fields that chat and generate share."""

    model: str
    stream: bool | None = None
    format: Any = None
    options: Object = None
    keep_alive: str | int | float | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: Int32 | None = None


class OllamaChatRequest(OllamaFields):
    """POST /api/chat."""

    messages: Messages = None
    tools: Objects = None


class OllamaGenerateRequest(OllamaFields):
    """POST /api/generate."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    raw: bool | None = None
    context: list[int] | None = None
    images: list[str] | None = None


def chat_message(request: OllamaChatRequest) -> pb.ChatRequest:
    """The message of a chat; ApiError INVALID_ARGUMENT names the first bad field."""
    spoken = messages(_in_openai_form(request.messages))
    answer = pb.ChatRequest(
        model=request.model,
        messages=spoken,
        tools=tools(request.tools),
        options=_options(request),
        reasoning_effort=_effort(request.think),
        continue_final_message=spoken[-1].role == "assistant" and not spoken[-1].tool_calls,
    )
    _set_keep_alive(answer, request.keep_alive)
    return answer


def generate_message(request: OllamaGenerateRequest) -> pb.ChatRequest | pb.GenerateRequest:
    """The message of a prompt: a conversation of one question, or with `raw` or `suffix` the text as it stands."""
    if request.template:
        raise refuse("template", "is not taken per request; make a model that has it with /api/create")
    if request.context:
        raise refuse("context", "is not supported by this server; send the conversation to /api/chat")
    if request.images:
        raise refuse("images", "are not supported by this server")
    prompt = request.prompt or ""
    if not request.raw and not request.suffix:
        spoken = [pb.ChatMessage(role="system", content=request.system)] if request.system else []
        spoken.append(pb.ChatMessage(role="user", content=prompt))
        chat = pb.ChatRequest(
            model=request.model,
            messages=spoken,
            options=_options(request),
            reasoning_effort=_effort(request.think),
        )
        _set_keep_alive(chat, request.keep_alive)
        return chat
    if request.system:
        raise refuse("system", "cannot be combined with raw or suffix")
    message = pb.GenerateRequest(
        model=request.model, text=prompt, parse_special=bool(request.raw), options=_options(request)
    )
    if request.suffix:
        message.suffix = request.suffix
    _set_keep_alive(message, request.keep_alive)
    return message


def as_plain_text(message: pb.ChatRequest) -> pb.GenerateRequest:
    """The prompt of a conversation of one question, for a model without a chat template."""
    text = "\n\n".join(one.content for one in message.messages)
    plain = pb.GenerateRequest(model=message.model, text=text, options=message.options)
    if message.HasField("keep_alive_ms"):
        plain.keep_alive_ms = message.keep_alive_ms
    return plain


def keep_alive_ms(value: str | float | None) -> int | None:
    """How long the model stays, in milliseconds, -1 for ever; None where the request does not say."""
    if value is None or value == "":
        return None
    try:
        seconds = parse_keep_alive(value)
    except ValueError as failure:
        raise refuse("keep_alive", str(failure)) from None
    return -1 if seconds == FOREVER else round(seconds * 1e3)


def options_message(value: Any, where: str = "options") -> pb.GenerationOptions:
    """Ollama's options; those that no part of this server has are taken without effect, as Ollama does."""
    options = pb.GenerationOptions()
    if value is None:
        return options
    if not isinstance(value, dict):
        raise refuse(where, "must be an object")
    for name in _FLOATS:
        if value.get(name) is not None:
            setattr(options.sampling, name, _number(f"{where}.{name}", value[name]))
    whole = {
        name: _whole(f"{where}.{name}", value[name])
        for name in ("top_k", "seed", "num_predict", "num_ctx", "repeat_last_n")
        if value.get(name) is not None
    }
    if "top_k" in whole:
        options.sampling.top_k = max(0, whole["top_k"])
    if whole.get("seed", -1) >= 0:
        options.sampling.seed = whole["seed"]
    if (
        whole.get("num_predict", -1) > 0
    ):  # -1: no limit, -2: until the context is full, which is the limit here
        options.max_tokens = whole["num_predict"]
    if whole.get("num_ctx", 0) > 0:
        options.context_tokens = whole["num_ctx"]
    if "repeat_last_n" in whole:  # -1: the whole context
        last = whole["repeat_last_n"]
        options.sampling.repeat_last_n = MAX_REPEAT_LAST_N if last < 0 else last
    options.stop.extend(_stops(f"{where}.stop", value.get("stop")))
    return options


def _options(request: OllamaFields) -> pb.GenerationOptions:
    options = options_message(request.options)
    constraint = _format(request.format)
    if constraint is not None:
        options.constraint.CopyFrom(constraint)
    if request.top_logprobs and not request.logprobs:
        raise refuse("top_logprobs", "needs logprobs: true")
    if request.logprobs:
        options.top_logprobs = request.top_logprobs or 0
    return options


def _format(value: Any) -> pb.Constraint | None:
    if value is None or value == "":
        return None
    if value == "json":
        return pb.Constraint(json_object=True)
    if isinstance(value, dict):
        return response_format("format", {"type": "json_schema", "schema": value})
    raise refuse("format", 'must be "json" or a JSON Schema')


def _effort(think: bool | str | None) -> str:
    if think is None or think == "":
        return ""
    if think not in _EFFORTS:
        raise refuse("think", 'must be true, false, "low", "medium", "high" or "max"')
    return _EFFORTS[think]


def _set_keep_alive(message: pb.ChatRequest | pb.GenerateRequest, value: str | float | None) -> None:
    milliseconds = keep_alive_ms(value)
    if milliseconds is not None:
        message.keep_alive_ms = milliseconds


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e9:
        raise refuse(where, "must be a number")
    return float(value)


def _whole(where: str, value: Any) -> int:
    """A whole number; clients that have only one kind of number send 1.0."""
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    limit = 2**63 if where.endswith(".seed") else 2**31
    if isinstance(value, bool) or not isinstance(value, int) or not -limit <= value < limit:
        raise refuse(where, "must be a whole number")
    return value


def _stops(where: str, value: Any) -> list[str]:
    if value is None:
        return []
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise refuse(where, "must be a list of texts")
    if len(stops) > MAX_STOPS:
        raise refuse(where, f"at most {MAX_STOPS} texts")
    return stops


def _in_openai_form(value: Any) -> Any:
    """Messages with the same facts under OpenAI's names; what is wrong in them is left for the reader of those to refuse.

    Ollama's clients may send calls without ids, and answers that name only their tool: the calls get ids in order, and an
    answer that of the first call of its tool that has none yet.
    """
    if not isinstance(value, list):
        return value
    waiting: list[tuple[str, str]] = []  # id and tool of calls without an answer
    return [
        _message(f"messages[{index}]", one, index, waiting) if isinstance(one, dict) else one
        for index, one in enumerate(value)
    ]


def _message(where: str, message: dict[str, Any], index: int, waiting: list[tuple[str, str]]) -> Any:
    if message.get("images"):
        raise refuse(f"{where}.images", "are not supported by this server")
    spoken: dict[str, Any] = {"role": message.get("role"), "content": message.get("content")}
    if spoken["content"] is None:
        spoken["content"] = ""
    if message.get("thinking") is not None:
        spoken["reasoning_content"] = message["thinking"]
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        spoken["tool_calls"] = [
            {**call, "id": call.get("id") or f"call_{index}_{number}"} if isinstance(call, dict) else call
            for number, call in enumerate(calls)
        ]
        waiting[:] = [
            (str(call["id"]), str(call["function"].get("name")))
            for call in spoken["tool_calls"]
            if isinstance(call, dict) and isinstance(call.get("function"), dict)
        ]
    if spoken["role"] == "tool":
        tool = message.get("tool_name") or message.get("name")
        spoken["tool_call_id"] = _answered(message.get("tool_call_id"), tool, waiting)
        if isinstance(tool, str) and _SPEAKER.fullmatch(tool):
            spoken["name"] = tool
    return spoken


def _answered(call_id: Any, tool: Any, waiting: list[tuple[str, str]]) -> Any:
    for position, (waiting_id, name) in enumerate(waiting):
        if call_id == waiting_id or (not call_id and tool in (None, "", name)):
            del waiting[position]
            return waiting_id
    return call_id or str(tool or "")
