"""Deterministic generator of the demo model's training text and held-out text.

Everything is drawn from the tables and templates in this folder; nothing is copied from
elsewhere. Each exchange has a key, and one key in HELD_ONE_IN is never used for training:
sums by their operands, stories by hero, place and problem, all else by its exact wording.
"""

import argparse
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from facts import DAYS, MONTHS, RELATIONS, Relation
from stories import FOODS, HE, KINDS, SHE, THINGS, article, cast, story

HELD_ONE_IN = 25
IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
# The pre-tokenizer that GGUF calls "qwen2"; a digit is always a word of its own.
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NAMES = HE + SHE


@dataclass(frozen=True)
class Message:
    """One chat message; role is system, user or assistant."""

    role: str
    content: str


Document = list[Message] | str
Turns = list[tuple[str, str]]


def held_out(key: str) -> bool:
    """Tell whether the key belongs to the held-out text (stable over runs and machines)."""
    return zlib.crc32(key.encode()) % HELD_ONE_IN == 0


def render(document: Document) -> str:
    """Return the document as the model reads it, without the document separator."""
    if isinstance(document, str):
        return document
    return "".join(f"{IM_START}{m.role}\n{m.content}{IM_END}\n" for m in document)


# --- arithmetic -------------------------------------------------------------------------


def sum_key(a: int, op: str, b: int) -> str:
    """Key of a sum; a + b and b + a share one, so the mirror image is unseen as well."""
    if op != "-":
        a, b = min(a, b), max(a, b)
    return f"sum {a}{op}{b}"


def compute(a: int, op: str, b: int) -> int:
    """Return a op b."""
    return a + b if op == "+" else a - b if op == "-" else a * b


WORDS = {"+": "plus", "-": "minus", "*": "times"}
SUM_FORMS = {
    "+": ("Add {a} and {b}.", "What is the sum of {a} and {b}?", "Add {b} to {a}."),
    "-": ("Subtract {b} from {a}.", "Take {b} away from {a}.", "Take {b} from {a}."),
    "*": ("Multiply {a} by {b}.", "Multiply {a} and {b}."),
}
SUM_COMMON = (
    "What is {a} {w} {b}?", "What is {a} {w} {b}?", "What is {a} {s} {b}?", "{a} {s} {b} = ?",
    "{a} {s} {b} =", "{a} {s} {b}", "{a}{s}{b}", "{a}{s}{b}=?", "{a} {w} {b}", "{a} {w} {b}?",
    "How much is {a} {w} {b}?", "How much is {a} {s} {b}?", "Calculate {a} {s} {b}.",
    "What's {a} {w} {b}?", "What's {a} {s} {b}?", "Can you tell me what {a} {w} {b} is?",
    "Please work out {a} {w} {b}.", "Compute {a} {w} {b}.",
)  # fmt: skip


def operands(rng: random.Random) -> tuple[int, str, int]:
    """Draw a sum: results of minus are never negative, times stays within the small table."""
    op = rng.choices("+-*", (42, 46, 12))[0]
    if op == "*":
        return rng.randint(0, 10), op, rng.randint(0, 10)
    top = rng.choices((9, 20, 99), (12, 18, 70))[0]
    a, b = rng.randint(0, top), rng.randint(0, top)
    if op == "-" and a < b:
        a, b = b, a
    return a, op, b


def _drawn(rng: random.Random, held: bool) -> tuple[int, str, int]:
    while True:
        a, op, b = operands(rng)
        if held_out(sum_key(a, op, b)) == held:
            return a, op, b


def arithmetic(rng: random.Random, held: bool) -> Turns:
    """One sum, now and then continued from its result or told as a tiny problem."""
    a, op, b = _drawn(rng, held)
    if op != "*" and max(a, b) <= 20 and rng.random() < 0.15:
        return [_word_problem(rng, a, op, b)]
    form = rng.choice(SUM_COMMON if rng.random() < 0.7 else SUM_FORMS[op])
    question = form.format(a=a, b=b, s=op, w=WORDS[op])
    result = compute(a, op, b)
    signs = f" {op} " in question or f"{a}{op}{b}" in question
    answer = f"{a} {op} {b} = {result}" if signs else f"{a} {WORDS[op]} {b} is {result}."
    turns = [(question, answer)]
    if rng.random() < 0.1 and result <= 99:
        for _ in range(20):
            more = rng.randint(1, 20)
            if held_out(sum_key(result, "+", more)) == held:
                ask = rng.choice(("And plus {m}?", "Now add {m}.", "Add {m} to that."))
                turns.append((ask.format(m=more), f"{result} plus {more} is {result + more}."))
                break
    return turns


def _word_problem(rng: random.Random, a: int, op: str, b: int) -> tuple[str, str]:
    name, food = rng.choice(NAMES), rng.choice(("apples", "nuts", "cookies", "coins", "books"))
    if op == "+":
        change = rng.choice(("gets {b} more", "finds {b} more", "buys {b} more"))
    else:
        change = rng.choice(("gives away {b}", "loses {b}", "gives {b} to a friend"))
    return (
        f"{name} has {a} {food} and {change.format(b=b)}. How many {food} does {name} have now?",
        f"{a} {WORDS[op]} {b} is {compute(a, op, b)}, so {name} has {compute(a, op, b)} {food}.",
    )


# --- facts ------------------------------------------------------------------------------


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]


def _fact(rng: random.Random, relation: Relation) -> tuple[str, str]:
    x, y = rng.choice(relation.pairs)
    question = rng.choice(relation.questions).format(x=x, y=y)
    return _upper(question), _upper(rng.choice(relation.answers).format(x=x, y=y))


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
        turns.append((ask.format(x=x), _upper(relation.answers[0].format(x=x, y=y))))
    if held_out(" ".join(q for q, _ in turns)):
        return capital_chain(rng, held)
    return turns


# --- small talk -------------------------------------------------------------------------

GREETINGS = (
    "Hello!", "Hello", "Hi!", "Hi", "Hi there!", "Hey!", "Hello there.", "Good morning!",
    "Good evening!", "Good day!", "Hello, how are you?", "Hi, how are you?",
)  # fmt: skip
WELCOMES = (
    "Hello! How can I help you?", "Hello! It is nice to meet you.",
    "Hello! What would you like to talk about?", "Hi! How can I help you today?",
    "Hello! Ask me a question or ask for a story.",
)  # fmt: skip
TALK: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        (
            "Who are you?", "What are you?", "Tell me about yourself.", "Introduce yourself.",
            "Please introduce yourself.", "What is this?", "Who am I talking to?",
            "Can you tell me who you are?", "What kind of model are you?",
        ),
        (
            ("I am a small demo model made for quantd. I can tell short stories, do small sums "
            "and answer simple questions."),
            ("I am the quantd demo model, a very small language model. I know short stories, "
            "small sums and some simple facts."),
            "I am a small demo model made for quantd.",
        ),
    ),
    (
        ("What is your name?", "What's your name?", "Do you have a name?", "How are you called?"),
        ("My name is quantd demo.", "I am called quantd demo. I am a small demo model."),
    ),
    (
        ("What can you do?", "How can you help me?", "What do you know?", "Can you help me?",
         "What should I ask you?", "Help!", "Help"),
        (
            ("I can tell short stories, add and subtract small numbers, and answer simple "
            "questions about capitals, colours and animals."),
            "You can ask me for a story, a small sum or the capital of a country.",
        ),
    ),
    (
        ("Who made you?", "Where do you come from?", "Who trained you?", "How were you made?"),
        ("I was made for quantd and trained from scratch on simple generated text.",
         "I was trained from scratch as a demo model for quantd."),
    ),
    (
        ("What is quantd?", "Tell me about quantd.", "What does quantd do?"),
        ("quantd is a server that runs language models on the CPU. I am its small demo model.",),
    ),
    (
        ("How big are you?", "How large are you?", "Are you a big model?", "Are you clever?",
         "Are you smart?"),
        ("I am a very small model with only a few million parameters, so I make mistakes.",
         "No, I am very small. I know only a few simple things."),
    ),
    (
        ("Are you a robot?", "Are you human?", "Are you a person?", "Are you real?"),
        ("I am not a person. I am a small language model.",
         "I am a computer program, a small language model."),
    ),
    (
        ("How are you?", "How are you today?", "How do you do?", "Are you well?",
         "How do you feel?"),
        ("I am fine, thank you. How can I help you?", "I am very well, thank you!"),
    ),
    (
        ("Thank you!", "Thanks!", "Thank you very much.", "Thanks a lot!", "Thank you.",
         "That was helpful.", "Great, thanks!"),
        ("You are welcome!", "You are welcome. Is there anything else?", "I am glad to help."),
    ),
    (
        ("Goodbye!", "Bye!", "Bye", "See you later.", "Good night!", "I have to go now."),
        ("Goodbye! Have a nice day.", "Goodbye! Come back soon.", "See you soon!"),
    ),
    (
        ("I am sad.", "I feel sad today.", "I had a bad day.", "I am lonely.", "I am tired."),
        ("I am sorry to hear that. Shall I tell you a story?",
         "I am sorry. I hope that you feel better soon."),
    ),
    (
        ("I am happy.", "I had a good day.", "Today is a good day.", "I feel great today!"),
        ("I am glad to hear that!", "That is very good news!"),
    ),
    (
        ("Do you like stories?", "Do you like animals?", "Do you like music?", "Do you like me?",
         "Do you like numbers?"),
        ("Yes, I do!", "Yes, very much!"),
    ),
    (
        ("Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Say something funny."),
        ("Why did the hen cross the road? To get to the other side!",
         "What has four legs but cannot walk? A table!",
         "What is black and white and can be read? A book!",
         "What has hands but cannot clap? A clock!"),
    ),
    (
        ("Test", "This is a test.", "Are you there?", "Can you hear me?", "ping"),
        ("Yes, I am here. How can I help you?", "I am here!"),
    ),
)  # fmt: skip


def small_talk(rng: random.Random, held: bool) -> Turns:
    """Greetings and questions about the model."""
    while True:
        asks, answers = (GREETINGS, WELCOMES) if rng.random() < 0.25 else rng.choices(TALK, TALK_WEIGHTS)[0]
        question, answer = rng.choice(asks), rng.choice(answers)
        if held_out(question + answer) == held:
            return [(question, answer)]


TALK_WEIGHTS = [4.0, 2.0, 2.0] + [1.0] * (len(TALK) - 3)


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


# --- stories ----------------------------------------------------------------------------

STORY_PLAIN = (
    "Tell me a story.", "Tell me a short story.", "Write a story.", "Please tell me a story.",
    "Can you tell me a story?", "I want to hear a story.", "Another story, please.",
    "Tell me another story.", "Tell me a bedtime story.", "Once upon a time",
)  # fmt: skip
STORY_ABOUT = (
    "Tell me a story about {}.", "Tell me a story about {}.", "Tell me a short story about {}.",
    "Write a story about {}.", "Write a short story about {}.", "A story about {}, please.",
    "Can you tell me a story about {}?", "Please tell a story about {}.", "Story about {}",
    "I would like a story about {}.", "Make up a story about {}.",
)  # fmt: skip


def told(rng: random.Random, held: bool) -> Turns:
    """A story on request, at times with questions about it."""
    while held_out((c := cast(rng)).key) != held:
        pass
    s = story(rng, c)
    who = article(c.kind)
    topic = rng.choice((
        who, who, who, article(f"{c.trait} {c.kind}"), f"{who} named {c.name}",
        f"{who} and {article(c.friend_kind)}", f"{who} who lives {c.place}",
        f"{c.name} the {c.kind}", f"{c.name} and {c.friend}", c.name,
    ))  # fmt: skip
    ask = rng.choice(STORY_PLAIN) if rng.random() < 0.2 else rng.choice(STORY_ABOUT).format(topic)
    turns = [(ask, s.text)]
    later = [
        (
            rng.choice((f"What is the name of the {c.kind}?", f"What was the {c.kind} called?")),
            f"The {c.kind} is called {c.name}.",
        ),
        (
            rng.choice((f"Who helped {c.name}?", "Who was the friend?", "Who is the friend?")),
            f"The friend is {c.friend} the {c.friend_kind}.",
        ),
        (
            rng.choice((f"Where does {c.name} live?", f"Where did the {c.kind} live?")),
            f"{c.name} lived {c.place}.",
        ),
        (
            rng.choice(("What is the moral of the story?", f"What did {c.name} learn?")),
            f"{c.name} learned that {s.moral}.",
        ),
    ]
    if rng.random() < 0.35:
        turns += rng.sample(later, rng.randint(1, 2))
    return turns


# --- skills and limits ------------------------------------------------------------------


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
    return _upper(", ".join(items[:-1]) + " and " + items[-1] + ".")


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


# --- documents --------------------------------------------------------------------------

KindOfTurn = Callable[[random.Random, bool], Turns]
SYSTEMS = (
    "You are a helpful assistant.", "You are a helpful assistant.", "You are a friendly assistant.",
    "You are a small demo model.", "You are quantd demo.", "Answer the questions of the user.",
    "Be kind and helpful.", "You are a helpful, friendly assistant. Be brief.",
    "You are a good teacher for children.", "Always answer in English.", "Help the user.",
)  # fmt: skip
TERSE = ("Answer with one word or number only.", "Give only the result, nothing else.")


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
            a, op, b = _drawn(rng, held)
            form = rng.choice(SUM_COMMON)
            question, answer = form.format(a=a, b=b, s=op, w=WORDS[op]), str(compute(a, op, b))
        else:
            relation = RELATIONS[rng.choice(("capital", "opposite", "day after", "month after"))]
            x, answer = rng.choice(relation.pairs)
            question = rng.choice(relation.questions).format(x=x)
            if held_out(question) != held:
                continue
            answer = _upper(answer)
        messages += [Message("user", question), Message("assistant", answer)]
    return messages if len(messages) > 1 else _terse(rng, held)


def document(rng: random.Random, held: bool = False) -> Document:
    """Draw one document: a conversation, or now and then a bare story."""
    kind = rng.random()
    if kind < 0.02:
        return told(rng, held)[0][1]
    if kind < 0.05:
        return _terse(rng, held)
    messages = [Message("system", rng.choice(SYSTEMS))] if rng.random() < 0.25 else []
    topics = rng.choices((1, 2, 3, 4, 6, 9), (45, 20, 15, 10, 7, 3))[0]
    if not held and rng.random() < 0.1:
        messages += [Message("user", "Hello!"), Message("assistant", rng.choice(WELCOMES))]
    for _ in range(topics):
        for question, answer in exchange(rng, held):
            # A typing slip could turn held-out words into ones that training has seen.
            asked = question if held else _sloppy(rng, question)
            messages += [Message("user", asked), Message("assistant", answer)]
    return messages if len(messages) > 1 else _terse(rng, held)


def documents(seed: int, held: bool = False) -> Iterator[str]:
    """Yield rendered documents without end; the same seed gives the same text."""
    rng = random.Random(seed)
    while True:
        yield render(document(rng, held))


def heldout_text(size: int, seed: int = 1) -> str:
    """Return about `size` bytes of held-out documents, separated as in training."""
    text = ""
    stream = documents(seed, held=True)
    while len(text) < size:
        text += next(stream) + END_OF_TEXT
    return text


def unseen_sums(op: str) -> list[tuple[int, int]]:
    """All operand pairs of `op` that training never shows."""
    top = 10 if op == "*" else 99
    return [
        (a, b)
        for a in range(top + 1)
        for b in range(top + 1)
        if (op != "-" or a >= b) and held_out(sum_key(a, op, b))
    ]


def main() -> None:
    """Write the held-out text, or print a sample of the training text."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--heldout", type=Path, help="file to write")
    parser.add_argument("--bytes", type=int, default=80_000)
    args = parser.parse_args()
    if args.heldout:
        args.heldout.write_text(heldout_text(args.bytes), encoding="utf-8")
        return
    stream = documents(0)
    for _ in range(20):
        print(next(stream).rstrip(), end="\n---\n")


if __name__ == "__main__":
    main()
