"""What structured output costs: the time of a token under a JSON schema beside that of free text, in one engine.

    python ops/bench/structured.py MODEL.gguf                       # 8 sessions, 5 rounds
    python ops/bench/structured.py MODEL.gguf --vocab VOCAB.gguf     # masks of another model's vocabulary of that size

Rounds take turns (free, held, held with forced tokens, free, ...) in one process.  `held` samples every token, so it shows
what a mask costs; `forced` is what requests get: tokens that the schema forces are computed together, as a prompt is.
The answers are those of whatever the weights say: with random weights, random text that keeps the schema.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from pathlib import Path

from runtime.constraint import Advance, TokenConstraint
from runtime.engine import Engine
from runtime.gguf import ModelFile
from runtime.grammar import GrammarCompiler, GrammarKind, GrammarSpec
from runtime.memory import RuntimeSettings
from runtime.model import load_model
from runtime.request import Event, FinishEvent, Request
from runtime.sampling import SamplingParams
from runtime.tokenizer import build_tokenizer

SCHEMA = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 24},
            "kind": {"enum": ["person", "place", "thing"]},
            "year": {"type": "integer", "minimum": 1000, "maximum": 2999},
        },
        "required": ["name", "kind", "year"],
        "additionalProperties": False,
    },
}


class Finished:
    """A sink that waits for all requests of a round and knows when each of them got its first token."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open: set[str] = set()
        self.tokens = 0
        self.begin_s = self.end_s = 0.0

    def expect(self, ids: list[str]) -> None:
        with self._changed:
            self._open, self.tokens, self.begin_s = set(ids), 0, 0.0

    def __call__(self, events: list[Event]) -> None:
        now_s = time.perf_counter()
        with self._changed:
            for event in events:
                if isinstance(event, FinishEvent):
                    self._open.discard(event.request_id)
                elif self.begin_s:
                    self.tokens += 1
            if not self.begin_s:  # the first step with tokens is the end of the prompts
                self.begin_s = now_s
            self.end_s = now_s
            self._changed.notify_all()

    def wait(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._open, 600)


class Unforced:
    """A constraint whose tokens are all sampled."""

    def __init__(self, inner: TokenConstraint) -> None:
        self.mask = inner.mask
        self._inner = inner

    def accept(self, token_id: int, *, want_forced: bool) -> Advance:
        del want_forced
        return self._inner.accept(token_id, want_forced=False)


def run_round(
    engine: Engine,
    sink: Finished,
    *,
    sessions: int,
    tokens: int,
    constraints: list[TokenConstraint],
) -> float:
    """Milliseconds of the engine for one token of one answer."""
    ids = [f"r{index}" for index in range(sessions)]
    sink.expect(ids)
    for index, request_id in enumerate(ids):
        engine.submit(
            Request(
                id=request_id,
                prompt_ids=[5 + index] * 4,
                max_tokens=tokens,
                sampling=SamplingParams(temperature=1.0, seed=index),
                constraint=constraints[index] if constraints else None,
            )
        )
    sink.wait()
    return 1e3 * (sink.end_s - sink.begin_s) / sink.tokens


def main() -> None:
    """Print medians and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--vocab", type=Path)
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    model = load_model(
        asked.model, RuntimeSettings(sessions=asked.sessions, context_tokens=512, kv_budget_bytes=512 << 20)
    )
    tokenizer = build_tokenizer(ModelFile.open(asked.vocab)) if asked.vocab else model.tokenizer
    compiler = GrammarCompiler(tokenizer, model.config.n_vocab)
    spec = GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))
    sink = Finished()
    engine = Engine(model, sink=sink)
    engine.start()
    found: dict[str, list[float]] = {"free": [], "held": [], "forced": []}
    for round_index in range(asked.rounds + 1):
        for kind, times in found.items():
            constraints: list[TokenConstraint] = []
            if kind != "free":
                constraints += [compiler.compile(spec) for _ in range(asked.sessions)]
            if kind == "held":
                constraints = [Unforced(one) for one in constraints]
            ms = run_round(
                engine, sink, sessions=asked.sessions, tokens=asked.tokens, constraints=constraints
            )
            if round_index:  # the first one warms up
                times.append(ms)
    engine.stop(0)
    medians = {kind: statistics.median(times) for kind, times in found.items()}
    ratios = {
        kind: statistics.median(time / free for time, free in zip(found[kind], found["free"], strict=True))
        for kind in ("held", "forced")
    }
    if asked.json:
        print(json.dumps({"ms_per_token": medians, "ratio_to_free": ratios, "rounds": found}))
        return
    print(f"{asked.sessions} sessions, {asked.tokens} tokens each, medians of {asked.rounds} rounds")
    for kind, ms in medians.items():
        ratio = "" if kind == "free" else f"   {ratios[kind]:.3f} of free"
        print(f"  {kind:7} {ms:8.3f} ms a token{ratio}")


if __name__ == "__main__":
    main()
