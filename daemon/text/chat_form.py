"""How one model holds a conversation: how its template takes tools, how it writes calls, and how it thinks.

Read from the template's own source, as nothing else in a model file says it.  A template that knows no tools gets them in
words, in the form that most models have seen (`HERMES`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from daemon.errors import ApiError
from daemon.text.calls import GRANITE, HERMES, LLAMA3, MISTRAL, MISTRAL_ARGS, PHI4, CallSyntax
from daemon.text.parts import ThinkTags

_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
_EFFORTS_WITHOUT_THOUGHTS = ("none",)

_INTRODUCTION = (
    "You can call tools. To call one, answer with a block of exactly this form:\n"
    '<tool_call>\n{"name": "name of the tool", "arguments": {"argument": "value"}}\n</tool_call>\n'
    "You will then be given what the tool answered. These are the tools, one a line, with the JSON Schema of their "
    "arguments:\n"
)


@dataclass(frozen=True, slots=True)
class Call:
    """A call in the conversation so far."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: str
    content: str
    name: str = ""
    calls: tuple[Call, ...] = ()
    call_id: str = ""  # of a tool message: the call that it answers
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class ChatForm:
    """One model's way of holding conversations."""

    calls: CallSyntax = HERMES
    takes_tools: bool = False  # the template renders tools
    takes_calls: bool = False  # the template renders the calls of earlier messages
    takes_tool_role: bool = False
    takes_system: bool = True
    takes_reasoning: bool = False
    short_ids: bool = False  # ids of calls must be nine letters or digits
    tools_in_system: bool = False  # the tools stand in the system message, as JSON text
    tool_variables: tuple[str, ...] = ("tools",)
    think: ThinkTags | None = None
    variables: frozenset[str] = field(default_factory=frozenset)  # that tell the template how much to think

    def arrange(
        self, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]]
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The messages as the template takes them, and the variables that carry the tools."""
        turns = self._with_system(turns, tools)
        if not self.calls.parallel and self.takes_calls:
            turns = _one_call_each(turns)
        messages = [self._message(turn, turns) for turn in turns]
        if not self.takes_tool_role:
            messages = _merged(messages)
        variables: dict[str, Any] = {"tools": None}
        if tools and self.takes_tools:
            if self.tools_in_system:
                messages[0]["tools"] = json.dumps([tool["function"] for tool in tools], ensure_ascii=False)
            else:
                variables = {name: list(tools) for name in self.tool_variables}
        return messages, variables

    def effort_variables(self, effort: str) -> dict[str, Any]:
        """The variables that tell the template how much to think; none where it cannot be told."""
        if not effort:
            return {}
        thinks = effort not in _EFFORTS_WITHOUT_THOUGHTS
        told = {"enable_thinking": thinks, "thinking": thinks, "reasoning_effort": effort}
        return {name: value for name, value in told.items() if name in self.variables}

    def _with_system(self, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]]) -> list[Turn]:
        """Instructions in words where the template takes none, in the message where it takes them."""
        turns = list(turns)
        words = ""
        if tools and not self.takes_tools:
            words = _INTRODUCTION + "\n".join(
                json.dumps(tool["function"], ensure_ascii=False) for tool in tools
            )
        has_system = bool(turns) and turns[0].role == "system"
        if words:
            content = f"{turns[0].content}\n\n{words}" if has_system else words
            turns = [Turn("system", content), *turns[has_system:]]
            has_system = True
        elif tools and self.tools_in_system and not has_system:
            turns = [Turn("system", "You are a helpful assistant with some tools."), *turns]
        if has_system and not self.takes_system:
            first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
            if first is not None:
                joined = f"{turns[0].content}\n\n{turns[first].content}"
                turns[first] = Turn("user", joined, turns[first].name)
                turns = turns[1:]
        return turns

    def _message(self, turn: Turn, turns: Sequence[Turn]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.name:
            message["name"] = turn.name
        if turn.reasoning and self.takes_reasoning:
            message["reasoning_content"] = turn.reasoning
        if turn.calls and self.takes_calls:
            message["tool_calls"] = [
                {
                    "id": self._id(call.id),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in turn.calls
            ]
        elif turn.calls:
            written = self._written(turn.calls)
            message["content"] = f"{turn.content}\n{written}" if turn.content else written
        if turn.role == "tool":
            if self.takes_tool_role:
                message["tool_call_id"] = self._id(turn.call_id)
                message.setdefault("name", _called_name(turn.call_id, turns))
            else:
                message["role"] = "user"
                message["content"] = f"<tool_response>\n{turn.content}\n</tool_response>"
        return message

    def _written(self, calls: Sequence[Call]) -> str:
        """Earlier calls as the model itself writes them."""
        syntax = self.calls
        texts = [
            json.dumps({syntax.name: call.name, syntax.arguments: call.arguments}, ensure_ascii=False)
            for call in calls
        ]
        begin = "" if syntax.mark_is_json else syntax.begins[0]
        return f"{begin}{syntax.opening}{syntax.between.join(texts)}{syntax.closing}"

    def _id(self, call_id: str) -> str:
        if not self.short_ids or _SHORT_ID.fullmatch(call_id):
            return call_id
        return short_id(call_id)


def short_id(text: str) -> str:
    """Nine letters and digits that stand for any id."""
    return hashlib.sha256(text.encode()).hexdigest()[:9]


def _called_name(call_id: str, turns: Sequence[Turn]) -> str:
    return next((call.name for turn in turns for call in turn.calls if call.id == call_id), "")


def _one_call_each(turns: Sequence[Turn]) -> list[Turn]:
    """Messages with several calls become several messages, each followed by the answer of its tool."""
    turns = list(turns)
    out: list[Turn] = []
    while turns:
        turn = turns.pop(0)
        if len(turn.calls) < 2:
            out.append(turn)
            continue
        for index, call in enumerate(turn.calls):
            out.append(Turn("assistant", turn.content if index == 0 else "", turn.name, (call,)))
            for answer in turns:
                if answer.role != "tool":
                    break
                if answer.call_id == call.id:
                    turns.remove(answer)
                    out.append(answer)
                    break
    return out


def _merged(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbours of the role user become one: templates that know no tools often want the roles to take turns."""
    out: list[dict[str, Any]] = []
    for message in messages:
        if out and message["role"] == out[-1]["role"] == "user":
            out[-1]["content"] += "\n" + message["content"]
        else:
            out.append(message)
    return out


def read_form(source: str, *, takes_system: bool = True) -> ChatForm:
    """The form that a template's source shows."""
    takes_tools = re.search(r"\btools\b", source) is not None
    calls, short_ids, in_system = HERMES, False, False
    if "[TOOL_CALLS]" in source:
        calls = MISTRAL_ARGS if "[ARGS]" in source else MISTRAL
        short_ids = re.search(r"length\s*!=\s*9", source) is not None
    elif "<tool_call>" in source:
        calls = HERMES
    elif "<|tool|>" in source:
        calls, in_system = PHI4, True
    elif "available_tools" in source and "<|tool_call|>" in source:
        calls = GRANITE
    elif takes_tools and '"parameters": ' in source and "ipython" in source:
        calls = LLAMA3
    elif takes_tools and "tool_calls" not in source:
        takes_tools = False
    variables = frozenset(
        name
        for name in ("enable_thinking", "thinking", "reasoning_effort")
        if re.search(rf"\b{name}\b", source)
    )
    known = calls is not HERMES or "<tool_call>" in source
    return ChatForm(
        calls=calls,
        takes_tools=takes_tools and known,
        takes_calls="tool_calls" in source and takes_tools and known,
        takes_tool_role=calls is GRANITE
        or (known and takes_tools and re.search(r"['\"]tool['\"]", source) is not None),
        takes_system=takes_system,
        takes_reasoning="reasoning_content" in source,
        short_ids=short_ids,
        tools_in_system=in_system,
        tool_variables=("tools", "xml_tools") if "xml_tools" in source else ("tools",),
        think=ThinkTags() if "<think>" in source or "</think>" in source else None,
        variables=variables,
    )


def parse_arguments(text: str, where: str) -> dict[str, Any]:
    """The arguments of a call in the conversation; ApiError INVALID_ARGUMENT names `where`."""
    try:
        value = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ApiError("INVALID_ARGUMENT", f"{where}: must be a JSON object as text", field=where)
    return value
