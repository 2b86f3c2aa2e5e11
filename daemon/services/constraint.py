"""From what a request asks its answer to look like to a constraint on its tokens.

Grammars are compiled in a thread of their own, within a deadline, so that a heavy one holds up nobody but those who also
bring one.  What cannot be compiled is refused with the field's name; nothing is ever generated without its promise.
"""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from daemon.errors import ApiError
from daemon.services.options import invalid
from daemon.text.calls import CallSyntax, call_grammar
from daemon.text.parts import ThinkTags
from quantd.v1 import generate_pb2 as pb
from runtime.grammar import (
    GrammarCompiler,
    GrammarKind,
    GrammarSpec,
    Reasoning,
    TriggeredConstraint,
    parse_schema,
    styled_schema,
)

COMPILE_S = 5.0
MAX_WAITING = 16  # compilations
MAX_CHOICES = 1024
FIELD = "options.constraint"

_KINDS = {
    "json_schema": GrammarKind.JSON_SCHEMA,
    "regex": GrammarKind.REGEX,
    "lark": GrammarKind.LARK,
    "gbnf": GrammarKind.GBNF,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What constrains one answer: a grammar from its start, or grammars that wait for a mark."""

    start: GrammarSpec | None = None
    marked: Mapping[str, GrammarSpec] = field(default_factory=dict)
    at_start: bool = False
    think: ThinkTags | None = None
    begins_thinking: bool = False
    field: str = FIELD


class Constraints:
    """The compilers of the models that serve."""

    def __init__(self) -> None:
        self._texts: weakref.WeakKeyDictionary[Any, ModelTexts] = weakref.WeakKeyDictionary()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="quantd-grammar")
        self._num_waiting = 0

    def texts(self, model: Any) -> ModelTexts:
        """What is known of a runtime.model.LoadedModel's control tokens, made once."""
        texts = self._texts.get(model)
        if texts is None:
            texts = self._texts[model] = ModelTexts(model)
        return texts

    async def compile(self, plan: Plan, model: Any, num: int) -> list[Any]:
        """`num` constraints (runtime.constraint.TokenConstraint), one for each answer.

        Raises RequestError that names the field; ApiError INVALID_ARGUMENT where it takes too long, QUEUE_FULL where
        too many others wait for theirs.
        """
        if self._num_waiting >= MAX_WAITING:
            raise ApiError("QUEUE_FULL", "Too many grammars are being compiled; try again later.")
        texts = self.texts(model)
        self._num_waiting += 1
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._worker, texts.build, plan, num)
        future.add_done_callback(self._compiled)
        try:
            return await asyncio.wait_for(asyncio.shield(future), COMPILE_S)
        except TimeoutError:
            message = f"took more than {COMPILE_S:g} seconds to compile; make it simpler"
            raise invalid(plan.field, message) from None

    def _compiled(self, future: asyncio.Future[Any]) -> None:
        self._num_waiting -= 1
        if not future.cancelled():
            future.exception()  # seen, also where nobody waits any more


class ModelTexts:
    """One model's compiler, and its control tokens by their text.

    It must not hold the model itself: the model is the weak key under which it is kept.
    """

    def __init__(self, model: Any) -> None:
        self._tokenizer = model.tokenizer
        self.ids = {text: i for text, i in self._tokenizer.control_tokens.items() if text[:1] in "<["}
        self._compiler = GrammarCompiler(self._tokenizer, model.config.n_vocab)

    def controls(self, *texts: str) -> dict[str, int]:
        """Those of `texts` that are control tokens, with their ids."""
        return {text: self.ids[text] for text in texts if text in self.ids}

    def marker_bytes(self, syntax: CallSyntax | None, think: ThinkTags | None) -> dict[int, bytes]:
        """Bytes of control tokens that must be seen in an answer's text, by id."""
        texts = list(syntax.begins) if syntax else []
        texts += [syntax.arguments, syntax.closing.strip()] if syntax else []
        texts += [think.open, think.close] if think else []
        return {i: text.encode() for text, i in self.controls(*texts).items()}

    def build(self, plan: Plan, num: int) -> list[Any]:
        """The plan's constraint, `num` times; in the grammar worker, because each computes its first mask."""
        first = self._build(plan)
        return [first, *(first.copy() for _ in range(num - 1))]

    def _build(self, plan: Plan) -> Any:
        markers = {i: text.encode() for text, i in self.ids.items()}
        token_bytes = self._tokenizer.token_bytes

        def seen_bytes(token_id: int) -> bytes:
            return markers.get(token_id) or bytes(token_bytes(token_id))

        start = self._compiler.compile(plan.start, plan.field) if plan.start is not None else None
        reasoning = self._reasoning(plan)
        if start is not None and reasoning is None:
            return start
        marked = {
            mark.encode(): self._compiler.compile(spec, plan.field) for mark, spec in plan.marked.items()
        }
        gap = self._tokenizer.encode_continuation("\n\n") if reasoning and start is not None else ()
        return TriggeredConstraint(
            start, seen_bytes, triggers=marked, at_start=plan.at_start, reasoning=reasoning, gap=gap
        )

    def _reasoning(self, plan: Plan) -> Reasoning | None:
        if plan.think is None:
            return None
        ids = self._tokenizer.encode(plan.think.open, add_special=False, parse_special=True)
        open_id = ids[0] if len(ids) == 1 else None
        if plan.start is not None and open_id is None and not plan.begins_thinking:
            return None  # the answer is constrained from its first token: no room for thoughts
        return Reasoning(plan.think.open.encode(), plan.think.close.encode(), open_id, plan.begins_thinking)


def read_constraint(options: pb.GenerationOptions) -> GrammarSpec | None:
    """The grammar that the options ask for; ApiError INVALID_ARGUMENT names what is wrong with it."""
    if not options.HasField("constraint"):
        return None
    constraint = options.constraint
    kind = constraint.WhichOneof("kind")
    if kind is None:
        raise invalid(FIELD, "one of its kinds must be given")
    if options.ignore_eos:
        raise invalid(
            "options.ignore_eos", "cannot be combined with a constraint, which says where the answer ends"
        )
    if kind == "json_object":
        if not constraint.json_object:
            raise invalid(f"{FIELD}.json_object", "must be true where it is given")
        return GrammarSpec(GrammarKind.JSON_SCHEMA, '{"type": "object"}')
    if kind == "choice":
        return GrammarSpec(GrammarKind.LARK, _choice_grammar(list(constraint.choice.texts)))
    text: str = getattr(constraint, kind)
    if not text.strip():
        raise invalid(f"{FIELD}.{kind}", "must not be empty")
    return GrammarSpec(_KINDS[kind], text)


def _choice_grammar(texts: Sequence[str]) -> str:
    where = f"{FIELD}.choice"
    if not 1 <= len(texts) <= MAX_CHOICES:
        raise invalid(where, f"must be 1 to {MAX_CHOICES} texts, not {len(texts)}")
    if not all(texts):
        raise invalid(where, "an empty text cannot be chosen")
    return "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in dict.fromkeys(texts))


def with_calls(answer: GrammarSpec, calls: str) -> GrammarSpec:
    """A grammar of an answer or calls of tools; only JSON answers can be joined with calls."""
    if answer.kind is not GrammarKind.JSON_SCHEMA:
        raise invalid(
            FIELD, "only json_object and json_schema can be combined with tools that the model may call"
        )
    schema = styled_schema(parse_schema(answer.text, FIELD), lenient=answer.lenient)
    calls = calls.replace("start: ", "calls: ", 1)
    return GrammarSpec(
        GrammarKind.LARK, f"start: calls | answer\n{calls}\nanswer: %json {json.dumps(schema)}"
    )


__all__ = ["Constraints", "ModelTexts", "Plan", "call_grammar", "read_constraint", "with_calls"]
