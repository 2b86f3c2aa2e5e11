"""What one render of a template may use, and the filters and operators that pay for what they make before they make it."""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, cast

from jinja2 import filters
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, Undefined
from jinja2.utils import pass_context

MAX_STEPS = 1_000_000
MAX_DEPTH = 64
MAX_ENTRIES = 1 << 20


class TemplateLimitError(Exception):
    """A template did more work than any real one does."""


class Budget:
    """What one render may use: characters and list entries made, loop passes, seconds of this thread's CPU time."""

    def __init__(self, *, size: int, cpu_s: float) -> None:
        self.size = size
        self._steps = MAX_STEPS
        self._end_s = time.thread_time() + cpu_s

    def pay(self, size: int) -> None:
        """Take `size` characters or entries, before they are made where that is possible."""
        self.size -= size
        if self.size < 0:
            raise TemplateLimitError("it makes too much text")
        self.step()

    def step(self) -> None:
        """Count one pass of a loop, or one call."""
        self._steps -= 1
        if self._steps < 0 or time.thread_time() > self._end_s:
            raise TemplateLimitError("it takes too long")


BUDGET: ContextVar[Budget] = ContextVar("BUDGET")

_SCALARS = (int, float, type(None), Undefined)


def _measure(value: Any, limit: int, *, texts: bool, depth: int = 0) -> int:
    """Entries of nested containers as if nothing were shared, plus the lengths of texts if asked; stops over `limit`."""
    if isinstance(value, str):
        return len(value) if texts else 1
    if isinstance(value, dict):
        children: Iterable[Any] = (part for item in value.items() for part in item)
    elif isinstance(value, list | tuple | set | frozenset):
        children = value
    else:
        return 1
    if depth > MAX_DEPTH:
        raise TemplateLimitError("it nests too deeply")
    total = 1
    for child in children:
        total += _measure(child, limit, texts=texts, depth=depth + 1)
        if total > limit:
            raise TemplateLimitError("it makes too much text")
    return total


def paid(value: Any) -> Any:
    """`value`, paid for: texts by length, containers by entries."""
    budget = BUDGET.get()
    budget.pay(len(value) if isinstance(value, str) else _measure(value, MAX_ENTRIES, texts=False))
    return value


def text_of(value: Any) -> str:
    """`value` as text, paid for before it is made."""
    budget = BUDGET.get()
    if isinstance(value, str):
        budget.pay(len(value))
        return value
    if isinstance(value, dict | list | tuple):
        # Quotes, commas and escapes at most; an escaped character takes up to ten.
        budget.pay(10 * _measure(value, budget.size, texts=True))
        return str(value)
    if isinstance(value, _SCALARS):
        return str(value)
    raise SecurityError(f"a {type(value).__name__} is no text")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as templates expect it: no HTML escapes, no ASCII escapes unless asked for."""
    budget = BUDGET.get()
    spaces = min(max(indent or 0, 0), 16)
    budget.pay((6 + spaces * MAX_DEPTH // 8) * _measure(value, budget.size, texts=True))
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=None if indent is None else spaces,
        separators=separators,
        sort_keys=sort_keys,
    )


def _join(value: Iterable[Any], d: Any = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        raise SecurityError("join with an attribute is not offered")
    return join_texts(text_of(d), [text_of(part) for part in each(value)])


def join_texts(separator: str, parts: list[Any]) -> str:
    BUDGET.get().pay(len(separator) * len(parts) + sum(len(p) for p in parts if isinstance(p, str)))
    return separator.join(parts)


def replace(value: Any, old: Any, new: Any, count: int = -1) -> str:
    text, old, new = text_of(value), text_of(old), text_of(new)
    BUDGET.get().pay(
        len(text)
        + len(new) * (text.count(old) if count is None or count < 0 else min(count, text.count(old)))
    )
    return text.replace(old, new, -1 if count is None else count)


def _indent(value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = text_of(value)
    size = len(width) if isinstance(width, str) else int(width)
    BUDGET.get().pay(max(size, 0) * (text.count("\n") + 1))
    return filters.do_indent(text, width, first, blank)


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    if abs(precision) > 20:
        raise TemplateLimitError("it rounds to too many places")
    return filters.do_round(value, precision, method)  # type: ignore[arg-type]


def _list(value: Any) -> list[Any]:
    return list(each(value))


def _concat(first: Any, *others: Any) -> str:
    return "".join([text_of(first), *map(text_of, others)])


def each(value: Any) -> Iterator[Any]:
    """The items of a loop, counted; None has none, as an undefined value has none."""
    budget = BUDGET.get()
    for item in () if value is None else value:
        budget.step()
        yield item


def _out(value: Any) -> Any:
    """What a template prints, paid for."""
    return value if isinstance(value, _SCALARS) else text_of(value)


@pass_context  # keeps the compiler from doing it once and for all
def _step(context: Context, value: Any) -> str:
    del context, value
    BUDGET.get().step()
    return ""


def on_text(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of texts: its subject becomes a text within the budget first, its result is paid for."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        # pass_environment and pass_eval_context filters have one argument before the subject
        at = 1 if hasattr(function, "jinja_pass_arg") else 0
        subject = text_of(args[at]) if len(args) > at else ""
        return paid(function(*args[:at], subject, *args[at + 1 :], **kwargs))

    return call


def on_values(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return paid(function(*args, **kwargs))

    return call


TEXT_FILTERS = "capitalize e escape lower safe title trim truncate upper wordcount"
VALUE_FILTERS = (
    "abs count d default dictsort first float groupby int items last length map max min reject rejectattr"
    " reverse select selectattr sort unique"
)
OWN_FILTERS: dict[str, Callable[..., Any]] = {
    "tojson": _tojson,
    "join": _join,
    "replace": replace,
    "indent": _indent,
    "round": _round,
    "list": _list,
    "string": text_of,
    # Put in by the rewriting; a template that names them itself gains nothing.
    "quantd_concat": _concat,
    "quantd_each": each,
    "quantd_out": _out,
    "quantd_paid": paid,
    "quantd_step": _step,
}


def format_percent(form: str, values: Any) -> str:
    if "*" in form or re.search(r"\d{4}", form):
        raise TemplateLimitError("a width in a format is too large")
    parts = (
        values if isinstance(values, tuple) else values.values() if isinstance(values, dict) else (values,)
    )
    longest = max((len(text_of(part)) for part in parts), default=0)
    BUDGET.get().pay(len(form) + form.count("%") * (longest + 1000))
    return cast(str, form % values)
