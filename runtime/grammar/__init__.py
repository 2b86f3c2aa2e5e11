"""Structured output: grammars compiled with the `llguidance` library, as constraints on tokens."""

from runtime.grammar.compiler import (
    GrammarCompiler,
    GrammarKind,
    GrammarSpec,
    parse_schema,
    styled_schema,
)
from runtime.grammar.constraint import GrammarConstraint
from runtime.grammar.trigger import Reasoning, TriggeredConstraint

__all__ = [
    "GrammarCompiler",
    "GrammarConstraint",
    "GrammarKind",
    "GrammarSpec",
    "Reasoning",
    "TriggeredConstraint",
    "parse_schema",
    "styled_schema",
]
