"""Answers taken apart: thoughts, text and calls of every form, whatever pieces the text comes in."""

import json

import pytest

from daemon.text.calls import GRANITE, HERMES, LLAMA3, MISTRAL, MISTRAL_ARGS, PHI4
from daemon.text.parts import Called, PartSplitter, Said, ThinkTags, Thought

TOOLS = ("get_weather", "add")


def take_apart(pieces, **options):
    """(text, thoughts, [(name, arguments)]) of an answer."""
    splitter = PartSplitter(**{"tools": TOOLS, **options})
    parts = [part for piece in pieces for part in splitter.push(piece)] + splitter.finish()
    text = "".join(part.text for part in parts if isinstance(part, Said))
    thoughts = "".join(part.text for part in parts if isinstance(part, Thought))
    calls = []
    for part in parts:
        if isinstance(part, Called):
            if part.name:
                assert part.index == len(calls)
                calls.append([part.name, ""])
            else:
                assert part.index == len(calls) - 1
                assert part.arguments
            calls[-1][1] += part.arguments
    assert all(part.text for part in parts if not isinstance(part, Called))
    return text, thoughts, [tuple(call) for call in calls]


W = '{"city": "Pa\\"ris {}", "days": [1, {"a": "]"}]}'
CASES = {
    "hermes": (HERMES, f'Let me look.\n<tool_call>\n{{"name": "get_weather", "arguments": {W}}}\n</tool_call>', "Let me look.", [("get_weather", W)]),
    "two": (HERMES, f'<tool_call>\n{{"name": "add", "arguments": {{}}}}\n</tool_call>\n<tool_call>\n{{"name": "get_weather", "arguments": {W}}}\n</tool_call>', "", [("add", "{}"), ("get_weather", W)]),
    "swapped": (HERMES, f'<tool_call>{{"arguments": {W}, "name": "add"}}</tool_call> bye', " bye", [("add", W)]),
    "no arguments": (HERMES, '<tool_call>{"name": "add"}</tool_call>', "", [("add", "{}")]),
    "llama3": (LLAMA3, f'{{"name": "get_weather", "parameters": {W}}}', "", [("get_weather", W)]),
    "python tag": (LLAMA3, f'<|python_tag|>{{"name": "add", "parameters": {W}}}', "", [("add", W)]),
    "llama3 json": (LLAMA3, f'Sure: {{"name": "add", "parameters": {W}}}', f'Sure: {{"name": "add", "parameters": {W}}}', []),
    "mistral": (MISTRAL, f'[TOOL_CALLS][{{"name": "add", "arguments": {W}}}, {{"name": "get_weather", "arguments": {{}}, "id": "abcdefghi"}}]', "", [("add", W), ("get_weather", "{}")]),
    "mistral args": (MISTRAL_ARGS, f"[TOOL_CALLS]add[ARGS]{W}[TOOL_CALLS]get_weather[ARGS]{{}}", "", [("add", W), ("get_weather", "{}")]),
    "granite": (GRANITE, f'<|tool_call|>[{{"name": "add", "arguments": {W}}}]', "", [("add", W)]),
    "phi4": (PHI4, f'functools[{{"name": "add", "arguments": {W}}}]', "", [("add", W)]),
    "plain": (HERMES, "a < b and <tool and {} done", "a < b and <tool and {} done", []),
    "unknown tool": (HERMES, '<tool_call>\n{"name": "rm", "arguments": {}}\n</tool_call>', '<tool_call>\n{"name": "rm", "arguments": {}}\n</tool_call>', []),
    "no json": (HERMES, "Write <tool_call> to call.", "Write <tool_call> to call.", []),
    "cut off": (HERMES, '<tool_call>\n{"name": "add", "arguments": {"a": 1', "", [("add", '{"a": 1')]),
    "cut off early": (HERMES, 'Hm <tool_call>\n{"na', 'Hm <tool_call>\n{"na', []),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_calls_of_every_form(name, size):
    syntax, answer, text, calls = CASES[name]
    pieces = [answer[i : i + size] for i in range(0, len(answer), size)]
    assert take_apart(pieces, calls=syntax) == (text, "", calls)
    for _, arguments in calls:
        if not name.startswith("cut off"):
            json.loads(arguments)


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
@pytest.mark.parametrize(
    ("answer", "begins", "expected"),
    [
        ("<think>\nHm, 1 < 2.\n\nSo.\n</think>\n\nYes.", False, ("Yes.", "Hm, 1 < 2.\n\nSo.", [])),
        ("Hm.\n</think>\n\nYes.", True, ("Yes.", "Hm.", [])),
        ("<think>\n\n</think>\n\nYes.", False, ("Yes.", "", [])),
        ("No <think>thoughts</think>", False, ("No <think>thoughts</think>", "", [])),
        ("<think>never ends", False, ("", "never ends", [])),
        ("\n<think>a</think>b", False, ("b", "a", [])),
        ("Yes.", False, ("Yes.", "", [])),
        ('<think>I <tool_call> it</think>\n<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>', False, ("", "I <tool_call> it", [("add", "{}")])),
    ],
)  # fmt: skip
def test_thoughts(answer, begins, expected, size):
    pieces = [answer[i : i + size] for i in range(0, len(answer), size)]
    text, thoughts, calls = take_apart(pieces, think=ThinkTags(), begins_thinking=begins, calls=HERMES)
    assert (text.strip("\n"), thoughts, calls) == expected


def test_text_is_not_held_back_longer_than_it_must_be():
    splitter = PartSplitter(calls=HERMES, tools=TOOLS, think=ThinkTags())
    assert splitter.push("Hello <") == [Said("Hello ")]
    assert splitter.push("b") == [Said("<b")]
    splitter.push(' <tool_call>{"name": "add", "arguments": {"a": 1')
    assert splitter.push("2, ") == [Called(0, "", "2, ")]
    assert not splitter.saying
