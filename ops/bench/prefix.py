"""Time to the first token where the beginning of the prompt was computed before, by another session.

    python ops/bench/prefix.py MODEL.gguf --prefix 1000 --new 24 --rounds 5

Each round has a beginning of its own: (cold) a request with it, (warm) another request with the same beginning and other
new tokens, (new only) a request of as many new tokens and nothing before them.  Warm should cost what new only costs,
and the attention over the beginning.  Prints medians as one JSON line.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path

from engine_client import EngineClient
from others import Others

from runtime.memory import RuntimeSettings


def first_token_ms(client: EngineClient, prompt: list[int]) -> tuple[float, int]:
    """(milliseconds from submission to the first token, prompt tokens that were not computed)."""
    begin_s = time.perf_counter()
    id_ = client.submit(prompt, 2)
    client.wait(id_)
    return 1e3 * (client.arrivals[id_][0] - begin_s), client.ends[id_].cached_tokens


def main() -> int:
    """Exit status 0 with one JSON line printed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--prefix", type=int, default=1000, help="tokens that the requests have in common")
    parser.add_argument("--new", type=int, default=24, help="tokens that each has of its own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    rng = random.Random(11)
    settings = RuntimeSettings(
        sessions=4, context_tokens=arguments.prefix + arguments.new + 64, threads=arguments.threads
    )
    rows: dict[str, list[float]] = {"cold_ms": [], "warm_ms": [], "new_only_ms": []}
    cached: list[int] = []
    others = Others()
    with EngineClient(arguments.model, settings) as client:
        first_token_ms(client, client.random_prompt(rng, 64))  # the pacer has seen a prompt then
        for _ in range(arguments.rounds):
            prefix = client.random_prompt(rng, arguments.prefix)
            for name, prompt in (
                ("cold_ms", prefix + client.random_prompt(rng, arguments.new)),
                ("warm_ms", prefix + client.random_prompt(rng, arguments.new)),
                # The rest of the last page is not shared, so it is new as well.
                (
                    "new_only_ms",
                    client.random_prompt(rng, arguments.new + arguments.prefix % client.model.page_tokens),
                ),
            ):
                elapsed_ms, found = first_token_ms(client, prompt)
                rows[name].append(elapsed_ms)
                if name == "warm_ms":
                    cached.append(found)
    record = {name: round(statistics.median(values), 1) for name, values in rows.items()}
    print(
        json.dumps(
            {
                **record,
                "cached_tokens": cached[-1],
                "prefix_tokens": arguments.prefix,
                "rounds": arguments.rounds,
                "others_cores": others.cores(),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
