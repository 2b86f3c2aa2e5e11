"""Constraints that sleep until a tool call begins or the thoughts end."""

import pytest

from runtime.grammar import GrammarCompiler, GrammarKind, GrammarSpec, Reasoning, TriggeredConstraint
from tests.grammar.support import ByteTokenizer, allowed

TOKENIZER = ByteTokenizer()
CALL = GrammarSpec(GrammarKind.LARK, 'start: "\\n" /[a-c]/ "\\n</tool_call>"')
THINK = {"open": b"<think>", "close": b"</think>", "open_id": TOKENIZER.think_id}


def token_bytes(token_id):
    return b"<think>" if token_id == TOKENIZER.think_id else TOKENIZER.token_bytes(token_id)


def sleeping(spec=CALL, triggers=(), **options):
    def grammar():
        return GrammarCompiler(TOKENIZER).compile(spec)

    inner = None if triggers else grammar()
    woken = {trigger: grammar() for trigger in triggers}
    return TriggeredConstraint(inner, token_bytes, triggers=woken, **options).copy()


def feed(constraint, text):
    """Feeds text byte by byte; returns the last Advance."""
    advance = None
    for byte in text.encode():
        advance = constraint.accept(byte, want_forced=True)
    return advance


def test_free_text_is_free_until_the_trigger():
    constraint = sleeping(triggers=[b"<tool_call>"])
    feed(constraint, "Let me see. <tool_cal" + "x" * 600)
    assert constraint.mask() is None
    assert bytes(feed(constraint, "<tool_call>").forced) == b"\n"
    assert set(allowed(constraint)) == set(b"abc")
    advance = feed(constraint, "b")
    assert TOKENIZER.decode(advance.forced) == "\n</tool_call>"
    assert advance.done


def test_a_trigger_within_and_across_tokens():
    constraint = sleeping(triggers=[b"<tool_call>"])
    feed(constraint, "Hm ")
    constraint.accept(TOKENIZER.encode_continuation("<tool_call>")[0], want_forced=False)
    assert allowed(constraint) == [ord("\n")]


def test_what_runs_past_the_trigger_counts_if_it_fits():
    over = sleeping(
        GrammarSpec(GrammarKind.LARK, 'start: "{" /[xy]/'),
        reasoning=Reasoning(**THINK, begins_open=True),
    )
    feed(over, "Hm. ")
    over.accept(TOKENIZER.encode_continuation("</think>\n\n{")[0], want_forced=True)
    assert set(allowed(over)) == set(b"xy")
    unfit = sleeping(GrammarSpec(GrammarKind.LARK, 'start: "q"'), triggers=[b"ell"])
    feed(unfit, "b")
    unfit.accept(TOKENIZER.encode_continuation("hello")[0], want_forced=True)
    assert unfit.mask() is None
    assert feed(unfit, "ell").done


def test_a_trigger_only_at_the_start():
    late = sleeping(triggers=[b"<tool_call>"], at_start=True)
    feed(late, "no <tool_call>")
    assert late.mask() is None
    early = sleeping(triggers=[b"<tool_call>"], at_start=True)
    feed(early, " \n<tool_call>")
    assert allowed(early) is not None


@pytest.mark.parametrize("thinks", [True, False])
def test_thoughts_may_come_before_a_constrained_answer(thinks):
    constraint = sleeping(
        GrammarSpec(GrammarKind.REGEX, "[xy]z"), reasoning=Reasoning(**THINK, begins_open=False)
    )
    assert set(allowed(constraint)) == {*b"xy", TOKENIZER.think_id}
    if thinks:
        constraint.accept(TOKENIZER.think_id, want_forced=True)
        assert constraint.mask() is None
        feed(constraint, "anything {} </think")
        assert constraint.mask() is None
        feed(constraint, ">")
        assert set(allowed(constraint)) == set(b"xy")
    assert feed(constraint, "y").done


def test_triggers_in_thoughts_are_thoughts():
    constraint = sleeping(triggers=[b"<tool_call>"], reasoning=Reasoning(**THINK, begins_open=False))
    assert constraint.mask() is None
    constraint.accept(TOKENIZER.think_id, want_forced=True)
    feed(constraint, "I could say <tool_call> ...</think>")
    assert constraint.mask() is None
    feed(constraint, "<tool_call>")
    assert set(allowed(constraint)) == set(b"abc")


def test_a_gap_stands_between_thoughts_and_answer():
    spec = GrammarSpec(GrammarKind.LARK, 'start: "ab" /[xy]/')
    constraint = sleeping(spec, reasoning=Reasoning(**THINK, begins_open=True), gap=b"\n\n")
    assert bytes(feed(constraint, "Hm.</think>").forced) == b"\n\nab"
    assert set(allowed(constraint)) == set(b"xy")
