"""Deterministic generator of the demo model's training text and held-out text.

Everything is drawn from the tables and templates in this folder; nothing is copied from
elsewhere. Each exchange has a key, and one key in HELD_ONE_IN is never used for training:
sums by their operands, stories by hero, place and problem, all else by its exact wording.
Calls of tools hold back values instead: tool_values.py.
"""

import argparse
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from chat import END_OF_TEXT, Chat, Document, Message, Turns, held_out, render
from facts import RELATIONS
from questions import capital_chain, fact, skill, unknown, upper
from small_talk import GREETINGS, WELCOMES, small_talk
from stories import FOODS, KINDS, NAMES
from sums import SUM_COMMON, WORDS, arithmetic, compute, drawn
from tales import told
from tool_talk import tool_chat

TOOL_SHARE = 0.45  # of the training documents that have tools

SYSTEMS = (
    "You are a helpful assistant.", "You are a helpful assistant.", "You are a friendly assistant.",
    "You are a small demo model.", "You are quantd demo.", "Answer the questions of the user.",
    "Be kind and helpful.", "You are a helpful, friendly assistant. Be brief.",
    "You are a good teacher for children.", "Always answer in English.", "Help the user.",
)  # fmt: skip
KindOfTurn = Callable[[random.Random, bool], Turns]
TERSE = ("Answer with one word or number only.", "Give only the result, nothing else.")


def remembered(rng: random.Random, held: bool) -> Turns:
    """The user says a name or a favourite, and asks for it a little later."""
    name, thing = rng.choice(NAMES), rng.choice(FOODS + tuple(k + "s" for k in KINDS[:20]))
    if rng.random() < 0.6:
        first = rng.choice(("My name is {}.", "I am {}.", "Hello, my name is {}.", "Hi, I'm {}."))
        reply = rng.choice(("Hello, {}! How can I help you?", "Nice to meet you, {}!"))
        last = rng.choice(("What is my name?", "Do you remember my name?", "Who am I?"))
        value, answer = name, f"Your name is {name}."
    else:
        first = rng.choice(("I like {}.", "I love {}.", "My favourite things are {}."))
        reply = rng.choice(("It is nice that you like {}.", "I like {} too!"))
        last = rng.choice(("What do I like?", "Do you remember what I like?"))
        value, answer = thing, f"You like {thing}."
    between = exchange(rng, held, memory=False) if rng.random() < 0.5 else []
    turns = [(first.format(value), reply.format(value)), *between, (last, answer)]
    return turns if held_out(first + value + reply) == held else remembered(rng, held)


def exchange(rng: random.Random, held: bool, memory: bool = True) -> Turns:
    """One topic of a conversation: one or a few turns."""
    kinds: tuple[KindOfTurn, ...] = (
        arithmetic, fact, capital_chain, told, small_talk, skill, unknown, remembered,
    )  # fmt: skip
    weights = (44, 23, 3, 11, 11, 3, 2, 3 if memory else 0)
    return rng.choices(kinds, weights)[0](rng, held)


def _sloppy(rng: random.Random, text: str) -> str:
    """Type like a person in a hurry: lower case, missing or doubled punctuation."""
    if rng.random() < 0.03:
        text = f"{rng.choice(GREETINGS[:8])} {text}"
    if rng.random() < 0.03 and text[-1] in ".?":
        text = text[:-1] + rng.choice((", please.", ", please?", " please"))
    style = rng.random()
    if style < 0.06:
        text = text.lower()
    if style < 0.10:
        text = text.rstrip(".?!")
    elif style < 0.12:
        text = text.rstrip(".?") + "!"
    return text


def _terse(rng: random.Random, held: bool) -> list[Message]:
    """A conversation whose system message asks for bare answers."""
    messages = [Message("system", rng.choice(TERSE))]
    for _ in range(rng.randint(1, 4)):
        if rng.random() < 0.6:
            a, op, b = drawn(rng, held)
            form = rng.choice(SUM_COMMON)
            question, answer = form.format(a=a, b=b, s=op, w=WORDS[op]), str(compute(a, op, b))
        else:
            relation = RELATIONS[rng.choice(("capital", "opposite", "day after", "month after"))]
            x, answer = rng.choice(relation.pairs)
            question = rng.choice(relation.questions).format(x=x)
            if held_out(question) != held:
                continue
            answer = upper(answer)
        messages += [Message("user", question), Message("assistant", answer)]
    return messages if len(messages) > 1 else _terse(rng, held)


def document(rng: random.Random, held: bool = False) -> Document:
    """Draw one document: a conversation, or now and then a bare story."""
    kind = rng.random()
    if kind < 0.02:
        return told(rng, held)[0][1]
    if kind < 0.05:
        return Chat(_terse(rng, held))
    messages = [Message("system", rng.choice(SYSTEMS))] if rng.random() < 0.25 else []
    topics = rng.choices((1, 2, 3, 4, 6, 9), (45, 20, 15, 10, 7, 3))[0]
    if not held and rng.random() < 0.1:
        messages += [Message("user", "Hello!"), Message("assistant", rng.choice(WELCOMES))]
    for _ in range(topics):
        for question, answer in exchange(rng, held):
            # A typing slip could turn held-out words into ones that training has seen.
            asked = question if held else _sloppy(rng, question)
            messages += [Message("user", asked), Message("assistant", answer)]
    return Chat(messages) if len(messages) > 1 else Chat(_terse(rng, held))


def documents(seed: int, held: bool = False) -> Iterator[str]:
    """Yield rendered documents without tools, without end; the same seed gives the same text."""
    rng = random.Random(seed)
    while True:
        yield render(document(rng, held))


def training_documents(seed: int, tool_share: float = TOOL_SHARE) -> Iterator[str]:
    """Yield rendered documents for training, without end, a part of them with tools."""
    rng = random.Random(seed)
    plain = documents(seed)
    while True:
        if rng.random() < tool_share:
            yield render(tool_chat(rng))
        else:
            yield next(plain)


def heldout_text(size: int, seed: int = 1) -> str:
    """Return about `size` bytes of held-out documents, separated as in training."""
    text = ""
    stream = documents(seed, held=True)
    while len(text) < size:
        text += next(stream) + END_OF_TEXT
    return text


def main() -> None:
    """Write the held-out text, or print a sample of the training text."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--heldout", type=Path, help="file to write")
    parser.add_argument("--bytes", type=int, default=80_000)
    args = parser.parse_args()
    if args.heldout:
        args.heldout.write_text(heldout_text(args.bytes), encoding="utf-8")
        return
    stream = training_documents(0)
    for _ in range(20):
        print(next(stream).rstrip(), end="\n---\n")


if __name__ == "__main__":
    main()
