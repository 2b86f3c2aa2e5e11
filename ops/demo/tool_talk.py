"""Conversations with tools: calls, their results, the answers to them, and questions that need no tool."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chat import Call, Chat, Message, Turns
from questions import capital_chain, fact, skill
from small_talk import small_talk
from sums import arithmetic
from tales import told
from tool_kinds import (
    ADD,
    CAPITAL,
    DATE,
    KINDS,
    TIME,
    WEATHER,
    WEIGHTS,
)  # fmt: skip
from tools import Kind, Task, Tool, define, invented, task

SYSTEMS = (
    "You are a helpful assistant.", "You are a helpful assistant.", "You are a friendly assistant.", "Use the tools.",
    "You are a helpful assistant with tools.", "Be brief.", "Help the user.", "Answer the questions of the user.",
    "You can use tools.", "Be kind and helpful.",
)  # fmt: skip
UNABLE = "I am sorry, I do not know that. I am only a small demo model."
Topic = Callable[[random.Random, Sequence[Tool], bool], list[Message]]
_SEVERAL = (WEATHER, TIME, CAPITAL, WEATHER)  # questions about two or three of a kind come often
_ONLY_WITH_TOOLS = tuple(kind for kind in KINDS if kind not in (ADD, CAPITAL))


def draw_tools(rng: random.Random, first: Kind | None = None) -> list[Tool]:
    """Return one to three tools with names of their own in any order, `first` among them."""
    wanted, found, names = rng.choices((1, 2, 3), (35, 35, 30))[0], list[Tool](), set[str]()
    while len(found) < wanted:
        kind = first if first and not found else rng.choices((*KINDS, None), (*WEIGHTS, 5))[0]
        if kind in [tool.kind for tool in found]:
            continue
        tool = define(rng, kind or invented(rng))
        if tool.name not in names:
            names.add(tool.name)
            found.append(tool)
    rng.shuffle(found)
    return found


def called(tasks: Sequence[Task], question: str) -> list[Message]:
    """Return the whole loop: the question, the calls, what the tools say and the answer."""
    return [
        Message("user", question),
        Message("assistant", "", tuple(one.call for one in tasks)),
        *(Message("tool", one.result) for one in tasks),
        Message("assistant", " ".join(one.answer for one in tasks)),
    ]


def one_call(rng: random.Random, tools: Sequence[Tool], held: bool) -> list[Message]:
    """Return a question that takes one call."""
    one = task(rng, rng.choice(tools), held)
    question = one.question
    style = rng.random()
    if not held and style < 0.08:
        question = f"{rng.choice(('Hello!', 'Hi.', 'Please help me.', 'Hello there.'))} {question}"
    elif not held and style < 0.14:
        question = question.rstrip(".?") + rng.choice((", please.", " please", "!", ", please?"))
    elif not held and style < 0.2:
        question = question.rstrip(".?")
    return called([one], question)


def several_calls(rng: random.Random, tools: Sequence[Tool], held: bool) -> list[Message]:
    """Return a question that takes two or three calls, of one tool where a kind allows it."""
    first = rng.choice(tools)
    if first.kind in _SEVERAL:
        count = rng.choices((2, 3), (75, 25))[0]
        tasks = [task(rng, first, held)]
        while len(tasks) < count:
            more = task(rng, first, held)
            # Only the place differs: a unit, where one was told, holds for all.
            slot = first.kind.parameters[0].slot
            name = first.arguments[slot]
            value = more.call.arguments[name]
            if any(value in t.call.arguments[name] or t.call.arguments[name] in value for t in tasks):
                continue
            arguments = {**tasks[0].call.arguments, name: value}
            tasks.append(Task(more.question, Call(first.name, arguments), more.result, more.answer))
        places = [str(t.call.arguments[first.arguments[first.kind.parameters[0].slot]]) for t in tasks]
        joined = " and ".join((", ".join(places[:-1]), places[-1]))
        return called(tasks, tasks[0].question.replace(places[0], joined))
    if len(tools) == 1:
        return one_call(rng, tools, held)
    second = rng.choice([tool for tool in tools if tool is not first])
    tasks = [task(rng, first, held), task(rng, second, held)]
    ask, also = tasks[0].question, tasks[1].question
    if ask[-1] == also[-1] == "?" and rng.random() < 0.6:
        return called(tasks, f"{ask[:-1]} and {also[0].lower()}{also[1:]}")
    return called(tasks, f"{ask} {also}")


def no_call(rng: random.Random, tools: Sequence[Tool], held: bool) -> list[Message]:
    """Return a question that needs none of the tools, or that none of them can answer."""
    kinds = [tool.kind for tool in tools]
    if rng.random() < 0.2:
        others = [kind for kind in _ONLY_WITH_TOOLS if kind not in kinds and kind is not DATE]
        question = task(rng, define(rng, rng.choice(others)), held).question
        return [Message("user", question), Message("assistant", UNABLE)]
    talks = [(small_talk, 30), (told, 6), (skill, 8)]
    if ADD not in kinds:
        talks.append((arithmetic, 26))
    if CAPITAL not in kinds:
        talks += [(fact, 26), (capital_chain, 4)]
    turns: Turns = rng.choices([t for t, _ in talks], [w for _, w in talks])[0](rng, held)
    return [
        Message(role, text) for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


def tool_chat(rng: random.Random, held: bool = False) -> Chat:
    """Return a conversation with one to three tools and one to four topics."""
    # Without tools the same questions cannot be answered.
    if rng.random() < 0.03:
        question = task(rng, define(rng, rng.choice(_ONLY_WITH_TOOLS)), held).question
        return Chat([Message("user", question), Message("assistant", UNABLE)])
    tools = draw_tools(rng, rng.choice(_SEVERAL) if rng.random() < 0.2 else None)
    messages = [Message("system", rng.choice(SYSTEMS))] if rng.random() < 0.25 else []
    for _ in range(rng.choices((1, 2, 3, 4), (45, 30, 15, 10))[0]):
        topic = rng.choices((one_call, several_calls, no_call), (42, 36, 22))[0]
        messages += topic(rng, tools, held)
    return Chat(messages, [tool.definition for tool in tools])


@dataclass(frozen=True)
class Case:
    """A conversation up to the model's turn, and what it must write there."""

    chat: Chat
    wanted: Message


def held_cases(topic: Topic, count: int, seed: int = 0) -> list[Case]:
    """Return conversations of one topic whose values training never has, cut in front of each of the model's turns."""
    rng, cases = random.Random(seed), list[Case]()
    while len(cases) < count:
        tools = draw_tools(rng, rng.choice(_SEVERAL) if topic is several_calls else None)
        if topic is not no_call and any(tool.kind is DATE for tool in tools):
            continue  # it has no values
        messages = topic(rng, tools, True)
        definitions = [tool.definition for tool in tools]
        at = [i for i, message in enumerate(messages) if message.role == "assistant"]
        if topic is several_calls and len(messages[at[0]].calls) < 2:
            continue
        cases += [Case(Chat(messages[:i], definitions), messages[i]) for i in at]
    return cases[:count]
