"""Decoding with and without guessed tokens, in turns, on answers that repeat their prompt and on answers that do not.

    python ops/bench/speculation.py MODEL.gguf --tokens 200 --rounds 5 --sessions 1

A model with random weights says nothing of sense, so what it answers is prescribed: every step is computed as it is for
any answer, and then the sampled tokens are replaced by those of a script.  `edit` repeats the prompt with a changed
token now and then, as an answer that edits code does; `text` is a story that the prompt does not hold; `noise` repeats
nothing.  Prints one JSON line for each: tokens per second in the median and the ratio.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from engine_client import EngineClient
from others import Others

from runtime.memory import RuntimeSettings
from runtime.step_plan import StepPlan, StepResult

HELDOUT = Path(__file__).resolve().parents[1] / "demo/heldout.txt"
PROMPT_TOKENS = 300


def edited(rng: random.Random, prompt: list[int], n_tokens: int, every: int) -> list[int]:
    """The prompt again and again, with a new token in the place of about one in `every`."""
    new = max(prompt) + 1
    return [
        new + rng.randrange(1000) if rng.randrange(every) == 0 else prompt[index % len(prompt)]
        for index in range(n_tokens)
    ]


def scripts(
    client: EngineClient, rng: random.Random, n_tokens: int
) -> dict[str, tuple[list[int], list[int]]]:
    """Name -> (prompt, answer)."""
    words = client.model.tokenizer.encode(HELDOUT.read_text(encoding="utf-8")[:20000])
    prompt = words[:PROMPT_TOKENS]
    return {
        "edit": (prompt, edited(rng, prompt, n_tokens, every=25)),
        "text": (prompt, words[PROMPT_TOKENS : PROMPT_TOKENS + n_tokens]),
        "noise": (prompt, client.random_prompt(rng, n_tokens)),
    }


def follow(step: Callable[[StepPlan], StepResult], script: list[int]) -> Callable[[StepPlan], StepResult]:
    """The step with the tokens that the script has at their positions."""
    wanted = np.asarray([*script, 0], np.int32)

    def scripted(plan: StepPlan) -> StepResult:
        result = step(plan)
        tokens = wanted[plan.positions[plan.out_rows] + 1]
        for index, row in enumerate(plan.out_rows[1:].tolist(), 1):
            behind = plan.samplers[index] is plan.samplers[index - 1]
            if behind and (tokens[index - 1] != plan.tokens[row]):
                tokens[index] = -1
        result.token_ids = tokens.tolist()
        return result

    return scripted


def rate(client: EngineClient, prompt: list[int], n_tokens: int, sessions: int, *, speculate: bool) -> float:
    """Tokens per second of all sessions together, once all of them decode."""
    ids = [
        client.submit([300 + index, *prompt[1:]], n_tokens, speculate=speculate) for index in range(sessions)
    ]
    client.wait(*ids)
    begin_s = max(client.arrivals[id_][0] for id_ in ids)
    end_s = min(client.arrivals[id_][-1] for id_ in ids)
    tokens = sum(begin_s < moment <= end_s for id_ in ids for moment in client.arrivals[id_])
    return tokens / (end_s - begin_s)


def measure(client: EngineClient, arguments: argparse.Namespace, name: str, script: Any) -> dict[str, Any]:
    """Both ways in turns."""
    prompt, answer = script
    n_tokens = min(arguments.tokens, len(answer) - 1)
    step = client.model.step
    client.model.step = follow(step, [*prompt, *answer])  # type: ignore[method-assign]
    rates: dict[bool, list[float]] = {True: [], False: []}
    before, others = client.engine.stats(), Others()
    for _ in range(arguments.rounds):
        for speculate in (True, False):
            rates[speculate].append(rate(client, prompt, n_tokens, arguments.sessions, speculate=speculate))
    client.model.step = step  # type: ignore[method-assign]
    after = client.engine.stats()
    ratios = [on / off for on, off in zip(rates[True], rates[False], strict=True)]
    return {
        "answer": name,
        "sessions": arguments.sessions,
        "with_tokens_per_s": round(statistics.median(rates[True]), 2),
        "without_tokens_per_s": round(statistics.median(rates[False]), 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "others_cores": others.cores(),
        "drafted": after.drafted_tokens_total - before.drafted_tokens_total,
        "accepted": after.accepted_tokens_total - before.accepted_tokens_total,
    }


def main() -> int:
    """Exit status 0 with the lines printed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sessions", type=int, default=1)
    parser.add_argument("--answers", default="edit,text,noise")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    rng = random.Random(3)
    settings = RuntimeSettings(
        sessions=arguments.sessions,
        context_tokens=PROMPT_TOKENS + arguments.tokens + 32,
        threads=arguments.threads,
    )
    with EngineClient(arguments.model, settings) as client:
        found = scripts(client, rng, arguments.tokens + 1)
        for name in arguments.answers.split(","):
            print(json.dumps(measure(client, arguments, name, found[name])), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
