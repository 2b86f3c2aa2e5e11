"""What one render of a template may use, and the filters and operators that pay for what they make before they make it.

Three things are counted, because each alone lets a template through.  Size: bytes of texts and lists, as if nothing were ever
freed, so that memory is bounded.  Work: characters that one operation reads inside the interpreter, where no clock is looked at:
comparing, searching, sorting.  Steps: passes and calls, each with a look at the clock.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, cast

import markupsafe
from jinja2 import filters
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, Undefined
from jinja2.utils import pass_context

MAX_STEPS = 1_000_000
MAX_DEPTH = 64
MAX_ENTRIES = 1 << 20
MAX_INT_BITS = 4096
MAX_STRIP_CHARS = 256
ENTRY_BYTES = 16  # of a list; an entry of a dictionary takes more, but is never made without a pass of a loop
_PIECE_BYTES = 64  # a short text with its place in a list
_MIN_WORK = 1 << 28
_WORK_PER_BYTE = 64


class TemplateLimitError(Exception):
    """A template did more work than any real one does."""


class Budget:
    """What one render may use: bytes made, characters read, loop passes, seconds of this thread's CPU time."""

    def __init__(self, *, size: int, cpu_s: float) -> None:
        self.size = size
        self.work = _MIN_WORK + _WORK_PER_BYTE * size
        self._steps = MAX_STEPS
        self._end_s = time.thread_time() + cpu_s

    def pay(self, size: int) -> None:
        """Take `size` bytes, before they are made where that is possible."""
        self.size -= size
        if self.size < 0:
            raise TemplateLimitError("it makes too much text")
        self.step()

    def read(self, size: int) -> None:
        """Take `size` characters that an operation is about to look at."""
        self.work -= size
        if self.work < 0:
            raise TemplateLimitError("it takes too long")
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


def bytes_of(text: str) -> int:
    """The most that a text of this length takes; what is not ASCII takes up to four bytes a character."""
    return len(text) if text.isascii() else 4 * len(text)


def paid(value: Any) -> Any:
    """`value`, paid for: texts by their bytes, containers by entries; a number must be of a reasonable size."""
    budget = BUDGET.get()
    if isinstance(value, str):
        budget.pay(bytes_of(value))
    elif isinstance(value, int):
        check_number(value)
    else:
        budget.pay(ENTRY_BYTES * _measure(value, MAX_ENTRIES, texts=False))
    return value


def check_number(value: int) -> None:
    """TemplateLimitError for a number with which arithmetic would take long."""
    if value.bit_length() > MAX_INT_BITS:
        raise TemplateLimitError("a number is too large")


def weighed(value: Any) -> Any:
    """`value`, about to be compared or searched: whatever that reads of it is counted first."""
    if isinstance(value, str):
        if len(value) > 64:
            BUDGET.get().read(len(value))
    elif isinstance(value, dict | list | tuple | set | frozenset):
        budget = BUDGET.get()
        budget.read(_measure(value, min(budget.work, MAX_ENTRIES * 256), texts=True))
    return value


def text_of(value: Any) -> str:
    """`value` as text, paid for before it is made."""
    budget = BUDGET.get()
    if isinstance(value, str):
        budget.pay(bytes_of(value))
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
    between = sum(len(text_of(text)) for text in separators or ())
    budget.pay((6 + spaces * MAX_DEPTH // 8 + between) * _measure(value, budget.size, texts=True))
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
    size = bytes_of(separator) * len(parts) + sum(bytes_of(part) for part in parts if isinstance(part, str))
    BUDGET.get().pay(size)
    return separator.join(parts)


def replace(value: Any, old: Any, new: Any, count: int = -1) -> str:
    text, old, new = text_of(value), text_of(old), text_of(new)
    found = text.count(old)
    BUDGET.get().pay(
        bytes_of(text) + bytes_of(new) * (found if count is None or count < 0 else min(count, found))
    )
    return text.replace(old, new, -1 if count is None else count)


def _indent(value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = text_of(value)
    size = bytes_of(width) if isinstance(width, str) else int(width)
    BUDGET.get().pay(max(size, 0) * (len(text.splitlines()) + 1))
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


def on_order(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that compares the items of its subject, or makes a key of each: all of them are paid for first."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        at = 1 if hasattr(function, "jinja_pass_arg") else 0
        subject = args[at] if len(args) > at else ()
        items = subject if isinstance(subject, dict | list | tuple | str) else list(each(subject))
        budget = BUDGET.get()
        size = _measure(items, budget.size, texts=True)
        budget.pay(4 * size + ENTRY_BYTES * len(items))
        budget.read(size * len(items).bit_length())
        return paid(function(*args[:at], items, *args[at + 1 :], **kwargs))

    return call


def on_comparison(function: Callable[..., Any]) -> Callable[..., Any]:
    """A test that compares: see `weighed`."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return function(*map(weighed, args))

    return call


def on_values(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return paid(function(*args, **kwargs))

    return call


def _escape(value: Any) -> Any:
    text = text_of(value)
    BUDGET.get().pay(6 * bytes_of(text))
    return markupsafe.escape(text)


def _trim(value: Any, chars: str | None = None) -> str:
    text = text_of(value)
    check_strip(chars)
    return cast(str, paid(text.strip(chars)))


def check_strip(chars: Any) -> None:
    """TemplateLimitError for more characters to strip than anybody lists: each is looked for in them."""
    if isinstance(chars, str) and len(chars) > MAX_STRIP_CHARS:
        raise TemplateLimitError("it strips too many characters")


_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_SPACES = (
    _LINE_ENDS
    + " \t\x1f\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
)


def call_text_method(text: str, name: str, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """A method of a text, called once what it reads and makes is paid for."""
    budget = BUDGET.get()
    for argument in (*args, *kwargs.values()):
        weighed(argument)
    if name == "replace":
        return replace(text, *args, **kwargs)
    if name == "join":
        return join_texts(text, list(each(*args)))
    budget.pay(bytes_of(text))
    if name in ("strip", "lstrip", "rstrip"):
        check_strip(args[0] if args else None)
    elif name in ("split", "rsplit", "splitlines"):
        separator = (args[0] if args else kwargs.get("sep")) if name != "splitlines" else None
        ends = _LINE_ENDS if name == "splitlines" else _SPACES
        pieces = (
            text.count(separator) if isinstance(separator, str) and separator else sum(map(text.count, ends))
        )
        budget.pay(_PIECE_BYTES * (pieces + 1))
    return paid(method(*args, **kwargs))


TEXT_FILTERS = "capitalize lower safe title truncate upper wordcount"
ORDER_FILTERS = "dictsort groupby max min sort unique"
VALUE_FILTERS = (
    "abs count d default first float int items last length map reject rejectattr reverse select selectattr"
)
COMPARISONS = "== eq equalto != ne > gt greaterthan >= ge < lt lessthan <= le in"
OWN_FILTERS: dict[str, Callable[..., Any]] = {
    "tojson": _tojson,
    "e": _escape,
    "escape": _escape,
    "trim": _trim,
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
    "quantd_weighed": weighed,
}


def format_percent(form: str, values: Any) -> str:
    if "*" in form or re.search(r"\d{4}", form):
        raise TemplateLimitError("a width in a format is too large")
    parts = (
        values if isinstance(values, tuple) else values.values() if isinstance(values, dict) else (values,)
    )
    longest = max((len(text_of(part)) for part in parts), default=0)
    # The widest is an escaped character of %a: ten for one.
    BUDGET.get().pay(bytes_of(form) + form.count("%") * (10 * longest + 1000))
    return cast(str, form % values)
