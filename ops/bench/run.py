"""Measure quantd side by side with its peers, interleaved, and print medians and ratios.

    make bench                                          the 1.24 B llama-3.2 shape with random weights, Q4_K_M
    make bench BENCH="--shape llama2-170m"              a small shape, a few minutes in all
    make bench BENCH="--model FILE.gguf"                a model of yours
    make bench BENCH="--llama-cpp DIR --ik-llama-cpp DIR"   source builds of the peers (see README.md)

Engines take turns (A-B-C-A-B-C ...), each turn in a process of its own, so that a noisy minute hits all of them.
Everything is written under out/bench.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import synthetic
from engines import QUANTD, Engine, Group, Point, peers, quantd
from serving import first_token, peer_first_token, serving_memory, timed
from tables import speed_table, spread, write_charts

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "out/bench"

Table = dict[Point, dict[str, list[float]]]


def numbers(text: str) -> tuple[int, ...]:
    """The numbers of a text such as 1,4,8; the empty text has none."""
    return tuple(int(word) for word in text.split(",") if word)


def groups(arguments: argparse.Namespace) -> list[Group]:
    """What one turn of an engine measures."""
    found = []
    if arguments.prompt or arguments.sessions:
        found.append(
            Group(
                arguments.prompt, arguments.generate if arguments.sessions else 0, arguments.sessions or (1,)
            )
        )
    found += [
        Group(0, arguments.generate, (1,), depth, kv_type)
        for depth in arguments.depths
        for kv_type in arguments.kv_types.split(",")
    ]
    return found


def speed(table: Table, model: Path, engines: list[Engine], arguments: argparse.Namespace) -> None:
    """Every group of every engine, round after round; an engine that fails at a group is said so and left out there."""
    dead: set[tuple[str, Group]] = set()
    for round_number in range(arguments.rounds):
        for group in groups(arguments):
            for engine in engines:
                if (engine.name, group) in dead:
                    continue
                print(
                    f"round {round_number + 1}/{arguments.rounds}: {engine.name}, {group}",
                    file=sys.stderr,
                    flush=True,
                )
                try:
                    for point, tokens_per_s in engine.measure(model, arguments.threads, group):
                        table[point][engine.name].append(tokens_per_s)
                        print(f"    {point}: {tokens_per_s:.2f}", file=sys.stderr, flush=True)
                except subprocess.SubprocessError as error:
                    dead.add((engine.name, group))
                    print(f"{engine.name} failed, left out: {error}", file=sys.stderr, flush=True)


def starts(model: Path, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds from process start, interleaved."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(arguments.rounds):
        ready, first = first_token(model)
        seconds["quantd, ready"].append(ready)
        seconds["quantd, first token"].append(first)
        seconds["quantd inspect"].append(timed([QUANTD, "inspect", str(model), "--json"]))
        if arguments.llama_cpp and (arguments.llama_cpp / "llama-completion").exists():
            for name, options in (("", ()), (" --no-repack --no-warmup", ("--no-repack", "--no-warmup"))):
                first = peer_first_token(arguments.llama_cpp, model, options)
                seconds[f"llama.cpp{name}, one token and end"].append(first)
    return seconds


def quantization(source: Path, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds to make Q4_K_M of `source`, interleaved with llama-quantize where there is one."""
    target = OUT / "quantized.gguf"
    commands = {"quantd": [QUANTD, "quantize", str(source), str(target), "--recipe", "Q4_K_M", "--force"]}
    reference = (
        arguments.llama_cpp / "llama-quantize" if arguments.llama_cpp else shutil.which("llama-quantize")
    )
    if reference:
        commands["llama-quantize"] = [
            str(reference),
            str(source),
            str(target),
            "Q4_K_M",
            str(arguments.threads),
        ]
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(max(1, arguments.rounds // 2)):
        for engine, command in commands.items():
            target.unlink(missing_ok=True)
            seconds[engine].append(timed(command))
    target.unlink(missing_ok=True)
    return seconds


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


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a GGUF file to measure instead of a synthetic one")
    parser.add_argument("--shape", choices=synthetic.SHAPES, default="llama32-1b")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prefill test; 0 leaves it out")
    parser.add_argument("--generate", type=int, default=48)
    parser.add_argument(
        "--sessions", type=numbers, default=(1, 4, 8, 16), help='such as 1,4,8; "" leaves decode out'
    )
    parser.add_argument(
        "--depths", type=numbers, default=(4096,), help="one session that holds so many tokens"
    )
    parser.add_argument("--kv-types", default="f16,q8_0", help="cache types of the depth tests")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--llama-cpp", type=Path, help="folder with llama-batched-bench of a llama.cpp built here"
    )
    parser.add_argument("--ik-llama-cpp", type=Path, help="the same of ik_llama.cpp")
    parser.add_argument("--alone", action="store_true", help="measure quantd only")
    parser.add_argument("--speed-only", action="store_true", help="leave out start, memory and quantization")
    parser.add_argument("--json", type=Path, help="also write every single value to this file")
    parser.add_argument("--charts", type=Path, help="folder for the charts (SVG)")
    return parser.parse_args()


def main() -> int:
    """Exit status 0 with the tables printed."""
    arguments = parse()
    OUT.mkdir(parents=True, exist_ok=True)
    model, source = prepare(arguments)
    described = json.loads(subprocess.check_output([QUANTD, "inspect", str(model), "--json"]))
    vocab = int(described["tokenizer"]["vocabulary"])
    engines = [quantd()]
    if not arguments.alone:
        engines += peers(arguments.llama_cpp, arguments.ik_llama_cpp, vocab)
    table: Table = defaultdict(lambda: defaultdict(list))
    speed(table, model, engines, arguments)

    print(
        f"\n{model.name}, {model.stat().st_size / 2**20:.0f} MiB; {cpu_name()}, {arguments.threads} threads;"
    )
    print(f"{dt.date.today()}; {arguments.rounds} interleaved rounds, medians of tokens/s\n")
    print(speed_table(table))
    record: dict[str, object] = {
        "speed": [{**asdict(point), "engines": row} for point, row in table.items()],
    }
    if not arguments.speed_only:
        record["starts_s"] = seconds = starts(model, arguments)
        print("\n| from process start | seconds |\n|---|---|")
        for name, values in seconds.items():
            print(f"| {name} | {spread(values)} |")
        record["memory_mib"] = memory = serving_memory(model, 8192)
        print(
            f"\nserving 8,192 tokens of f16 KV: {memory['anonymous_mib']:.0f} MiB anonymous, arena {memory['kv_arena_mib']:.0f} MiB"
        )
        if source:
            record["quantize_s"] = quantized = quantization(source, arguments)
            for engine, values in quantized.items():
                print(f"F16 to Q4_K_M, {engine}: {spread(values)}")
            if len(quantized) == 2:
                ratio = statistics.median(quantized["llama-quantize"]) / statistics.median(
                    quantized["quantd"]
                )
                print(f"ratio: {ratio:.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1))
    if arguments.charts:
        arguments.charts.mkdir(parents=True, exist_ok=True)
        for path in write_charts(table, arguments.charts, model.stem):
            print(f"wrote {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
