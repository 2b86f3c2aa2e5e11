"""Tools and structured output at the services: what is refused, what reaches the engine, how answers are read."""

import json

import pytest

from quantd.v1 import generate_pb2 as pb
from quantd.v1 import generate_service_pb2 as rpc
from quantd.v1 import tokenizer_service_pb2
from tests.daemon import fakes
from tests.daemon.test_generate import collect, refusal

WEATHER = pb.ToolDefinition(
    name="get_weather",
    description="Tells the weather",
    parameters=json.dumps(
        {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    ),
)
ADD = pb.ToolDefinition(name="add")
USER = pb.ChatMessage(role="user", content="hi")


@pytest.fixture(autouse=True)
def _room(world):
    world.host.served.model.context_tokens = 4096


def chat(**fields):
    return pb.ChatRequest(**{"messages": [USER], "tools": [WEATHER, ADD], **fields})


def script(text):
    return [*text.encode(), fakes.EOS]


async def test_a_call_comes_in_parts_and_says_why_it_ended(world):
    world.engine.script = script(
        'Hm.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    )
    events = await collect(world.generate.Chat(chat()))
    deltas = [event.delta for event in events if event.HasField("delta")]
    assert "".join(delta.text for delta in deltas) == "Hm."
    parts = [part for delta in deltas for part in delta.tool_calls]
    assert [part.name for part in parts if part.name] == ["get_weather"]
    assert parts[0].id.startswith("call_")
    assert not any(part.id for part in parts[1:])
    assert "".join(part.arguments for part in parts) == '{"city": "Rome"}'
    assert len(parts) > 5
    assert events[-1].done.finish_reason == pb.FINISH_REASON_TOOL_CALLS


async def test_the_whole_call_in_a_unary_answer(world):
    world.engine.script = script('<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>')
    answer = await world.generate.ChatUnary(rpc.ChatUnaryRequest(request=chat()))
    assert [(call.name, call.arguments) for call in answer.answer.tool_calls] == [("add", "{}")]
    assert answer.answer.text == ""


async def test_without_tools_the_same_text_is_text(world):
    text = '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'
    world.engine.script = script(text)
    for request in (chat(tools=[]), chat(tool_choice=pb.ToolChoice(mode=pb.ToolChoice.MODE_NONE))):
        events = await collect(world.generate.Chat(request))
        assert "".join(e.delta.text for e in events if e.HasField("delta")) == text
        assert events[-1].done.finish_reason == pb.FINISH_REASON_STOP
        assert world.engine.requests[-1].constraint is None


async def test_tools_are_told_in_words_where_the_template_takes_none(world):
    await collect(world.generate.Chat(chat()))
    prompt = bytes(world.engine.requests[-1].prompt_ids).decode()
    assert prompt.startswith("system:You can call tools.")
    assert "Tells the weather" in prompt
    assert prompt.endswith("user:hi\n")
    named = pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED, names=["add"])
    await collect(world.generate.Chat(chat(tool_choice=named)))
    assert "get_weather" not in bytes(world.engine.requests[-1].prompt_ids).decode()


async def test_earlier_calls_and_answers_are_told(world):
    call = pb.ToolCall(id="1", name="get_weather", arguments='{"city": "Rome"}')
    messages = [
        USER,
        pb.ChatMessage(role="assistant", tool_calls=[call]),
        pb.ChatMessage(role="tool", tool_call_id="1", content="sunny"),
    ]
    await collect(world.generate.Chat(chat(messages=messages, tools=[])))
    prompt = bytes(world.engine.requests[-1].prompt_ids).decode()
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>' in prompt
    assert "<tool_response>\nsunny\n</tool_response>" in prompt


@pytest.mark.parametrize("mode", [pb.ToolChoice.MODE_AUTO, pb.ToolChoice.MODE_REQUIRED])
async def test_constraints_sleep_or_rule_from_the_start(world, mode):
    await collect(world.generate.Chat(chat(tool_choice=pb.ToolChoice(mode=mode))))
    constraint = world.engine.requests[-1].constraint
    assert (constraint.mask() is None) == (mode == pb.ToolChoice.MODE_AUTO)


def constrained(**kind):
    return pb.GenerationOptions(constraint=pb.Constraint(**kind))


async def test_every_answer_has_a_constraint_of_its_own(world):
    options = constrained(regex="[a-h]+")
    options.num_choices = 2
    await collect(world.generate.Generate(pb.GenerateRequest(text="hi", options=options)))
    one, other = (request.constraint for request in world.engine.requests)
    assert one is not other
    one.accept(ord("h"), want_forced=True)
    assert (one.mask() != other.mask()).any()


TWICE = [ADD, ADD]
NESTED = '{"items":' * 70 + "{}" + "}" * 70
BAD_CHATS = [
    ("tools", {"tools": [pb.ToolDefinition(name=f"t{i}") for i in range(129)]}),
    ("tools[1].name", {"tools": TWICE}),
    ("tools[0].name", {"tools": [pb.ToolDefinition(name="a b")]}),
    ("tools[0].name", {"tools": [pb.ToolDefinition()]}),
    ("tools[0].parameters", {"tools": [pb.ToolDefinition(name="a", parameters="{")]}),
    ("tools[0].parameters", {"tools": [pb.ToolDefinition(name="a", parameters="[]")]}),
    ("tools[0].parameters", {"tools": [pb.ToolDefinition(name="a", parameters='{"type": "string"}')]}),
    ("tools[0].parameters", {"tools": [pb.ToolDefinition(name="a", parameters=NESTED)]}),
    (
        "tools",
        {
            "tools": [
                pb.ToolDefinition(
                    name="a",
                    strict=True,
                    parameters='{"properties": {"a": {"type": "string", "format": "odd"}}}',
                )
            ]
        },
    ),
    ("tool_choice", {"tool_choice": pb.ToolChoice(names=["nobody"])}),
    ("tool_choice", {"tools": [], "tool_choice": pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED)}),
    (
        "messages[0].tool_calls",
        {"messages": [pb.ChatMessage(role="user", tool_calls=[pb.ToolCall(name="a")])]},
    ),
    (
        "messages[0].tool_calls[0].name",
        {"messages": [pb.ChatMessage(role="assistant", tool_calls=[pb.ToolCall(name="a b")])]},
    ),
    (
        "messages[0].tool_calls[0].arguments",
        {"messages": [pb.ChatMessage(role="assistant", tool_calls=[pb.ToolCall(name="a", arguments="[1]")])]},
    ),
    ("messages[0].tool_call_id", {"messages": [pb.ChatMessage(role="tool", tool_call_id="x" * 257)]}),
    ("reasoning_effort", {"reasoning_effort": "huge"}),
    ("continue_final_message", {"continue_final_message": True}),
    ("template_arguments", {"template_arguments": "[]"}),
    ("template_arguments", {"template_arguments": '{"messages": []}'}),
    ("template_arguments", {"template_arguments": '{"__class__": 1}'}),
    ("options.constraint", {"options": constrained(regex="a")}),  # with tools that may be called
]
BAD_CONSTRAINTS = [
    ("options.constraint", {}),
    ("options.constraint.json_object", {"json_object": False}),
    ("options.constraint.regex", {"regex": " "}),
    ("options.constraint.choice", {"choice": pb.ChoiceList()}),
    ("options.constraint.choice", {"choice": pb.ChoiceList(texts=["a", ""])}),
    ("options.constraint.choice", {"choice": pb.ChoiceList(texts=["a"] * 1025)}),
    ("options.constraint", {"json_schema": "{"}),
    ("options.constraint", {"json_schema": NESTED}),
    ("options.constraint", {"json_schema": '{"type": "object", "unevaluatedProperties": false}'}),
    ("options.constraint", {"regex": "("}),
    ("options.constraint", {"lark": "start: nothing"}),
    ("options.constraint", {"gbnf": 'root ::= "a'}),
    ("options.constraint", {"json_schema": '{"description": "' + "x" * (300 << 10) + '"}'}),
]


async def test_what_is_wrong_is_refused_by_name(world):
    for field, fields in BAD_CHATS:
        error = await refusal(world.generate.Chat(chat(**fields)))
        assert (error.reason, error.field) == ("INVALID_ARGUMENT", field), fields
    for field, kind in BAD_CONSTRAINTS:
        error = await refusal(
            world.generate.Generate(pb.GenerateRequest(text="hi", options=constrained(**kind)))
        )
        assert (error.reason, error.field) == ("INVALID_ARGUMENT", field), kind
    options = constrained(regex="a")
    options.ignore_eos = True
    error = await refusal(world.generate.Generate(pb.GenerateRequest(text="hi", options=options)))
    assert error.field == "options.ignore_eos"
    assert not world.engine.requests
    assert world.host.num_requests == 0


async def test_a_constraint_that_fails_on_the_way_is_an_error_of_its_own(world):
    world.engine.error = "constraint_failed"
    request = pb.GenerateRequest(text="hi", options=constrained(regex="[a-z]+"))
    assert (await refusal(world.generate.Generate(request))).reason == "CONSTRAINT_FAILED"


async def test_a_compilation_that_takes_too_long_is_refused(world, monkeypatch):
    import time

    from daemon.services import constraint as module

    monkeypatch.setattr(module, "COMPILE_S", 0.05)
    monkeypatch.setattr(module.ModelTexts, "build", lambda self, plan, num: time.sleep(0.3))
    error = await refusal(
        world.generate.Generate(pb.GenerateRequest(text="hi", options=constrained(regex="a")))
    )
    assert (error.reason, error.field) == ("INVALID_ARGUMENT", "options.constraint")
    assert "seconds to compile" in error.message


async def test_thoughts_are_told_apart_and_counted(world):
    world.host.served.template.__init__(fakes.TEMPLATE + "{% if enable_thinking %}{{ '<think>' }}{% endif %}")
    world.engine.script = script("Hm.</think>\n\nYes")
    request = pb.ChatRequest(
        messages=[USER], reasoning_effort="high", options=pb.GenerationOptions(stop=["Hm"])
    )
    events = await collect(world.generate.Chat(request))
    deltas = [event.delta for event in events if event.HasField("delta")]
    assert "".join(delta.reasoning for delta in deltas) == "Hm."
    assert "".join(delta.text for delta in deltas) == "Yes"
    assert events[-1].done.usage.reasoning_tokens == len("Hm.</think>")
    assert bytes(world.engine.requests[-1].prompt_ids).endswith(b"<think>")
    request.reasoning_effort = "none"
    await collect(world.generate.Chat(request))
    assert not bytes(world.engine.requests[-1].prompt_ids).endswith(b"<think>")


async def test_rendering_without_answering(world):
    request = pb.ChatRequest(messages=[USER, pb.ChatMessage(role="assistant", content="well")])
    answer = await world.tokenizer.RenderChat(tokenizer_service_pb2.RenderChatRequest(request=request))
    assert answer.prompt == "user:hi\nassistant:well\n"
    assert bytes(answer.ids).decode() == answer.prompt
    request.continue_final_message = True
    answer = await world.tokenizer.RenderChat(tokenizer_service_pb2.RenderChatRequest(request=request))
    assert answer.prompt == "user:hi\nassistant:well"
    assert not world.engine.requests


async def test_a_gap_needs_a_model_that_can_fill_it(world):
    request = pb.GenerateRequest(text="a", suffix="b")
    assert (await refusal(world.generate.Generate(request))).field == "suffix"
    tokens = world.host.served.model.tokenizer.vocabulary.tokens
    changed = list(tokens)
    changed[1:4] = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
    world.host.served.model.tokenizer.vocabulary.tokens = changed
    try:
        await collect(world.generate.Generate(request))
    finally:
        world.host.served.model.tokenizer.vocabulary.tokens = tokens
    assert world.engine.requests[-1].prompt_ids == [1, ord("a"), 2, ord("b"), 3]
