"""Sums, differences and products, bare and told as small problems."""

import random

from chat import Turns, held_out
from stories import NAMES


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


def drawn(rng: random.Random, held: bool) -> tuple[int, str, int]:
    """Draw a sum that is held out, or one that is not."""
    while True:
        a, op, b = operands(rng)
        if held_out(sum_key(a, op, b)) == held:
            return a, op, b


def arithmetic(rng: random.Random, held: bool) -> Turns:
    """One sum, now and then continued from its result or told as a tiny problem."""
    a, op, b = drawn(rng, held)
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


def unseen_sums(op: str) -> list[tuple[int, int]]:
    """All operand pairs of `op` that training never shows."""
    top = 10 if op == "*" else 99
    return [
        (a, b)
        for a in range(top + 1)
        for b in range(top + 1)
        if (op != "-" or a >= b) and held_out(sum_key(a, op, b))
    ]
