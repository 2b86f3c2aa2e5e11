"""Time and memory until a vocabulary is ready, and the time of a megabyte of one character.

python ops/bench/tokenizer.py FILE.gguf ...    each file in a fresh process, five times
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

REPEATS = 5
RUNS = ("A", " ", "7", "\u60f3")
_CHILD = """
import json, sys, time
from runtime.gguf import ModelFile
from runtime.tokenizer import build_tokenizer

def resident_kib():
    with open("/proc/self/smaps_rollup") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))

file = ModelFile.open(sys.argv[1])
before, start = resident_kib(), time.perf_counter()
tokenizer = build_tokenizer(file)
ready_s, grown_kib = time.perf_counter() - start, resident_kib() - before
runs = {}
for run in json.loads(sys.argv[2]):
    text = run * ((1 << 20) // len(run.encode()))
    start = time.perf_counter()
    tokenizer.encode(text, add_special=False)
    runs[run] = time.perf_counter() - start
print(json.dumps({"tokens": tokenizer.n_vocab, "ready_s": ready_s, "grown_mib": grown_kib / 1024, "runs": runs}))
"""


def main() -> None:
    for path in sys.argv[1:]:
        found = []
        for _ in range(REPEATS):
            child = subprocess.run(
                [sys.executable, "-c", _CHILD, path, json.dumps(RUNS)],
                capture_output=True,
                text=True,
                check=True,
            )
            found.append(json.loads(child.stdout))
        ready = [one["ready_s"] * 1e3 for one in found]
        longest = max(statistics.median(one["runs"][run] for one in found) for run in RUNS)
        print(
            f"{path}: {found[0]['tokens']} tokens, ready in {min(ready):.0f} ms (median {statistics.median(ready):.0f}), "
            f"{found[0]['grown_mib']:.1f} MiB; the slowest run of 1 MiB takes {longest:.2f} s"
        )


if __name__ == "__main__":
    main()
