"""Questions about the tables of facts, small skills, and questions that the model cannot answer."""

import random

from chat import Turns, held_out
from facts import DAYS, MONTHS, RELATIONS, Relation
from stories import KINDS, NAMES, THINGS, article


def upper(text: str) -> str:
    """Return the text with a capital letter at its beginning."""
    return text[0].upper() + text[1:]


def _fact(rng: random.Random, relation: Relation) -> tuple[str, str]:
    x, y = rng.choice(relation.pairs)
    question = rng.choice(relation.questions).format(x=x, y=y)
    return upper(question), upper(rng.choice(relation.answers).format(x=x, y=y))


RELATION_WEIGHTS = [
    {"capital": 24.0, "country": 8.0, "opposite": 10.0}.get(k, len(r.pairs) ** 0.5)
    for k, r in RELATIONS.items()
]


def fact(rng: random.Random, held: bool) -> Turns:
    """One question about a fact; a held-out one asks a known fact in unseen words."""
    while True:
        relation = rng.choices(list(RELATIONS.values()), RELATION_WEIGHTS)[0]
        question, answer = _fact(rng, relation)
        if held_out(question) == held:
            return [(question, answer)]


def capital_chain(rng: random.Random, held: bool) -> Turns:
    """Follow-up questions that lean on the turn before; training only, their words are few."""
    if held:
        return fact(rng, held)
    relation = RELATIONS[rng.choice(("capital", "opposite", "colour"))]
    turns = [_fact(rng, relation)]
    for x, y in rng.sample(relation.pairs, rng.randint(1, 3)):
        ask = rng.choice(("And of {x}?", "And {x}?", "What about {x}?"))
        if relation is RELATIONS["colour"]:
            ask = rng.choice(("And {x}?", "What about {x}?"))
        turns.append((ask.format(x=x), upper(relation.answers[0].format(x=x, y=y))))
    if held_out(" ".join(q for q, _ in turns)):
        return capital_chain(rng, held)
    return turns


def skill(rng: random.Random, held: bool) -> Turns:
    """Counting, lists and repeating."""
    while True:
        pick = rng.randrange(6)
        if pick == 0:
            a = rng.randint(0, 20)
            b = a + rng.randint(2, 12)
            question = rng.choice((f"Count from {a} to {b}.", f"Please count from {a} to {b}."))
            answer = ", ".join(map(str, range(a, b + 1)))
        elif pick == 1:
            n, (what, items) = rng.randint(2, 5), rng.choice(LISTS)
            number = ("two", "three", "four", "five")[n - 2]
            question = rng.choice(("Name {n} {w}.", "List {n} {w}.", "Tell me {n} {w}."))
            question = question.format(n=rng.choice((number, str(n))), w=what)
            answer = _and(rng.sample(items, n))
        elif pick == 2:
            what, days = rng.choice((("days of the week", DAYS), ("months of the year", MONTHS)))
            question = rng.choice(("List the {}.", "Name the {}.", "What are the {}?"))
            question, answer = question.format(what), _and(list(days))
        elif pick == 3:
            words = f"The {rng.choice(KINDS)} has {article(rng.choice(THINGS))}."
            question, answer = rng.choice((f"Repeat: {words}", f"Say: {words}")), words
        elif pick == 4:
            i = rng.randrange(98)
            question = rng.choice((f"Which number comes after {i}?", f"What comes after {i}?"))
            answer = f"After {i} comes {i + 1}."
        else:
            a, b = rng.sample(range(100), 2)
            question = rng.choice((f"Which is bigger, {a} or {b}?", f"Is {a} or {b} bigger?"))
            answer = f"{max(a, b)} is bigger than {min(a, b)}."
        if held_out(question) == held:
            return [(question, answer)]


LISTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("colours", ("red", "blue", "green", "yellow", "orange", "purple", "brown", "white")),
    ("animals", KINDS[:20]),
    ("fruits", ("apples", "pears", "plums", "cherries", "bananas", "lemons", "grapes")),
    ("planets", ("Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus")),
    ("names", NAMES),
)


def _and(items: list[str]) -> str:
    return upper(", ".join(items[:-1]) + " and " + items[-1] + ".")


def unknown(rng: random.Random, held: bool) -> Turns:
    """Questions beyond the model; it says so instead of making something up."""
    things = (
        "the economy", "physics", "the law", "football", "a computer", "history", "the stock market",
        "politics", "chemistry", "the internet", "medicine", "philosophy", "a spaceship", "poetry",
        "a telephone", "an atom", "music theory", "the weather", "the news", "a guitar", "geometry",
    )  # fmt: skip
    while True:
        question = rng.choice((
            "Explain {}.", "How does {} work?", "What do you think about {}?",
            "Write an essay about {}.", "Who invented {}?", "Why is {} important?",
            "Give me advice about {}.", "Translate {} into {o}.", "What is the price of {}?",
            "Write a program about {}.", "Can you teach me {}?",
        )).format(rng.choice(things), o=rng.choice(("French", "German", "Latin")))  # fmt: skip
        answer = rng.choice((
            "I am sorry, I do not know that. I am only a small demo model.",
            "I do not know. I am a very small model and know only simple things.",
        ))  # fmt: skip
        if held_out(question) == held:
            return [(question, answer)]
