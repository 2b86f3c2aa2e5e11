"""What the demo model learns of tools is what the daemon shows it and reads from it, and some of it is kept from training."""

import itertools
import json
import random

import pytest

from daemon.text.calls import HERMES
from daemon.text.chat_form import Call, Turn
from daemon.text.parts import Called, PartSplitter, Said
from daemon.text.template import ChatTemplate

corpus = pytest.importorskip("corpus")
chat = pytest.importorskip("chat")
tool_talk = pytest.importorskip("tool_talk")
tool_values = pytest.importorskip("tool_values")

NUM_CHATS = 150


@pytest.fixture(scope="module")
def chats():
    rng = random.Random(3)
    return [tool_talk.tool_chat(rng) for _ in range(NUM_CHATS)]


@pytest.fixture(scope="module")
def template():
    return ChatTemplate(chat.CHAT_TEMPLATE)


def turns_of(document):
    """The conversation as the daemon has it."""
    turns, ids, waiting = [], itertools.count(), []
    for message in document.messages:
        calls = tuple(Call(f"call_{next(ids)}", call.name, call.arguments) for call in message.calls)
        waiting = [call.id for call in calls] if calls else waiting
        answers = waiting.pop(0) if message.role == "tool" else ""
        turns.append(Turn(message.role, message.content, calls=calls, call_id=answers))
    return turns


def test_the_same_seed_gives_the_same_text():
    first, again = (list(itertools.islice(corpus.training_documents(4), 60)) for _ in range(2))
    assert first == again
    assert any("\nTools:\n" in text or "system\nTools:" in text for text in first)


def test_the_daemon_shows_chats_as_they_are_trained(chats, template):
    form = template.form
    assert (form.calls, form.takes_tools, form.takes_calls, form.takes_tool_role) == (
        HERMES,
        True,
        True,
        True,
    )
    for document in chats:
        messages, variables = form.arrange(turns_of(document), document.tools)
        text = template.render(messages, variables=variables, add_generation_prompt=False)
        assert text == chat.render(document)


def test_calls_are_read_as_they_were_trained(chats):
    for document in chats:
        names = [tool["function"]["name"] for tool in document.tools]
        for message in document.messages:
            if not message.calls:
                continue
            splitter = PartSplitter(calls=HERMES, tools=names)
            parts = [*splitter.push(chat.written(message.calls)), *splitter.finish()]
            assert not any(isinstance(part, Said) and part.text for part in parts)
            texts: list[list[str]] = []
            for part in parts:
                if isinstance(part, Called):
                    if part.name:
                        texts.append([part.name, ""])
                    texts[-1][1] += part.arguments
            assert [(name, json.loads(text)) for name, text in texts] == [
                (call.name, call.arguments) for call in message.calls
            ]


def test_calls_fit_their_tools(chats):
    types = {"string": str, "integer": int, "number": (int, float)}
    num_calls = 0
    for document in chats:
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in document.tools}
        assert len(schemas) == len(document.tools)
        for message in document.messages:
            for call in message.calls:
                num_calls += 1
                properties = schemas[call.name]["properties"]
                assert set(schemas[call.name]["required"]) <= set(call.arguments) <= set(properties)
                assert [name for name in properties if name in call.arguments] == list(call.arguments)
                for name, value in call.arguments.items():
                    assert isinstance(value, types[properties[name]["type"]])
                    assert value in properties[name].get("enum", [value])
    assert num_calls > NUM_CHATS


def test_measured_values_are_kept_from_training(chats):
    kinds = {"get_weather", "get_time"}
    trained = {
        value
        for document in chats
        for message in document.messages
        for call in message.calls
        if call.name in kinds
        for value in call.arguments.values()
    } - {"celsius", "fahrenheit"}
    assert trained
    assert not any(tool_values.held_value(value) for value in trained)
    for topic in (tool_talk.one_call, tool_talk.several_calls):
        cases = tool_talk.held_cases(topic, 100)
        measured = {
            value
            for case in cases
            for call in case.wanted.calls
            if call.name in kinds
            for value in call.arguments.values()
        } - {"celsius", "fahrenheit"}
        assert measured
        assert all(tool_values.held_value(value) for value in measured)
