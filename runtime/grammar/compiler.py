"""From a schema, a regex or a grammar to a matcher of one model's tokens.

Compiling takes milliseconds for what people write and is bounded for what they should not: the library counts fuel, and
what runs out of it is refused.  Compiled grammars are kept and copied, so a schema that comes again costs a copy.
"""

from __future__ import annotations

import enum
import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import llguidance
from llguidance.gbnf_to_lark import any_to_lark

from runtime.errors import RequestError
from runtime.grammar.constraint import GrammarConstraint
from runtime.tokenizer import Tokenizer

MAX_CACHED = 32
MAX_GRAMMAR_CHARS = 256 << 10
MAX_SCHEMA_DEPTH = 64
_MAX_ERROR_CHARS = 300

# Whitespace is fixed to what models write: flexible whitespace lets a model pad for ever.
JSON_STYLE = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
    "coerce_one_of": True,
}

# A tenth or less of the library's defaults: a mask takes at most some 10 ms, a compilation some 100 ms.
_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_items_in_row": 1_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}


class GrammarKind(enum.Enum):
    """The languages in which a grammar can be given."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"
    GBNF = "gbnf"


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """A grammar as text.  `lenient`: keywords of a JSON schema that cannot be enforced are left out, not refused."""

    kind: GrammarKind
    text: str
    lenient: bool = False


class GrammarCompiler:
    """Compiles grammars for one tokenizer.  Safe to use from several threads, one at a time."""

    def __init__(self, tokenizer: Tokenizer, n_vocab: int | None = None) -> None:
        """`n_vocab`: rows of the model's output, where it has more than the tokenizer has tokens."""
        self._tokenizer = tokenizer
        self._n_vocab = n_vocab or tokenizer.n_vocab
        self._lock = threading.Lock()
        self._library: Any = None  # made at first use: it takes some 100 ms and up to 70 MB
        self._compiled: OrderedDict[GrammarSpec, Any] = OrderedDict()

    def compile(self, spec: GrammarSpec, field: str = "constraint") -> GrammarConstraint:
        """A fresh constraint; raises RequestError that names `field` where the grammar is wrong or too complex."""
        with self._lock:
            matcher = self._compiled.get(spec)
            if matcher is None:
                matcher = self._compile(spec, field)
                self._compiled[spec] = matcher
                if len(self._compiled) > MAX_CACHED:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(spec)
            return GrammarConstraint(matcher.deep_copy(), self._library, self._n_vocab)

    def _compile(self, spec: GrammarSpec, field: str) -> Any:
        if len(spec.text) > MAX_GRAMMAR_CHARS:
            raise RequestError(field, f"longer than {MAX_GRAMMAR_CHARS} characters")
        grammar = _grammar(spec, field)
        if self._library is None:
            self._library = make_library_tokenizer(self._tokenizer)
        limits = llguidance.LLParserLimits(**_LIMITS)
        matcher = llguidance.LLMatcher(self._library, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise RequestError(field, _short(matcher.get_error()))
        return matcher


def parse_schema(text: str, field: str) -> Any:
    """A JSON schema from text, not deeper than MAX_SCHEMA_DEPTH; RequestError names `field`."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(field, f"no JSON schema: {str(error)[:100]}") from None
    if not isinstance(schema, dict | bool):
        raise RequestError(field, "a JSON schema must be an object")
    if _deeper_than(schema, MAX_SCHEMA_DEPTH):
        raise RequestError(field, f"nested more than {MAX_SCHEMA_DEPTH} deep")
    return schema


def styled_schema(schema: Any, *, lenient: bool = False) -> Any:
    """The schema with our own whitespace, for use inside of a Lark grammar (%json)."""
    if not isinstance(schema, dict):
        return schema
    return {**schema, "x-guidance": {**JSON_STYLE, "lenient": lenient}}


def _grammar(spec: GrammarSpec, field: str) -> str:
    kind, text = spec.kind, spec.text
    if kind is GrammarKind.JSON_SCHEMA:
        schema = parse_schema(text, field)
        if isinstance(schema, bool):
            schema = {} if schema else {"not": {}}
        return llguidance.LLMatcher.grammar_from_json_schema(styled_schema(schema, lenient=spec.lenient))
    if kind is GrammarKind.REGEX:
        return llguidance.LLMatcher.grammar_from_regex(text)
    if kind is GrammarKind.GBNF:
        try:
            text = any_to_lark(text)
        except Exception as error:  # noqa: BLE001  the converter raises what it likes
            raise RequestError(field, f"no GBNF grammar: {str(error)[:_MAX_ERROR_CHARS]}") from None
    return llguidance.LLMatcher.grammar_from_lark(text)


def _deeper_than(value: Any, limit: int) -> bool:
    if isinstance(value, dict):
        children = list(value.values())
    elif isinstance(value, list):
        children = value
    else:
        return False
    return limit == 0 or any(_deeper_than(child, limit - 1) for child in children)


def _short(error: str) -> str:
    return " ".join(error.split())[:_MAX_ERROR_CHARS] or "the grammar cannot be compiled"


class _Vocabulary:
    """The tokenizer as the library wants it: the bytes of every token, and how text is cut into tokens.

    Text goes on where it is: without the space that SentencePiece puts in front of a whole text, or forced tokens
    would not be the text that the grammar forces.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.tokens = tokenizer.all_token_bytes()
        ends = sorted(tokenizer.eog_ids) or [tokenizer.n_vocab - 1]
        self.eos_token_id = ends[0]
        self.bos_token_id = tokenizer.bos_id
        self.special_token_ids = []
        # Tokens without bytes are control tokens: a grammar names them, text never makes them.
        for i, data in enumerate(self.tokens):
            if not data:
                self.tokens[i] = tokenizer.vocabulary.tokens[i].encode("utf-8", "surrogateescape")
                if self.tokens[i]:
                    self.special_token_ids.append(i)

    def __call__(self, text: bytes | str) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        return self._tokenizer.encode_continuation(text)


def make_library_tokenizer(tokenizer: Tokenizer) -> Any:
    """The library's view of a tokenizer, with the slices that make masks of JSON fast."""
    wrapper = llguidance.TokenizerWrapper(_Vocabulary(tokenizer))
    return llguidance.LLTokenizer(
        wrapper,
        n_vocab=tokenizer.n_vocab,
        eos_token=sorted(tokenizer.eog_ids) or None,
        slices=llguidance.LLTokenizer.json_slices(),
    )
