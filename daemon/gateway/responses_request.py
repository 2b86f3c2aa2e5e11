"""From the JSON of OpenAI's Responses API to quantd.v1 messages.  Nothing is stored: each request brings everything."""

from __future__ import annotations

from typing import Any

from daemon.gateway.fields import check_fields, refuse
from daemon.gateway.schema import Body, Choice, Int32, Object, Objects, StreamOptions, read_fields
from daemon.gateway.translate import response_format
from daemon.gateway.translate_chat import tool_choice, tool_definition
from quantd.v1 import generate_pb2 as pb

# Fields that this endpoint documents and that are not done, with the values that ask for nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "background_options": (),
    "access_programs": ([],),
    "image": (),
    "conversation": (),
    "context_management": (),
    "previous_response_id": (),
    "prompt": (),
    "truncation": ("disabled",),
    "max_tool_calls": (),
}
_INCLUDED = ("message.output_text.logprobs", "reasoning.encrypted_content")
_TEXT_PARTS = ("input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text")


class ResponsesRequest(Body):
    """POST /v1/responses."""

    model: str
    input: Any
    instructions: str | None = None
    include: list[str] | None = None
    max_output_tokens: Int32 | None = None
    metadata: Object = None
    parallel_tool_calls: bool | None = None
    reasoning: Object = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    text: Object = None
    tool_choice: Choice = None
    tools: Objects = None
    top_logprobs: Int32 | None = None
    top_p: float | None = None


def read_responses(body: dict[str, Any]) -> ResponsesRequest:
    """A request from parsed JSON; ApiError INVALID_ARGUMENT names the first bad field."""
    check_fields(body, more=_REFUSED)
    request = read_fields(ResponsesRequest, body)
    if not request.model:
        raise refuse("model", "must name a model")
    for item in request.include or ():
        if item not in _INCLUDED:
            raise refuse("include", f"{item[:80]!r} is not supported by this server")
    return request


def responses_message(request: ResponsesRequest) -> pb.ChatRequest:
    """The message of a request; ApiError INVALID_ARGUMENT names the first bad field."""
    options = pb.GenerationOptions(report_queue_position=bool(request.stream))
    if request.max_output_tokens is not None:
        options.max_tokens = request.max_output_tokens
    for name in ("temperature", "top_p"):
        value = getattr(request, name)
        if value is not None:
            setattr(options.sampling, name, value)
    if request.top_logprobs is not None or "message.output_text.logprobs" in (request.include or ()):
        options.top_logprobs = request.top_logprobs or 0
    text = _object("text", request.text)
    if text.get("verbosity") not in (None, "medium"):
        raise refuse("text.verbosity", "only 'medium' is supported by this server")
    if text.get("format") is not None:
        constraint = response_format("text.format", text["format"])
        if constraint is not None:
            options.constraint.CopyFrom(constraint)
    reasoning = _object("reasoning", request.reasoning)
    effort = reasoning.get("effort") or ""
    if not isinstance(effort, str):
        raise refuse("reasoning.effort", "must be a string")
    message = pb.ChatRequest(
        model=request.model,
        messages=_messages(request),
        options=options,
        tools=_tools(request.tools),
        reasoning_effort=effort,
    )
    choice = tool_choice(request.tool_choice)
    if choice is not None:
        message.tool_choice.CopyFrom(choice)
    if request.parallel_tool_calls is not None:
        message.parallel_tool_calls = request.parallel_tool_calls
    return message


def _object(field: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise refuse(field, "must be an object")
    return value


def _tools(value: Any) -> list[pb.ToolDefinition]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise refuse("tools", "must be a list of tools")
    tools = []
    for index, tool in enumerate(value):
        where = f"tools[{index}]"
        if not isinstance(tool, dict):
            raise refuse(where, "must be an object")
        if tool.get("type") != "function":
            raise refuse(f"{where}.type", 'only "function" tools are supported by this server')
        tools.append(tool_definition(where, tool, tool.get("parameters")))
    return tools


def _messages(request: ResponsesRequest) -> list[pb.ChatMessage]:
    messages = []
    if request.instructions:
        messages.append(pb.ChatMessage(role="system", content=request.instructions))
    if isinstance(request.input, str):
        if not request.input:
            raise refuse("input", "must not be empty")
        messages.append(pb.ChatMessage(role="user", content=request.input))
        return messages
    if not isinstance(request.input, list) or not request.input:
        raise refuse("input", "must be a text or a list of at least one item")
    thoughts = ""
    for index, item in enumerate(request.input):
        where = f"input[{index}]"
        if not isinstance(item, dict):
            raise refuse(where, "must be an object")
        kind = item.get("type", "message")
        if kind == "reasoning":
            thoughts = _text(f"{where}.content", item.get("content") or item.get("summary") or [])
        elif kind == "message":
            messages.append(_message(where, item, thoughts))
            thoughts = ""
        elif kind == "function_call":
            _add_call(where, item, messages, thoughts)
            thoughts = ""
        elif kind == "function_call_output":
            call_id = _string(f"{where}.call_id", item.get("call_id"))
            output = _text(f"{where}.output", item.get("output"))
            messages.append(pb.ChatMessage(role="tool", tool_call_id=call_id, content=output))
        else:
            raise refuse(f"{where}.type", f"{str(kind)[:40]!r} items are not supported by this server")
    return messages


def _message(where: str, item: dict[str, Any], thoughts: str) -> pb.ChatMessage:
    role = _string(f"{where}.role", item.get("role"))
    content = _text(f"{where}.content", item.get("content"))
    return pb.ChatMessage(role=role, content=content, reasoning=thoughts if role == "assistant" else "")


def _add_call(where: str, item: dict[str, Any], messages: list[pb.ChatMessage], thoughts: str) -> None:
    """A call belongs to the assistant message in front of it."""
    call = pb.ToolCall(
        id=_string(f"{where}.call_id", item.get("call_id")),
        name=_string(f"{where}.name", item.get("name")),
        arguments=_string(f"{where}.arguments", item.get("arguments")),
    )
    if not messages or messages[-1].role != "assistant":
        messages.append(pb.ChatMessage(role="assistant", reasoning=thoughts))
    messages[-1].tool_calls.append(call)


def _string(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise refuse(where, "must be a string" if value is not None else "is required")
    return value


def _text(where: str, value: Any) -> str:
    """A text, or the texts of a list of parts, on lines of their own."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise refuse(where, "must be a text or a list of parts" if value is not None else "is required")
    texts = []
    for index, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in _TEXT_PARTS:
            raise refuse(f"{where}[{index}].type", "only parts of text are supported by this server")
        text = part.get("refusal" if kind == "refusal" else "text")
        texts.append(_string(f"{where}[{index}].text", text))
    return "\n".join(texts)
