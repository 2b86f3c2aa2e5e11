"""The tools of a request: checked, as the template shows them, and as the grammar holds calls to them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from daemon.services.options import MAX_TEXT_BYTES, invalid
from daemon.text.calls import Tool
from quantd.v1 import generate_pb2 as pb
from runtime.grammar import parse_schema, styled_schema

MAX_TOOLS = 128
# Where one of these stands, the schema says itself which other arguments there may be.
_OPEN_KEYWORDS = ("additionalProperties", "patternProperties", "anyOf", "oneOf", "allOf", "$ref")
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools that the model may call in one answer; empty: none."""

    shown: tuple[dict[str, Any], ...] = ()  # as templates take them
    callable: tuple[Tool, ...] = ()
    required: bool = False
    parallel: bool = True

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool.name for tool in self.callable)


def read_tools(request: pb.ChatRequest) -> Tools:
    """The tools of a request; ApiError INVALID_ARGUMENT names what is wrong."""
    if len(request.tools) > MAX_TOOLS:
        raise invalid("tools", f"at most {MAX_TOOLS}, not {len(request.tools)}")
    if sum(tool.ByteSize() for tool in request.tools) > MAX_TEXT_BYTES:
        raise invalid("tools", f"at most {MAX_TEXT_BYTES} bytes in all")
    tools: dict[str, tuple[dict[str, Any], Tool]] = {}
    for index, tool in enumerate(request.tools):
        if not NAME.fullmatch(tool.name):
            raise invalid(f"tools[{index}].name", "must be 1 to 64 letters, digits, _, - or .")
        if tool.name in tools:
            raise invalid(f"tools[{index}].name", f"{tool.name!r} is there twice")
        tools[tool.name] = _read_tool(tool, f"tools[{index}].parameters")
    mode, names = request.tool_choice.mode, list(request.tool_choice.names)
    required = mode == pb.ToolChoice.MODE_REQUIRED
    for name in names:
        if name not in tools:
            raise invalid("tool_choice", f"there is no tool {name[:64]!r}")
    if required and not tools:
        raise invalid("tool_choice", "a call is required, but there are no tools")
    if mode == pb.ToolChoice.MODE_NONE:
        return Tools()
    allowed = [tools[name] for name in dict.fromkeys(names or tools)]
    parallel = request.parallel_tool_calls if request.HasField("parallel_tool_calls") else True
    return Tools(tuple(one for one, _ in allowed), tuple(one for _, one in allowed), required, parallel)


def _read_tool(tool: pb.ToolDefinition, where: str) -> tuple[dict[str, Any], Tool]:
    schema = parse_schema(tool.parameters, where) if tool.parameters.strip() else {}
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise invalid(where, 'must be a JSON Schema of type "object"')
    shown = {"type": "object", "properties": {}, **schema}
    function = {"name": tool.name, "description": tool.description, "parameters": shown}
    held = shown
    if not any(key in schema for key in _OPEN_KEYWORDS):
        held = {**shown, "additionalProperties": False}  # arguments that nobody described help nobody
    return {"type": "function", "function": function}, Tool(
        tool.name, styled_schema(held, lenient=not tool.strict)
    )
