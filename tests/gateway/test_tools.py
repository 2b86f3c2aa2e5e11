"""Tools, thoughts and several choices through the gateway, with the official client."""

import openai
import pytest

from quantd.v1 import generate_pb2 as pb
from tests.gateway.deltas import full_answer

MESSAGES = [{"role": "user", "content": "Hi"}]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "add", "description": "Adds", "parameters": {"type": "object"}, "strict": True},
    },
    {"type": "function", "function": {"name": "now"}},
]


@pytest.fixture
def ask(serve):
    with openai.OpenAI(base_url=f"{serve()}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_whole_answer_with_calls(ask, backend):
    backend.texts, backend.finish = full_answer(), pb.FINISH_REASON_TOOL_CALLS
    answer = ask.chat.completions.create(
        model="demo", messages=MESSAGES, tools=TOOLS, parallel_tool_calls=False
    )
    message = answer.choices[0].message
    assert message.content == "Let me see."
    assert message.reasoning_content == "Hm, so."
    assert [(c.id, c.function.name, c.function.arguments) for c in message.tool_calls] == [
        ("call_a", "add", '{"a": 1}'),
        ("call_b", "now", ""),
    ]
    assert answer.choices[0].finish_reason == "tool_calls"
    sent = backend.requests[0]
    assert [tool.name for tool in sent.tools] == ["add", "now"]
    assert (sent.tools[0].description, sent.tools[0].parameters, sent.tools[0].strict) == (
        "Adds",
        '{"type": "object"}',
        True,
    )
    assert sent.HasField("parallel_tool_calls")
    assert not sent.parallel_tool_calls


def test_a_streamed_answer_with_calls(ask, backend):
    backend.texts, backend.finish = full_answer(), pb.FINISH_REASON_TOOL_CALLS
    chunks = list(ask.chat.completions.create(model="demo", messages=MESSAGES, tools=TOOLS, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(getattr(d, "reasoning_content", None) or "" for d in deltas) == "Hm, so."
    assert "".join(d.content or "" for d in deltas) == "Let me see."
    parts = [part for d in deltas for part in d.tool_calls or ()]
    assert [(p.index, p.id, p.type, p.function.name, p.function.arguments) for p in parts] == [
        (0, "call_a", "function", "add", ""),
        (0, None, None, None, '{"a": '),
        (0, None, None, None, "1}"),
        (1, "call_b", "function", "now", ""),
    ]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert all(d.role is None for d in deltas[1:])


def test_reasoning_can_be_left_out(ask, backend):
    backend.texts = full_answer()[:4]
    options = {"model": "demo", "messages": MESSAGES, "extra_body": {"include_reasoning": False}}
    message = ask.chat.completions.create(**options).choices[0].message
    assert not hasattr(message, "reasoning_content")
    chunks = list(ask.chat.completions.create(**options, stream=True))
    assert [c.choices[0].delta.content for c in chunks] == ["", "Let me ", "see.", None]


def test_several_choices(ask, backend):
    backend.texts = [
        pb.Delta(text="a", choice=1),
        pb.Delta(text="b"),
        pb.Delta(choice=1, finish_reason=pb.FINISH_REASON_LENGTH),
        pb.Delta(finish_reason=pb.FINISH_REASON_STOP),
    ]
    answer = ask.chat.completions.create(model="demo", messages=MESSAGES, n=2)
    assert [(c.index, c.message.content, c.finish_reason) for c in answer.choices] == [
        (0, "b", "stop"),
        (1, "a", "length"),
    ]
    assert backend.requests[0].options.num_choices == 2
    chunks = list(ask.chat.completions.create(model="demo", messages=MESSAGES, n=2, stream=True))
    told = [
        (c.choices[0].index, c.choices[0].delta.role, c.choices[0].delta.content, c.choices[0].finish_reason)
        for c in chunks
    ]
    assert told == [
        (0, "assistant", "", None),
        (1, "assistant", "", None),
        (1, None, "a", None),
        (0, None, "b", None),
        (1, None, None, "length"),
        (0, None, None, "stop"),
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_are_several_requests(ask, backend, stream):
    answer = ask.completions.create(model="demo", prompt=["one", "two"], stream=stream, max_tokens=3)
    if stream:
        chunks = list(answer)
        texts = {i: "".join(c.choices[0].text for c in chunks if c.choices[0].index == i) for i in range(2)}
        ends = [c.choices[0].index for c in chunks if c.choices[0].finish_reason]
        assert sorted(ends) == [0, 1]
    else:
        texts = {choice.index: choice.text for choice in answer.choices}
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (10, 8)
    assert texts == dict.fromkeys(range(2), "Hello, wörld!")
    assert sorted(request.text for request in backend.requests) == ["one", "two"]
    ask.completions.create(model="demo", prompt=[[1, 2], [3]])
    assert sorted(list(request.tokens.ids) for request in backend.requests[2:]) == [[1, 2], [3]]


def test_a_failure_of_one_prompt_is_a_status(ask, backend):
    with pytest.raises(openai.NotFoundError):
        ask.completions.create(model="nope", prompt=["one", "two"])
    assert backend.num_open == 0


def test_what_reaches_the_backend(ask, backend):
    ask.chat.completions.create(
        model="demo",
        messages=[
            {"role": "developer", "content": "x"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "2"}]},
        ],
        tools=TOOLS,
        tool_choice={
            "type": "allowed_tools",
            "allowed_tools": {
                "mode": "required",
                "tools": [{"type": "function", "function": {"name": "add"}}],
            },
        },
        reasoning_effort="low",
        logit_bias={"5": -1, "word": 2},
        user="u",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        extra_body={"chat_template_kwargs": {"a": 1}, "repetition_penalty": 1.5, "nobody knows this": 1},
    )
    sent = backend.requests[0]
    assert (sent.messages[1].tool_calls[0].name, sent.messages[2].tool_call_id, sent.messages[2].content) == (
        "add",
        "1",
        "2",
    )
    assert (sent.tool_choice.mode, list(sent.tool_choice.names)) == (pb.ToolChoice.MODE_REQUIRED, ["add"])
    assert (sent.reasoning_effort, sent.template_arguments) == ("low", '{"a": 1}')
    sampling = sent.options.sampling
    assert (dict(sampling.logit_bias), dict(sampling.text_bias), sampling.repeat_penalty) == (
        {5: -1},
        {"word": 2},
        1.5,
    )


@pytest.mark.parametrize(
    ("extra", "kind", "value"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", True),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"a": 1}}}},
            "json_schema",
            '{"a": 1}',
        ),
        ({"response_format": {"type": "json_object", "schema": {}}}, "json_schema", "{}"),
        (
            {"response_format": {"type": "grammar", "grammar": "start: x", "syntax": "lark"}},
            "lark",
            "start: x",
        ),
        ({"grammar": 'root ::= "a"'}, "gbnf", 'root ::= "a"'),
        ({"guided_grammar": 'start: "a"'}, "lark", 'start: "a"'),
        ({"guided_choice": ["a"]}, "choice", pb.ChoiceList(texts=["a"])),
        ({"structured_outputs": {"regex": "a", "json": None}}, "regex", "a"),
        ({"structured_outputs": {"json_object": True}}, "json_object", True),
        ({"json_schema": {"type": "string"}}, "json_schema", '{"type": "string"}'),
        ({"response_format": {"type": "text"}}, None, None),
    ],
)
def test_every_name_for_a_constraint(ask, backend, extra, kind, value):
    ask.chat.completions.create(model="demo", messages=MESSAGES, extra_body=extra)
    constraint = backend.requests[0].options.constraint
    assert constraint.WhichOneof("kind") == kind
    if kind:
        assert getattr(constraint, kind) == value
