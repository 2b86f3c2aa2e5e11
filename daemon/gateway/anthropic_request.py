"""From the JSON of Anthropic's Messages API to quantd.v1 messages."""

from __future__ import annotations

import json
from typing import Any

from daemon.gateway.fields import check_fields, refuse
from daemon.gateway.schema import Body, Choice, Int32, Messages, Object, Objects, Stop, read_fields
from daemon.gateway.translate import response_format
from daemon.gateway.translate_chat import tool_definition
from quantd.v1 import generate_pb2 as pb

_REFUSED: dict[str, tuple[Any, ...]] = {
    "container": (),
    "mcp_servers": ([],),
    "context_management": (),
    "service_tier": ("auto", "standard_only"),
}
_MODES = {
    "auto": pb.ToolChoice.MODE_AUTO,
    "any": pb.ToolChoice.MODE_REQUIRED,
    "tool": pb.ToolChoice.MODE_REQUIRED,
    "none": pb.ToolChoice.MODE_NONE,
}
_MAX_STOPS = 16


class MessagesRequest(Body):
    """POST /v1/messages."""

    model: str
    messages: Messages
    max_tokens: Int32 | None = None
    system: Any = None
    stop_sequences: Stop = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int32 | None = None
    tools: Objects = None
    tool_choice: Choice = None
    thinking: Object = None
    output_config: Object = None
    output_format: Object = None


def read_messages(body: dict[str, Any], *, counts: bool = False) -> MessagesRequest:
    """A request from parsed JSON; `counts`: its tokens are to be counted only, so it need not say how many it wants."""
    check_fields(body, more=_REFUSED, taken=frozenset(("service_tier",)))
    request = read_fields(MessagesRequest, body)
    if not request.model:
        raise refuse("model", "must name a model")
    if request.max_tokens is None and not counts:
        raise refuse("max_tokens", "is required")
    return request


def messages_message(request: MessagesRequest) -> pb.ChatRequest:
    """The message of a request; ApiError INVALID_ARGUMENT names the first bad field."""
    options = pb.GenerationOptions(
        stop=_stops(request.stop_sequences), report_queue_position=bool(request.stream)
    )
    if request.max_tokens is not None:
        options.max_tokens = request.max_tokens
    for name in ("temperature", "top_p", "top_k"):
        value = getattr(request, name)
        if value is not None:
            setattr(options.sampling, name, value)
    config = request.output_config or {}
    if not isinstance(config, dict):
        raise refuse("output_config", "must be an object")
    form = request.output_format or config.get("format")
    if form is not None:
        constraint = response_format("output_format", form)
        if constraint is not None:
            options.constraint.CopyFrom(constraint)
    messages = [pb.ChatMessage(role="system", content=text)] if (text := _system(request.system)) else []
    for index, message in enumerate(_list("messages", request.messages)):
        messages += _message(f"messages[{index}]", message)
    answer = pb.ChatRequest(
        model=request.model,
        messages=messages,
        options=options,
        tools=_tools(request.tools),
        reasoning_effort=_effort(request.thinking, config),
        continue_final_message=messages[-1].role == "assistant" and not messages[-1].tool_calls,
    )
    _set_choice(answer, request.tool_choice)
    return answer


def _list(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise refuse(where, "must be a list of at least one")
    return value


def _stops(value: Any) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > _MAX_STOPS or not all(isinstance(v, str) for v in value):
        raise refuse("stop_sequences", f"must be a list of at most {_MAX_STOPS} texts")
    return value


def _effort(thinking: Any, config: dict[str, Any]) -> str:
    """How much to think: an effort if one is given, otherwise on or off."""
    if thinking is not None and not isinstance(thinking, dict):
        raise refuse("thinking", "must be an object")
    kind = (thinking or {}).get("type")
    if kind not in (None, "enabled", "disabled", "adaptive"):
        raise refuse("thinking.type", "must be enabled, disabled or adaptive")
    effort = config.get("effort")
    if effort is not None and not isinstance(effort, str):
        raise refuse("output_config.effort", "must be a string")
    if kind == "disabled":
        return "none"
    return effort or ("high" if kind == "enabled" else "")


def _system(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return _text("system", value)


def _text(where: str, value: Any) -> str:
    """A text, or the texts of a list of blocks, on lines of their own."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise refuse(where, "must be a text or a list of blocks" if value is not None else "is required")
    return "\n".join(_block_text(f"{where}[{index}]", block) for index, block in enumerate(value))


def _block_text(where: str, block: Any) -> str:
    if not isinstance(block, dict) or block.get("type") != "text":
        kind = block.get("type") if isinstance(block, dict) else None
        raise refuse(f"{where}.type", f"{str(kind)[:40]!r} blocks are not supported by this server")
    return _string(f"{where}.text", block.get("text"))


def _string(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise refuse(where, "must be a string" if value is not None else "is required")
    return value


def _message(where: str, value: Any) -> list[pb.ChatMessage]:
    """One message: the results of tools in it become messages of their own, in front of its text."""
    if not isinstance(value, dict):
        raise refuse(where, "must be an object")
    role = value.get("role")
    if role not in ("user", "assistant", "system"):
        raise refuse(f"{where}.role", "must be user or assistant")
    content = value.get("content")
    if isinstance(content, str):
        return [pb.ChatMessage(role=role, content=content)]
    if not isinstance(content, list):
        raise refuse(f"{where}.content", "must be a text or a list of blocks")
    results: list[pb.ChatMessage] = []
    message = pb.ChatMessage(role=role)
    texts: list[str] = []
    for index, block in enumerate(content):
        at = f"{where}.content[{index}]"
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_result":
            results.append(_result(at, block))
        elif kind == "tool_use":
            message.tool_calls.append(_call(at, block))
        elif kind == "thinking":
            message.reasoning += _string(f"{at}.thinking", block.get("thinking"))
        elif kind != "redacted_thinking":
            texts.append(_block_text(at, block))
    message.content = "\n".join(texts)
    has_own = bool(message.content or message.tool_calls)
    return [*results, message] if has_own or not results else results


def _result(where: str, block: dict[str, Any]) -> pb.ChatMessage:
    content = block.get("content")
    return pb.ChatMessage(
        role="tool",
        tool_call_id=_string(f"{where}.tool_use_id", block.get("tool_use_id")),
        content="" if content is None else _text(f"{where}.content", content),
    )


def _call(where: str, block: dict[str, Any]) -> pb.ToolCall:
    arguments = block.get("input", {})
    if not isinstance(arguments, dict):
        raise refuse(f"{where}.input", "must be an object")
    return pb.ToolCall(
        id=_string(f"{where}.id", block.get("id")),
        name=_string(f"{where}.name", block.get("name")),
        arguments=json.dumps(arguments, ensure_ascii=False),
    )


def _tools(value: Any) -> list[pb.ToolDefinition]:
    if not value:
        return []
    tools = []
    for index, tool in enumerate(_list("tools", value)):
        where = f"tools[{index}]"
        if not isinstance(tool, dict):
            raise refuse(where, "must be an object")
        if tool.get("type", "custom") not in ("custom", None):
            raise refuse(f"{where}.type", "tools of the server are not supported")
        tools.append(tool_definition(where, tool, tool.get("input_schema")))
    return tools


def _set_choice(message: pb.ChatRequest, value: Any) -> None:
    if value is None:
        return
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in _MODES:
        raise refuse("tool_choice.type", "must be auto, any, tool or none")
    message.tool_choice.mode = _MODES[kind]
    if kind == "tool":
        message.tool_choice.names.append(_string("tool_choice.name", value.get("name")))
    if value.get("disable_parallel_tool_use") is True:
        message.parallel_tool_calls = False
