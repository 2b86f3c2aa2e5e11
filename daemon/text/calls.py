"""How models write tool calls: the marks, and the grammar that holds a call to its tool's schema.

Forms are those of the models' published chat templates; daemon/text/call_scanner.py reads what was written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_CALLS = 16  # in one answer


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """One way to write calls: `begins` `opening` call (`between` call)* `closing`.

    A call is a JSON object with the keys `name` and `arguments`; with an empty `name`, the tool's name, the text `arguments`
    and the arguments.
    """

    begins: tuple[str, ...]  # marks that begin calls; the first one is what the model is held to
    opening: str = ""
    closing: str = ""
    between: str = ""
    name: str = "name"
    arguments: str = "arguments"
    is_list: bool = False  # the calls stand in one JSON list, which `opening` opens
    at_start: bool = False  # a mark counts only where the answer begins with it
    parallel: bool = True  # there may be several
    mark_is_json: bool = False  # the first mark is the beginning of the call's own JSON


HERMES = CallSyntax(("<tool_call>",), "\n", "\n</tool_call>", "\n</tool_call>\n<tool_call>\n")
LLAMA3 = CallSyntax(
    ('{"name"', "<|python_tag|>"), arguments="parameters", at_start=True, parallel=False, mark_is_json=True
)
MISTRAL = CallSyntax(("[TOOL_CALLS]",), "[", "]", ", ", is_list=True)
MISTRAL_ARGS = CallSyntax(("[TOOL_CALLS]",), "", "", "[TOOL_CALLS]", name="", arguments="[ARGS]")
GRANITE = CallSyntax(("<|tool_call|>", "<tool_call>"), "[", "]", ", ", is_list=True)
PHI4 = CallSyntax(("<|tool_call|>", "functools"), "[", "]", ", ", is_list=True)


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that may be called: its name, and the schema of its arguments as the grammar takes it."""

    name: str
    schema: Any


def call_grammar(
    syntax: CallSyntax, tools: Sequence[Tool], controls: Mapping[str, int], *, parallel: bool, after: str = ""
) -> str:
    """A Lark grammar of calls to `tools`; `after`: the mark that was written already.

    `controls` are the control tokens of the model by text: a grammar must name them by number.
    """

    def text(value: str) -> str:
        return _lark_text(value, controls)

    def call(index: int, written: str = "") -> str:
        tool = tools[index]
        if not syntax.name:
            return f"{text(tool.name + syntax.arguments)} args_{index}"
        head = f'{{"{syntax.name}": {json.dumps(tool.name)}, "{syntax.arguments}": '
        return f"{text(head.removeprefix(written))} args_{index} {text('}')}"

    indexes = range(len(tools))
    rules = [f"args_{index}: %json {json.dumps(tools[index].schema)}" for index in indexes]
    rules.append("call: " + " | ".join(call(index) for index in indexes))
    first, begin = "call", "" if after or syntax.mark_is_json else text(syntax.begins[0])
    if syntax.mark_is_json and after == syntax.begins[0]:
        first = "rest"
        rules.append("rest: " + " | ".join(call(index, after) for index in indexes))
    more = ""
    if parallel and syntax.parallel:
        more = f"({text(syntax.between)} call){{0,{MAX_CALLS - 1}}}"
    parts = (begin, text(syntax.opening), first, more, text(syntax.closing))
    return "\n".join((f"start: {' '.join(part for part in parts if part)}", *rules))


def _lark_text(value: str, controls: Mapping[str, int]) -> str:
    pieces: list[str] = []
    while value:
        found = [(at, -len(mark), mark) for mark in controls if (at := value.find(mark)) >= 0]
        at, _, mark = min(found) if found else (len(value), 0, "")
        if at:
            pieces.append(json.dumps(value[:at], ensure_ascii=False))
        if mark:
            pieces.append(f"<[{controls[mark]}]>")
        value = value[at + len(mark) :]
    return " ".join(pieces)
