"""From OpenAI's JSON to quantd.v1 messages: conversations and tools."""

from __future__ import annotations

import json
import re
from typing import Any

from daemon.gateway.fields import refuse
from quantd.v1 import generate_pb2 as pb

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MODES = {
    "none": pb.ToolChoice.MODE_NONE,
    "auto": pb.ToolChoice.MODE_AUTO,
    "required": pb.ToolChoice.MODE_REQUIRED,
}


def messages(value: Any) -> list[pb.ChatMessage]:
    """The messages of a conversation."""
    if not isinstance(value, list) or not value:
        raise refuse("messages", "must be a list of at least one message")
    return [_message(f"messages[{index}]", message) for index, message in enumerate(value)]


def _message(where: str, value: Any) -> pb.ChatMessage:
    if not isinstance(value, dict):
        raise refuse(where, "must be an object")
    role = value.get("role")
    if not isinstance(role, str):
        raise refuse(f"{where}.role", "must be a string" if "role" in value else "is required")
    for field in ("function_call", "audio"):
        if value.get(field):
            raise refuse(f"{where}.{field}", "is not supported by this server")
    call_id = value.get("tool_call_id")
    if role == "tool" and not isinstance(call_id, str):
        raise refuse(f"{where}.tool_call_id", "is required in a tool message")
    name = value.get("name")
    if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise refuse(f"{where}.name", "must be 1 to 64 letters, digits, - or _")
    calls = _calls(f"{where}.tool_calls", value.get("tool_calls"))
    content = value.get("content")
    if content is None and (calls or isinstance(value.get("refusal"), str)):
        content = value.get("refusal") or ""
    reasoning = value.get("reasoning_content", value.get("reasoning"))
    if reasoning is not None and not isinstance(reasoning, str):
        raise refuse(f"{where}.reasoning_content", "must be a string")
    return pb.ChatMessage(
        role=role,
        content=_content(f"{where}.content", content),
        name=name or "",
        tool_calls=calls,
        tool_call_id=call_id if role == "tool" and call_id else "",
        reasoning=reasoning or "",
    )


def _calls(where: str, value: Any) -> list[pb.ToolCall]:
    if not value:
        return []
    if not isinstance(value, list):
        raise refuse(where, "must be a list of calls")
    calls = []
    for index, call in enumerate(value):
        at = f"{where}[{index}]"
        if not isinstance(call, dict):
            raise refuse(at, "must be an object")
        if call.get("type", "function") != "function":
            raise refuse(f"{at}.type", 'must be "function"')
        function = call.get("function")
        if not isinstance(function, dict):
            raise refuse(f"{at}.function", "must be an object")
        name, arguments, call_id = function.get("name"), function.get("arguments", "{}"), call.get("id", "")
        if not isinstance(name, str):
            raise refuse(f"{at}.function.name", "must be a string")
        if isinstance(arguments, dict):
            arguments = json.dumps(arguments, ensure_ascii=False)
        if not isinstance(arguments, str):
            raise refuse(f"{at}.function.arguments", "must be a JSON object as text")
        if not isinstance(call_id, str):
            raise refuse(f"{at}.id", "must be a string")
        calls.append(pb.ToolCall(id=call_id, name=name, arguments=arguments))
    return calls


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
    if kind not in ("text", "refusal"):
        known = isinstance(kind, str) and kind in ("image_url", "input_audio", "file", "video_url")
        raise refuse(
            f"{where}.type", f'{kind} parts are not supported; only "text" is' if known else 'must be "text"'
        )
    text = part.get(kind)
    if not isinstance(text, str):
        raise refuse(f"{where}.{kind}", "must be a string")
    return text


def tools(value: Any) -> list[pb.ToolDefinition]:
    """The tools that the model may call."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise refuse("tools", "must be a list of tools")
    return [_tool(f"tools[{index}]", tool) for index, tool in enumerate(value)]


def _tool(where: str, value: Any) -> pb.ToolDefinition:
    if not isinstance(value, dict):
        raise refuse(where, "must be an object")
    if value.get("type", "function") != "function":
        raise refuse(f"{where}.type", 'only "function" tools are supported by this server')
    function = value.get("function")
    if not isinstance(function, dict):
        raise refuse(f"{where}.function", "must be an object")
    return tool_definition(f"{where}.function", function, function.get("parameters"))


def tool_definition(where: str, function: dict[str, Any], schema: Any) -> pb.ToolDefinition:
    """A tool by its name, description and strictness, and the schema of its arguments."""
    name, description, strict = function.get("name"), function.get("description"), function.get("strict")
    if not isinstance(name, str):
        raise refuse(f"{where}.name", "must be a string" if "name" in function else "is required")
    if not isinstance(description, str | None):
        raise refuse(f"{where}.description", "must be a string")
    if not isinstance(strict, bool | None):
        raise refuse(f"{where}.strict", "must be true or false")
    if not isinstance(schema, dict | None):
        raise refuse(f"{where}.parameters", "must be a JSON Schema")
    return pb.ToolDefinition(
        name=name,
        description=description or "",
        parameters=json.dumps(schema, ensure_ascii=False) if schema else "",
        strict=bool(strict),
    )


def tool_choice(value: Any) -> pb.ToolChoice | None:
    """Who decides whether tools are called, as a word or as an object that names tools."""
    if value is None:
        return None
    if isinstance(value, str) and value in _MODES:
        return pb.ToolChoice(mode=_MODES[value])
    if isinstance(value, dict) and value.get("type") == "function":
        named = value.get("function", value)  # the responses API has the name outside
        name = named.get("name") if isinstance(named, dict) else None
        if not isinstance(name, str):
            raise refuse("tool_choice.function.name", "must be a string")
        return pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED, names=[name])
    if isinstance(value, dict) and value.get("type") == "allowed_tools":
        return _allowed(value.get("allowed_tools", value))
    raise refuse("tool_choice", 'must be "none", "auto", "required" or an object that names a function')


def _allowed(value: Any) -> pb.ToolChoice:
    where = "tool_choice.allowed_tools"
    if not isinstance(value, dict) or value.get("mode") not in ("auto", "required"):
        raise refuse(f"{where}.mode", 'must be "auto" or "required"')
    listed = value.get("tools")
    if not isinstance(listed, list) or not listed:
        raise refuse(f"{where}.tools", "must be a list of at least one tool")
    names = []
    for tool in listed:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str):
            raise refuse(f"{where}.tools", "must name functions")
        names.append(name)
    return pb.ToolChoice(mode=_MODES[value["mode"]], names=names)
