"""The worst gap between tokens of running answers while a long prompt comes in.

    python ops/bench/gap.py MODEL.gguf --streams 3 --prompt 2000 --rounds 3

Streams decode undisturbed for a while, then the prompt is submitted.  Prints one JSON line for each round: the median and
the worst gap before and during, in milliseconds, and how long the prompt's first token took.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import time
from pathlib import Path

from engine_client import EngineClient
from others import Others

from runtime.memory import RuntimeSettings


def gaps_ms(arrivals: list[float], begin_s: float, end_s: float) -> list[float]:
    """Gaps that lie at least partly between the two times."""
    return [
        1e3 * (after - before)
        for before, after in itertools.pairwise(arrivals)
        if after > begin_s and before < end_s
    ]


def measure(client: EngineClient, rng: random.Random, streams: int, prompt: int) -> dict[str, float]:
    """One round."""
    others = Others()
    ids = [client.submit(client.random_prompt(rng, 32), 1500) for _ in range(streams)]
    for id_ in ids:
        client.wait_tokens(id_, 4)
    start_s = time.perf_counter()
    already = len(client.arrivals[ids[0]])
    client.wait_tokens(ids[0], already + 30)
    begin_s = time.perf_counter()
    long = client.submit(client.random_prompt(rng, prompt), 2)
    client.wait(long)
    end_s = client.arrivals[long][0]
    for id_ in ids:
        client.engine.cancel(id_)
    client.wait(*ids)
    before = [gap for id_ in ids for gap in gaps_ms(client.arrivals[id_], start_s, begin_s)]
    during = [gap for id_ in ids for gap in gaps_ms(client.arrivals[id_], begin_s, end_s)]
    return {
        "undisturbed_median_ms": round(statistics.median(before), 1),
        "undisturbed_worst_ms": round(max(before), 1),
        "during_median_ms": round(statistics.median(during), 1),
        "during_worst_ms": round(max(during), 1),
        "worst_to_undisturbed": round(max(during) / statistics.median(before), 2),
        "first_token_s": round(end_s - begin_s, 2),
        "others_cores": others.cores(),
    }


def main() -> int:
    """Exit status 0 with the lines printed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--streams", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    rng = random.Random(5)
    settings = RuntimeSettings(
        sessions=arguments.streams + 1, context_tokens=arguments.prompt + 64, threads=arguments.threads
    )
    with EngineClient(arguments.model, settings) as client:
        for _ in range(arguments.rounds):
            print(json.dumps(measure(client, rng, arguments.streams, arguments.prompt)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
