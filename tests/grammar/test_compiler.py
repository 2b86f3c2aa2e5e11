"""Grammars hold what they promise, for any choice among the allowed tokens; bad ones are refused by name and in time."""

import json
import random
import re
import time

import pytest

from runtime.errors import RequestError
from runtime.grammar import GrammarCompiler, GrammarKind, GrammarSpec
from tests.grammar.support import ByteTokenizer, allowed, walk

TOKENIZER = ByteTokenizer()
COMPILER = GrammarCompiler(TOKENIZER)

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/leaf"}]},
    },
    "required": ["name", "age", "tags", "next"],
    "additionalProperties": False,
    "$defs": {"leaf": {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}},
}


def compiled(kind, text, **options):
    return COMPILER.compile(GrammarSpec(kind, text, **options), "field")


@pytest.mark.parametrize("seed", range(8))
def test_every_walk_through_a_schema_is_a_valid_document(seed):
    draw = random.Random(seed)

    def choose(ids):
        printable = [i for i in ids if i >= 256 or 0x20 <= i < 0x7F]
        return draw.choice(printable or ids)

    constraint = compiled(GrammarKind.JSON_SCHEMA, json.dumps(PERSON))
    tokens, draws = walk(constraint, choose, TOKENIZER.end_id)
    value = json.loads(TOKENIZER.decode(tokens))
    assert list(value)[:4] == ["name", "age", "tags", "next"]
    assert len(value["name"]) <= 6
    assert 0 <= value["age"] <= 150
    assert set(value["tags"]) <= {"a", "b"}
    assert draws < len(tokens)  # the rest was forced
    assert TOKENIZER.decode(tokens).startswith('{"name": "')


def test_without_forcing_the_same_tokens_are_the_only_choice():
    constraint = compiled(GrammarKind.JSON_SCHEMA, json.dumps(PERSON))
    forced = compiled(GrammarKind.JSON_SCHEMA, json.dumps(PERSON)).accept(ord("{"), want_forced=True).forced
    assert constraint.accept(ord("{"), want_forced=False).forced == ()
    for token in forced:
        assert token in allowed(constraint)
        constraint.accept(token, want_forced=False)
    assert TOKENIZER.decode(forced).startswith('"name')


@pytest.mark.parametrize(
    ("kind", "text", "pattern"),
    [
        (GrammarKind.REGEX, r"[ab]{2}-\d{1,3}", r"[ab]{2}-\d{1,3}"),
        (GrammarKind.LARK, 'start: "x" NUM+ \nNUM: /[0-4]/', r"x[0-4]+"),
        (GrammarKind.GBNF, 'root ::= "v" [0-9]+ ("." [0-9]+)?', r"v\d+(\.\d+)?"),
        (GrammarKind.LARK, 'start: "yes" | "no way"', r"yes|no way"),
    ],
)
def test_each_language_of_grammars(kind, text, pattern):
    draw = random.Random(1)
    for _ in range(5):
        tokens, _ = walk(
            compiled(kind, text),
            lambda ids: (
                TOKENIZER.end_id
                if TOKENIZER.end_id in ids and draw.random() < 0.2
                else draw.choice([i for i in ids if i != TOKENIZER.end_id] or ids)
            ),
            TOKENIZER.end_id,
        )
        assert re.fullmatch(pattern, TOKENIZER.decode(tokens))


def test_the_end_comes_without_an_end_token_where_nothing_can_follow():
    constraint = compiled(GrammarKind.REGEX, "[ab]c")
    assert set(allowed(constraint)) == {ord("a"), ord("b")}
    advance = constraint.accept(ord("a"), want_forced=True)
    assert (advance.forced, advance.done) == ((ord("c"),), True)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (GrammarKind.JSON_SCHEMA, "{"),
        (GrammarKind.JSON_SCHEMA, "[]"),
        (GrammarKind.JSON_SCHEMA, "3"),
        (GrammarKind.JSON_SCHEMA, "[" * 100_000),
        (GrammarKind.JSON_SCHEMA, '{"items":' * 65 + "{}" + "}" * 65),
        (GrammarKind.JSON_SCHEMA, '{"type": "object", "unevaluatedProperties": false}'),
        (GrammarKind.JSON_SCHEMA, '{"type": "string", "format": "no such format"}'),
        (GrammarKind.JSON_SCHEMA, '{"$ref": "#/nowhere"}'),
        (GrammarKind.JSON_SCHEMA, '{"$ref": "http://127.0.0.1/schema"}'),
        (GrammarKind.JSON_SCHEMA, '{"type": "strong"}'),
        (GrammarKind.REGEX, "("),
        (GrammarKind.REGEX, "(?=a)b"),
        (GrammarKind.LARK, "start: foo"),
        (GrammarKind.LARK, ""),
        (GrammarKind.GBNF, 'root ::= "a'),
        (GrammarKind.LARK, "x" * (300 << 10)),
    ],
)
def test_bad_grammars_are_refused_by_name(kind, text):
    with pytest.raises(RequestError) as caught:
        compiled(kind, text)
    assert caught.value.field == "field"
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (GrammarKind.REGEX, "((a{1,1000}){1,1000}){1,1000}"),
        (GrammarKind.REGEX, "(x|(.*a.{400}))*b"),
        (GrammarKind.LARK, 'start: x\nx: x x | "a" | ""'),
        (GrammarKind.JSON_SCHEMA, json.dumps({"anyOf": [{"const": f"a{i}" * 20} for i in range(3000)]})),
        (GrammarKind.JSON_SCHEMA, json.dumps({"type": "string", "pattern": "(a|aa)+" * 300})),
    ],
)
def test_heavy_grammars_end_in_time(kind, text):
    """Taken or refused: in either case soon."""
    begin = time.process_time()
    try:
        constraint = compiled(kind, text)
        for _ in range(20):
            ids = allowed(constraint)
            if constraint.accept(next(i for i in ids if i != TOKENIZER.end_id), want_forced=True).done:
                break
    except Exception as error:
        assert type(error).__name__ in ("RequestError", "ConstraintError", "StopIteration")
    assert time.process_time() - begin < 5


def test_lenient_schemas_leave_out_what_cannot_be_enforced():
    text = (
        '{"type": "object", "properties": {"a": {"type": "string", "format": "uint64"}}, "required": ["a"]}'
    )
    with pytest.raises(RequestError):
        compiled(GrammarKind.JSON_SCHEMA, text)
    assert compiled(GrammarKind.JSON_SCHEMA, text, lenient=True).accept(ord("{"), want_forced=True).forced


def test_answers_of_one_grammar_do_not_disturb_each_other():
    one = compiled(GrammarKind.REGEX, "[ab]c+")
    other = one.copy()
    one.accept(ord("a"), want_forced=True)
    assert set(allowed(other)) == {ord("a"), ord("b")}
    assert allowed(one) == allowed(one)
    assert set(allowed(compiled(GrammarKind.REGEX, "[ab]c+"))) == {ord("a"), ord("b")}


def test_a_mask_may_be_wider_than_the_vocabulary():
    constraint = GrammarCompiler(TOKENIZER, 1000).compile(GrammarSpec(GrammarKind.REGEX, "a"))
    assert len(constraint.mask()) == 32
    assert allowed(constraint) == [ord("a")]
