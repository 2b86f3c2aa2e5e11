"""A Jinja environment for templates from strangers: no way out, and every kind of work has a bound.

Jinja's own sandbox keeps a template away from Python's insides but lets it burn memory and time.  So the
parsed template is rewritten before it is compiled: every loop counts its passes, every text and list that
a template makes is paid for from a budget, and a clock is looked at on the way.  A thread cannot be killed; with these
checks a render ends by itself.
"""

# ruff: noqa: N802, N815 - Jinja calls visitors by the names of its nodes

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from daemon.text.budget import (
    BUDGET,
    COMPARISONS,
    ENTRY_BYTES,
    MAX_INT_BITS,
    ORDER_FILTERS,
    OWN_FILTERS,
    TEXT_FILTERS,
    VALUE_FILTERS,
    TemplateLimitError,
    bytes_of,
    call_text_method,
    check_number,
    format_percent,
    on_comparison,
    on_order,
    on_text,
    on_values,
    paid,
    text_of,
    weighed,
)

MAX_RANGE = 16_384
# Of one template; compiling takes up to a second for these, and the largest published ones have a tenth.
MAX_TAGS = 4000
MAX_NODES = 16_000


class TemplateRefusalError(Exception):
    """The template itself refused the conversation (raise_exception)."""


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

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = self._filter(node.expr, "quantd_weighed")
        for operand in node.ops:
            operand.expr = self._filter(operand.expr, "quantd_weighed")
        return node

    def visit_Const(self, node: nodes.Const) -> nodes.Node:
        if isinstance(node.value, int):
            check_number(node.value)
        return node

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
    raise TemplateRefusalError(text_of(message))


def _strftime_now(form: Any) -> str:
    text = text_of(form)
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
            **{name: on_text(known[name]) for name in TEXT_FILTERS.split()},
            **{name: on_order(known[name]) for name in ORDER_FILTERS.split()},
            **{name: on_values(known[name]) for name in VALUE_FILTERS.split()},
            **OWN_FILTERS,
        }
        comparisons = cast(dict[str, Callable[..., Any]], self.tests)
        self.tests.update({name: on_comparison(comparisons[name]) for name in COMPARISONS.split()})
        self.globals = {
            "range": _bounded_range,
            "dict": lambda **values: paid(values),
            "namespace": Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def compile_source(self, source: str) -> jinja2.Template:
        """Parse, put the checks in, compile.  Raises whatever Jinja or Python raises for a bad template."""
        if source.count("{{") + source.count("{%") > MAX_TAGS:
            raise jinja2.TemplateSyntaxError(f"more than {MAX_TAGS} tags", 1)
        tree = self.parse(source)
        if sum(1 for _ in tree.find_all(nodes.Node)) > MAX_NODES:
            raise jinja2.TemplateSyntaxError(f"more than {MAX_NODES} expressions", 1)
        tree = _Rewriter().visit(tree)
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
            # Inside loops and blocks Jinja passes its own variables along.
            own = {name: value for name, value in kwargs.items() if name not in ("_loop_vars", "_block_vars")}
            return call_text_method(owner, __obj.__name__, __obj, args, own)
        if isinstance(owner, list | tuple):
            weighed(owner)  # count and index compare
            weighed(args)
        result = super().call(__context, __obj, *args, **kwargs)
        return result if isinstance(result, _OPEN_TYPES) else paid(result)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right` where the result is within bounds."""
        budget = BUDGET.get()
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            # Text that is not ASCII makes all of it as wide.
            ascii_only = left.isascii() and right.isascii()
            budget.pay((len(left) + len(right)) * (1 if ascii_only else 4))
            return left + right
        if operator == "*":
            self._check_product(left, right)
        elif operator == "**" and _power_of_two_bits(left) * abs(right) > MAX_INT_BITS:
            raise TemplateLimitError("a number is too large")
        elif operator == "%" and isinstance(left, str):
            return format_percent(left, right)
        return paid(super().call_binop(context, operator, left, right))

    @staticmethod
    def _check_product(left: Any, right: Any) -> None:
        if _power_of_two_bits(left) + _power_of_two_bits(right) > MAX_INT_BITS:
            raise TemplateLimitError("a number is too large")
        for sequence, count in ((left, right), (right, left)):
            if isinstance(sequence, str | list | tuple) and isinstance(count, int):
                one = bytes_of(sequence) if isinstance(sequence, str) else ENTRY_BYTES * len(sequence)
                BUDGET.get().pay(one * max(count, 0))
