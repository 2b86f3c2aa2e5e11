"""A Jinja environment for templates from strangers: no way out, and every kind of work has a bound.

Jinja's own sandbox keeps a template away from Python's insides but lets it burn memory and time.  So the
parsed template is rewritten before it is compiled: every loop counts its passes, every text and list that
a template makes is paid for from a budget, and a clock is looked at on the way.  A thread cannot be killed; with these
checks a render ends by itself.
"""

# ruff: noqa: N802, N815 - Jinja calls visitors by the names of its nodes

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, cast

import jinja2
from jinja2 import filters, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

MAX_STEPS = 1_000_000
MAX_RANGE = 16_384
MAX_INT_BITS = 4096
MAX_DEPTH = 64
MAX_ENTRIES = 1 << 20


class TemplateLimitError(Exception):
    """A template did more work than any real one does."""


class TemplateRefusalError(Exception):
    """The template itself refused the conversation (raise_exception)."""


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


def _paid(value: Any) -> Any:
    """`value`, paid for: texts by length, containers by entries."""
    budget = BUDGET.get()
    budget.pay(len(value) if isinstance(value, str) else _measure(value, MAX_ENTRIES, texts=False))
    return value


def _text(value: Any) -> str:
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
    return _join_texts(_text(d), [_text(part) for part in _each(value)])


def _join_texts(separator: str, parts: list[Any]) -> str:
    BUDGET.get().pay(len(separator) * len(parts) + sum(len(p) for p in parts if isinstance(p, str)))
    return separator.join(parts)


def _replace(value: Any, old: Any, new: Any, count: int = -1) -> str:
    text, old, new = _text(value), _text(old), _text(new)
    BUDGET.get().pay(
        len(text)
        + len(new) * (text.count(old) if count is None or count < 0 else min(count, text.count(old)))
    )
    return text.replace(old, new, -1 if count is None else count)


def _indent(value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = _text(value)
    size = len(width) if isinstance(width, str) else int(width)
    BUDGET.get().pay(max(size, 0) * (text.count("\n") + 1))
    return filters.do_indent(text, width, first, blank)


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    if abs(precision) > 20:
        raise TemplateLimitError("it rounds to too many places")
    return filters.do_round(value, precision, method)  # type: ignore[arg-type]


def _list(value: Any) -> list[Any]:
    return list(_each(value))


def _concat(first: Any, *others: Any) -> str:
    return "".join([_text(first), *map(_text, others)])


def _each(value: Any) -> Iterator[Any]:
    """The items of a loop, counted; None has none, as an undefined value has none."""
    budget = BUDGET.get()
    for item in () if value is None else value:
        budget.step()
        yield item


def _out(value: Any) -> Any:
    """What a template prints, paid for."""
    return value if isinstance(value, _SCALARS) else _text(value)


@pass_context  # keeps the compiler from doing it once and for all
def _step(context: Context, value: Any) -> str:
    del context, value
    BUDGET.get().step()
    return ""


def _on_text(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of texts: its subject becomes a text within the budget first, its result is paid for."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        # pass_environment and pass_eval_context filters have one argument before the subject
        at = 1 if hasattr(function, "jinja_pass_arg") else 0
        subject = _text(args[at]) if len(args) > at else ""
        return _paid(function(*args[:at], subject, *args[at + 1 :], **kwargs))

    return call


def _on_values(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return _paid(function(*args, **kwargs))

    return call


_TEXT_FILTERS = "capitalize e escape lower safe title trim truncate upper wordcount"
_VALUE_FILTERS = (
    "abs count d default dictsort first float groupby int items last length map max min reject rejectattr"
    " reverse select selectattr sort unique"
)
_OWN_FILTERS: dict[str, Callable[..., Any]] = {
    "tojson": _tojson,
    "join": _join,
    "replace": _replace,
    "indent": _indent,
    "round": _round,
    "list": _list,
    "string": _text,
    # Put in by the rewriting; a template that names them itself gains nothing.
    "quantd_concat": _concat,
    "quantd_each": _each,
    "quantd_out": _out,
    "quantd_paid": _paid,
    "quantd_step": _step,
}
_STR_METHODS = (
    "capitalize count endswith find index isalnum isalpha isdecimal isdigit islower isnumeric isspace istitle"
    " isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip"
    " split splitlines startswith strip swapcase title upper"
)
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(_STR_METHODS.split()),
    dict: frozenset(("get", "items", "keys", "values")),
    list: frozenset(("count", "index")),
    tuple: frozenset(("count", "index")),
}
_OPEN_TYPES = (LoopContext, Macro, Namespace, Undefined)


class _Rewriter(NodeTransformer):
    """Puts the checks into a parsed template."""

    @staticmethod
    def _filter(node: nodes.Node, name: str, *args: nodes.Expr) -> nodes.Filter:
        return nodes.Filter(cast(nodes.Expr, node), name, list(args), [], None, None, lineno=node.lineno)

    def _refuse(self, node: nodes.Node) -> nodes.Node:
        raise jinja2.TemplateSyntaxError(f"{type(node).__name__.lower()} is not offered", node.lineno)

    visit_Include = visit_Import = visit_FromImport = visit_Extends = _refuse

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        if node.recursive:
            self._refuse(node)
        node.iter = self._filter(node.iter, "quantd_each")
        return node

    def _count_calls(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        step = self._filter(nodes.Const(None, lineno=node.lineno), "quantd_step")
        node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        return node  # type: ignore[no-any-return]

    visit_Macro = visit_CallBlock = _count_calls

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [
            self._filter(
                nodes.Const(child.data, lineno=node.lineno)
                if isinstance(child, nodes.TemplateData)
                else child,
                "quantd_out",
            )
            for child in node.nodes
        ]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._filter(node.nodes[0], "quantd_concat", *node.nodes[1:])

    def _pay(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return self._filter(node, "quantd_paid") if getattr(node, "ctx", "load") == "load" else node

    visit_List = visit_Dict = visit_Tuple = _pay

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return self._filter(node, "quantd_paid") if isinstance(node.arg, nodes.Slice) else node


class _GenerationTag(Extension):
    """{% generation %} marks what an assistant said, for training; here its body is all that counts."""

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _bounded_range(*args: int) -> range:
    values = range(*args)
    if len(values) > MAX_RANGE:
        raise TemplateLimitError("a range is too long")
    return values


def _raise_exception(message: Any) -> None:
    raise TemplateRefusalError(_text(message))


def _strftime_now(form: Any) -> str:
    text = _text(form)
    if len(text) > 256 or re.search(r"%[^%]?\d{3}", text):
        raise TemplateLimitError("a time format is too long")
    return time.strftime(text)


def _power_of_two_bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The environment of chat templates, as Hugging Face sets it up, with bounds."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            cache_size=0,
            extensions=["jinja2.ext.loopcontrols", _GenerationTag],
        )
        known = self.filters
        self.filters = {
            **{name: _on_text(known[name]) for name in _TEXT_FILTERS.split()},
            **{name: _on_values(known[name]) for name in _VALUE_FILTERS.split()},
            **_OWN_FILTERS,
        }
        self.globals = {
            "range": _bounded_range,
            "dict": lambda **values: _paid(values),
            "namespace": Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def compile_source(self, source: str) -> jinja2.Template:
        """Parse, put the checks in, compile.  Raises whatever Jinja or Python raises for a bad template."""
        tree = _Rewriter().visit(self.parse(source))
        tree.set_environment(self)
        return jinja2.Template.from_code(self, self.compile(tree), self.make_globals(None))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Return True for the few methods that templates use and that make nothing large."""
        for kind, methods in _METHODS.items():
            if isinstance(obj, kind):
                return attr in methods
        return isinstance(obj, _OPEN_TYPES) and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """str.format is not offered: its widths have no bound."""

    def call(__self, __context: Context, __obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call what a template calls; methods of texts pay for what they make before they make it."""
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            name = __obj.__name__
            if name == "replace":
                return _replace(owner, *args, **kwargs)
            if name == "join":
                return _join_texts(owner, list(_each(*args)))
            BUDGET.get().pay(len(owner))
        result = super().call(__context, __obj, *args, **kwargs)
        return result if isinstance(result, _OPEN_TYPES) else _paid(result)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right` where the result is within bounds."""
        budget = BUDGET.get()
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            budget.pay(len(left) + len(right))
            return left + right
        if operator == "*":
            self._check_product(left, right)
        elif operator == "**" and _power_of_two_bits(left) * abs(right) > MAX_INT_BITS:
            raise TemplateLimitError("a number is too large")
        elif operator == "%" and isinstance(left, str):
            return _format(left, right)
        return _paid(super().call_binop(context, operator, left, right))

    @staticmethod
    def _check_product(left: Any, right: Any) -> None:
        if _power_of_two_bits(left) + _power_of_two_bits(right) > MAX_INT_BITS:
            raise TemplateLimitError("a number is too large")
        for sequence, count in ((left, right), (right, left)):
            if isinstance(sequence, str | list | tuple) and isinstance(count, int):
                BUDGET.get().pay(len(sequence) * max(count, 0))


def _format(form: str, values: Any) -> str:
    if "*" in form or re.search(r"\d{4}", form):
        raise TemplateLimitError("a width in a format is too large")
    parts = (
        values if isinstance(values, tuple) else values.values() if isinstance(values, dict) else (values,)
    )
    longest = max((len(_text(part)) for part in parts), default=0)
    BUDGET.get().pay(len(form) + form.count("%") * (longest + 1000))
    return cast(str, form % values)
