"""Measure quantd side by side with llama.cpp, interleaved, and print medians and ratios.

    make bench                                     the 1.24 B llama-3.2 shape with random weights, Q4_K_M
    make bench BENCH="--shape llama2-170m"         a small shape, a few minutes in all
    make bench BENCH="--model FILE.gguf"           a model of yours

Engines take turns (A-B-C-A-B-C ...), each turn in a process of its own, so that a noisy minute hits all of them.
llama.cpp comes from the wheel `xllamacpp` and runs in both of its modes, with and without repacked weights.
`llama-quantize` is measured too where it is on the PATH.  Everything is written under out/bench.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import synthetic

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "out/bench"
QUANTD = str(Path(sys.executable).with_name("quantd"))
PEER = str(Path(__file__).with_name("peer_llama_cpp.py"))
URL = "http://127.0.0.1:18434"

# (test, sessions, tokens) -> engine -> one value for each round
Table = dict[tuple[str, int, int], dict[str, list[float]]]


def timed(command: list[str]) -> float:
    """Wall seconds of one command that must succeed."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def json_lines(command: list[str]) -> list[dict[str, Any]]:
    """The JSON objects that a command prints, one a line."""
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def speed(table: Table, model: Path, vocab: int, arguments: argparse.Namespace) -> None:
    """Prefill and decode of every engine, round after round."""
    common = [
        str(model), "--prompt", str(arguments.prompt), "--generate", str(arguments.generate),
        "--sessions", arguments.sessions, "--threads", str(arguments.threads),
    ]  # fmt: skip
    engines = {"quantd": [QUANTD, "bench", *common, "--json"]}
    if not arguments.alone:
        peer = [sys.executable, PEER, *common, "--vocab", str(vocab)]
        engines["llama.cpp"] = [*peer, "--repack"]
        engines["llama.cpp --no-repack"] = peer
    for round_number in range(arguments.rounds):
        for engine, command in engines.items():
            print(f"round {round_number + 1}/{arguments.rounds}: {engine}", file=sys.stderr, flush=True)
            for line in json_lines(command):
                tokens = line["prompt_tokens"] if line["test"] == "prefill" else line["generated_tokens"]
                table[line["test"], line["sessions"], tokens][engine].append(line["tokens_per_s"])


def quantization(source: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds to make Q4_K_M of `source`, interleaved with llama-quantize where there is one."""
    target = OUT / "quantized.gguf"
    commands = {"quantd": [QUANTD, "quantize", str(source), str(target), "--recipe", "Q4_K_M", "--force"]}
    reference = shutil.which("llama-quantize")
    if reference:
        commands["llama-quantize"] = [reference, str(source), str(target), "Q4_K_M"]
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for engine, command in commands.items():
            target.unlink(missing_ok=True)
            seconds[engine].append(timed(command))
    target.unlink(missing_ok=True)
    return seconds


def first_token(model: Path) -> tuple[float, float]:
    """Seconds from process start to /readyz and to the first token of a completion, page cache warm."""
    start = time.perf_counter()
    daemon = subprocess.Popen(
        [QUANTD, "serve", str(model), "--http", "127.0.0.1:18434", "--grpc", "127.0.0.1:18435"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while True:
            try:
                urllib.request.urlopen(f"{URL}/readyz", timeout=1).close()
                break
            except OSError:
                if daemon.poll() is not None or time.perf_counter() - start > 120:
                    raise RuntimeError("the daemon did not start") from None
                time.sleep(0.01)
        ready = time.perf_counter() - start
        body = json.dumps({"model": model.stem, "prompt": "Hello", "max_tokens": 1}).encode()
        request = urllib.request.Request(f"{URL}/v1/completions", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=120).close()
        return ready, time.perf_counter() - start
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(60)


def load_seconds(model: Path) -> float:
    """Seconds to map the model, read its metadata and print its plan, in a process of its own."""
    return timed([QUANTD, "inspect", str(model), "--json"])


def prepare(arguments: argparse.Namespace) -> tuple[Path, Path | None]:
    """(model to serve, its F16 source or None)."""
    if arguments.model:
        return arguments.model, None
    source, model = OUT / f"{arguments.shape}-f16.gguf", OUT / f"{arguments.shape}-Q4_K_M.gguf"
    if not source.exists():
        print(f"writing {source.relative_to(ROOT)}", file=sys.stderr, flush=True)
        synthetic.write(source, synthetic.SHAPES[arguments.shape])
    if not model.exists():
        subprocess.run([QUANTD, "quantize", str(source), str(model), "--recipe", "Q4_K_M"], check=True)
    return model, source


def cpu_name() -> str:
    """The processor as the kernel names it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def print_table(table: Table) -> None:
    """Medians of each engine and our ratio to the best of the others."""
    engines = list(dict.fromkeys(engine for row in table.values() for engine in row))
    header = ["test", "sessions", *(f"{engine} tokens/s" for engine in engines), "ratio to the best peer"]
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for (test, sessions, tokens), row in sorted(
        table.items(), key=lambda item: (item[0][0] != "prefill", item[0])
    ):
        medians = {engine: statistics.median(values) for engine, values in row.items()}
        peers = [value for engine, value in medians.items() if engine != "quantd"]
        ratio = f"{medians['quantd'] / max(peers):.2f}" if peers else "-"
        cells = [f"{medians[engine]:.1f}" if engine in medians else "-" for engine in engines]
        print("| " + " | ".join([f"{test} {tokens}", str(sessions), *cells, ratio]) + " |")


def repeat(measure: Callable[[], Any], rounds: int) -> list[Any]:
    """One value for each round."""
    return [measure() for _ in range(rounds)]


def spread(values: Iterable[float]) -> str:
    """Median with the range."""
    ordered = sorted(values)
    return f"{statistics.median(ordered):.2f} s ({ordered[0]:.2f} to {ordered[-1]:.2f})"


def main() -> int:
    """Exit status 0 with the tables printed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a GGUF file to measure instead of a synthetic one")
    parser.add_argument("--shape", choices=synthetic.SHAPES, default="llama32-1b")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=48)
    parser.add_argument("--sessions", default="1,4,8,16")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--alone", action="store_true", help="measure quantd only")
    parser.add_argument("--json", type=Path, help="also write every single value to this file")
    arguments = parser.parse_args()

    OUT.mkdir(parents=True, exist_ok=True)
    model, source = prepare(arguments)
    described = json.loads(subprocess.check_output([QUANTD, "inspect", str(model), "--json"]))
    vocab = int(described["tokenizer"]["vocabulary"])
    table: Table = defaultdict(lambda: defaultdict(list))
    speed(table, model, vocab, arguments)
    starts = repeat(lambda: first_token(model), arguments.rounds)
    loads = repeat(lambda: load_seconds(model), arguments.rounds)
    quantized = quantization(source, max(1, arguments.rounds // 2)) if source else {}

    print(
        f"\n{model.name}, {model.stat().st_size / 2**20:.0f} MiB; {cpu_name()}, {arguments.threads} threads; "
    )
    print(f"{dt.date.today()}; {arguments.rounds} interleaved rounds, medians\n")
    print_table(table)
    print(f"\nprocess start to ready: {spread(ready for ready, _ in starts)}")
    print(f"process start to first token: {spread(first for _, first in starts)}")
    print(f"`quantd inspect` (map, metadata, tensor table): {spread(loads)}")
    for engine, seconds in quantized.items():
        print(f"F16 to Q4_K_M, {engine}: {spread(seconds)}")
    if arguments.json:
        rows = [
            {"test": key[0], "sessions": key[1], "tokens": key[2], "engines": row}
            for key, row in table.items()
        ]
        record = {"table": rows, "starts_s": starts, "loads_s": loads, "quantize_s": quantized}
        arguments.json.write_text(json.dumps(record, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
