"""Tools in conversations: how one is defined, what a user asks of it, which call that takes and what comes back."""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tool_values as values
from chat import Call

Slots = dict[str, Any]


@dataclass(frozen=True)
class Parameter:
    """One argument: the slot that fills it, the names that it may have, its type or its choices.

    A `rare` one is missing from most definitions; then questions do not tell it.
    """

    slot: str
    names: tuple[str, ...]
    type: str = "string"
    choices: tuple[str, ...] = ()
    about: str = ""
    rare: bool = False


@dataclass(frozen=True)
class Kind:
    """One kind of tool; texts have the slots that `draw` fills, {r} is what the tool answers."""

    names: tuple[str, ...]
    about: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    draw: Callable[[random.Random, bool], Slots]
    questions: tuple[str, ...]
    answer: str
    keys: tuple[str, ...] = ()  # under which the tool's answer may stand; none: it only says that it is done


@dataclass(frozen=True)
class Tool:
    """A tool as one conversation has it: its kind, its definition, and the name of the argument of each slot."""

    kind: Kind
    definition: dict[str, Any]
    arguments: Mapping[str, str]

    @property
    def name(self) -> str:
        return str(self.definition["function"]["name"])


@dataclass(frozen=True)
class Task:
    """What a user wants of a tool: the question, the call, the tool's answer and the model's."""

    question: str
    call: Call
    result: str
    answer: str


def _any_value(rng: random.Random, held: bool, type_: str) -> Any:
    if type_ == "integer":
        return values.number(rng, held)
    return rng.choice((values.city, values.person))(rng, held)


def invented(rng: random.Random) -> Kind:
    """Return a tool of no common kind, which users call by its name."""
    verbs = (
        "get",
        "find",
        "run",
        "check",
        "make",
        "open",
        "load",
        "read",
        "count",
        "list",
        "start",
        "show",
        "fetch",
    )
    nouns = (
        "order",
        "file",
        "user",
        "item",
        "ticket",
        "report",
        "room",
        "page",
        "book",
        "stock",
        "task",
        "note",
        "route",
    )
    words = (
        "id",
        "name",
        "key",
        "code",
        "user",
        "label",
        "value",
        "owner",
        "index",
        "page",
        "group",
        "level",
        "source",
    )
    slots = rng.sample(words, rng.choices((1, 2), (65, 35))[0])
    types = [rng.choice(("string", "integer")) for _ in slots]
    name = f"{rng.choice(verbs)}_{rng.choice(nouns)}"
    parameters = tuple(Parameter(f"v{i}", (s,), t) for i, (s, t) in enumerate(zip(slots, types, strict=True)))
    told = " and ".join(f"{s} {{v{i}}}" for i, s in enumerate(slots))
    return Kind(
        (name,),
        (f"{name.split('_', maxsplit=1)[0].capitalize()}s the {name.split('_')[1]}",),
        parameters,
        lambda rng, held: (
            {f"v{i}": _any_value(rng, held, t) for i, t in enumerate(types)}
            | {"r": values.message(rng, held=False)}
        ),
        (f"Call {name} with {told}.", f"Use {name} with {told}.", f"Please call {name} with {told}."),
        "The answer is: {r}.",
        ("result", "value", "data"),
    )


def _limits(rng: random.Random, type_: str) -> dict[str, int]:
    if type_ == "string":
        return rng.choice(
            ({"maxLength": rng.choice((8, 20, 40, 100))}, {"minLength": 1}, {"minLength": 1, "maxLength": 64})
        )
    return rng.choice(
        ({"minimum": rng.randint(0, 1)}, {"minimum": 0, "maximum": rng.choice((99, 999, 100000))})
    )


def define(rng: random.Random, kind: Kind) -> Tool:
    """Return a tool of the kind with names and descriptions of its own."""
    properties, required, names = {}, [], {}
    for parameter in kind.parameters:
        if parameter.rare and rng.random() < 0.7:
            continue
        name = rng.choice(parameter.names[:1] * 2 + parameter.names)
        names[parameter.slot] = name
        properties[name] = {"type": parameter.type}
        if parameter.choices:
            properties[name]["enum"] = list(parameter.choices)
        if parameter.about and rng.random() < 0.2:
            properties[name]["description"] = parameter.about
        if not parameter.choices and rng.random() < 0.06:
            properties[name] |= _limits(rng, parameter.type)  # the template shows those as JSON
        if not parameter.rare or rng.random() < 0.3:
            required.append(name)
    function: dict[str, Any] = {"name": rng.choice(kind.names[:1] * 2 + kind.names)}
    if rng.random() < 0.8:
        function["description"] = rng.choice(kind.about) + rng.choice(("", "", "."))
    function["parameters"] = {"type": "object", "properties": properties, "required": required}
    return Tool(kind, {"type": "function", "function": function}, names)


def task(rng: random.Random, tool: Tool, held: bool) -> Task:
    """Return something that a user wants of the tool; `held`: with values that training never has."""
    kind, schema = tool.kind, tool.definition["function"]["parameters"]
    slots = kind.draw(rng, held)
    question = rng.choice(kind.questions).format(**slots)
    arguments = {}
    for parameter in kind.parameters:
        name = tool.arguments.get(parameter.slot)
        if name is None:
            continue
        value = slots[parameter.slot]
        if parameter.rare:
            if rng.random() < 0.5:
                question = f"{question.rstrip('.?')} in {value.capitalize()}{question[-1] if question[-1] in '.?' else ''}"
            elif name in schema["required"]:
                value = parameter.choices[0]
            else:
                continue
        arguments[name] = value
    call = Call(tool.name, arguments)
    if rng.random() < 0.03:
        reason = rng.choice(
            ("not found", "no connection", "unknown name", "try again later", "not allowed", "no answer")
        )
        result = rng.choice((json.dumps({"error": reason}), f"error: {reason}"))
        return Task(question, call, result, f"I am sorry, that did not work: {reason}.")
    return Task(question, call, *_outcome(rng, kind, slots, arguments))


def _outcome(rng: random.Random, kind: Kind, slots: Slots, arguments: Mapping[str, Any]) -> tuple[str, str]:
    if not kind.keys:
        done = rng.choice((
            "ok", "OK", "done", "Done.", "sent", "success", '{"status": "ok"}', '{"ok": true}', '{"success": true}',
            '{"status": "done"}', '{"result": "ok"}', "",
        ))  # fmt: skip
        return done, kind.answer.format(**slots)
    form, r = rng.random(), slots["r"]
    if "sky" in slots and form < 0.4:  # the weather has two parts
        sky, t = slots["sky"], slots["t"]
        told: dict[str, Any] = {rng.choice(("temperature", "temp", "temp_c")): t}
        if rng.random() < 0.3:
            told["unit"] = rng.choice(("celsius", "C", "fahrenheit"))
        told[rng.choice(("condition", "conditions", "sky", "description"))] = sky
        if rng.random() < 0.3:
            told = {rng.choice(("city", "location")): slots["c"], **told}
        return json.dumps(told, ensure_ascii=False), f"The weather in {slots['c']}: {sky}, {t} degrees."
    answer = kind.answer.format(**slots)
    if form < 0.65:
        return str(r), answer
    told = {rng.choice(kind.keys): r}
    if form > 0.85:
        told = {**arguments, **told}
    return json.dumps(told, ensure_ascii=False), answer
