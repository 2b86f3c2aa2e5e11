"""The chat template of ops/demo shows any tool that OpenAI's definitions can describe, and loses nothing of it."""

import json
from pathlib import Path

import pytest

from daemon.text.chat_form import Call, Turn
from daemon.text.template import ChatTemplate


@pytest.fixture(scope="module")
def template():
    path = Path(__file__).resolve().parents[2] / "ops" / "demo" / "chat_template.jinja"
    return ChatTemplate(path.read_text(encoding="utf-8").rstrip("\n"))


def shown(template, parameters, description="", name="find"):
    """The line that shows a tool."""
    tool = {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }
    messages, variables = template.form.arrange([Turn("user", "Hi")], [tool])
    prompt = template.render(messages, variables=variables)
    begin, line, rest = prompt.partition("\n" + name)
    assert begin == "<|im_start|>system\nTools:"
    assert rest.endswith("<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    return (line + rest).split("<|im_end|>")[0][1:]


def thing(properties, **more):
    return {"type": "object", "properties": properties, **more}


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string"}, "string"),
        ({"type": "integer", "title": "Count"}, "integer"),
        ({"type": "string", "description": "The city, e.g. Oslo"}, "string (The city, e.g. Oslo)"),
        ({"type": "string", "enum": ["a", "b c"]}, "a|b c"),
        ({"enum": [1, None, "x"], "description": "one"}, "1|null|x (one)"),
        ({"type": ["string", "null"]}, '{"type": ["string", "null"]}'),
        (
            {"type": "integer", "minimum": 1, "description": "d"},
            '{"type": "integer", "minimum": 1, "description": "d"}',
        ),
        ({"type": "string", "pattern": "^<a>&'$"}, '{"type": "string", "pattern": "^<a>&\'$"}'),
        ({"type": "array", "items": {"type": "string"}}, '{"type": "array", "items": {"type": "string"}}'),
        (thing({"x": {"type": "number"}}), '{"type": "object", "properties": {"x": {"type": "number"}}}'),
        (
            {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/y"}]},
            '{"anyOf": [{"type": "string"}, {"$ref": "#/$defs/y"}]}',
        ),
        ({}, "{}"),
        (True, "true"),
    ],
)
def test_one_argument(template, schema, text):
    assert shown(template, thing({"v": schema}, required=["v"])) == 'find {"v": ' + text + "}"
    assert shown(template, thing({"v": schema})) == 'find {"v"?: ' + text + "}"


def test_whole_tools(template):
    two = thing(
        {"a": {"type": "number"}, 'ü "b"': {"type": "boolean"}}, required=["a"], additionalProperties=False
    )
    assert (
        shown(template, two, "Finds it.\nOr not")
        == 'find {"a": number, "ü \\"b\\""?: boolean}: Finds it.\nOr not'
    )
    assert shown(template, thing({})) == "find {}"
    assert shown(template, {}) == "find {}"
    for other in (
        thing({"a": {"$ref": "#/$defs/x"}}, **{"$defs": {"x": {"type": "string"}}}),
        thing({}, anyOf=[{}]),
    ):
        assert shown(template, other) == "find " + json.dumps(other)


def test_the_instructions_come_first(template):
    tool = {"type": "function", "function": {"name": "now", "description": "", "parameters": thing({})}}
    turns = [
        Turn("system", "Be brief."),
        Turn("user", "When?"),
        Turn("assistant", "So.", calls=(Call("1", "now", {}), Call("2", "now", {"a": [1, {"b": "é"}]}))),
        Turn("tool", "noon", call_id="1"),
        Turn("tool", "night", call_id="2"),
    ]
    messages, variables = template.form.arrange(turns, [tool])
    assert template.render(messages, variables=variables) == (
        "<|im_start|>system\nBe brief.\nTools:\nnow {}<|im_end|>\n<|im_start|>user\nWhen?<|im_end|>\n"
        '<|im_start|>assistant\nSo.\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {"a": [1, {"b": "é"}]}}\n</tool_call><|im_end|>\n'
        "<|im_start|>tool\nnoon<|im_end|>\n<|im_start|>tool\nnight<|im_end|>\n<|im_start|>assistant\n"
    )
    messages, variables = template.form.arrange(turns[:2], [])
    assert template.render(messages, variables=variables) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhen?<|im_end|>\n<|im_start|>assistant\n"
    )
