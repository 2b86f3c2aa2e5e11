"""Seconds from process start to readiness and to the first token over HTTP, page cache warm, run after run.

    python ops/bench/start.py MODEL.gguf --rounds 5

Each round starts `quantd serve` in a process of its own, waits for /readyz, asks for one token and stops it.  Prints one
JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

from others import Others
from serving import first_token


def main() -> int:
    """Exit status 0 with one JSON line printed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    first_token(arguments.model)  # warms the page cache
    others = Others()
    rounds = [first_token(arguments.model) for _ in range(arguments.rounds)]
    ready, first = zip(*rounds, strict=True)
    print(
        json.dumps(
            {
                "ready_s_median": round(statistics.median(ready), 2),
                "first_token_s_median": round(statistics.median(first), 2),
                "first_token_s": [round(value, 2) for value in first],
                "others_cores": others.cores(),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
