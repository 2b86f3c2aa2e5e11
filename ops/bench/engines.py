"""The engines that the benchmark compares, and how each is asked for one group of measurements.

quantd runs `quantd bench`: the step executor without the daemon.  llama.cpp and ik_llama.cpp run their own
`llama-batched-bench`, which is the same thing there, from a source build that the reader makes (README.md says how); where
there is none, llama.cpp comes from the wheel `xllamacpp`, a portable AVX2 build of its server.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

QUANTD = str(Path(sys.executable).with_name("quantd"))
WHEEL = str(Path(__file__).with_name("peer_llama_cpp.py"))

_TIMEOUT_S = 1800


@dataclass(frozen=True, order=True)
class Point:
    """One cell of the table: what was measured, without who did it."""

    test: str  # "prefill" or "decode"
    sessions: int
    depth_tokens: (
        int  # prefill: tokens of the prompt; decode: tokens that each session held when its clock began
    )
    kv_type: str  # "f16" or "q8_0"


@dataclass(frozen=True)
class Group:
    """Measurements that share one process: a prefill of `prompt_tokens` (0: none), then a decode of `generate_tokens` at
    `depth_tokens` for each number of sessions.
    """

    prompt_tokens: int
    generate_tokens: int
    sessions: tuple[int, ...]
    depth_tokens: int = 16
    kv_type: str = "f16"


@dataclass(frozen=True)
class Engine:
    """A name for the table and a way to measure."""

    name: str
    measure: Callable[
        [Path, int, Group], Iterator[tuple[Point, float]]
    ]  # (model, threads, group) -> tokens/s


def _lines(command: list[str]) -> list[str]:
    """What a command that must succeed prints; ik_llama.cpp prints its table among its messages."""
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)
    return [*done.stdout.splitlines(), *done.stderr.splitlines()]


def _json_points(command: list[str], group: Group) -> Iterator[tuple[Point, float]]:
    for line in _lines(command):
        if not line.startswith("{"):
            continue
        row = json.loads(line)
        depth = group.prompt_tokens if row["test"] == "prefill" else group.depth_tokens
        yield Point(row["test"], row["sessions"], depth, group.kv_type), row["tokens_per_s"]


def quantd() -> Engine:
    """Our own engine, as it is installed beside the interpreter that runs."""

    def measure(model: Path, threads: int, group: Group) -> Iterator[tuple[Point, float]]:
        command = [
            QUANTD, "bench", str(model), "--prompt", str(group.prompt_tokens), "--generate", str(group.generate_tokens),
            "--sessions", ",".join(map(str, group.sessions)), "--depth", str(group.depth_tokens),
            "--kv-type", group.kv_type, "--threads", str(threads), "--json",
        ]  # fmt: skip
        yield from _json_points(command, group)

    return Engine("quantd", measure)


def wheel(vocab: int, *, repack: bool) -> Engine:
    """llama.cpp from the wheel, with (its default) or without repacked weights."""

    def measure(model: Path, threads: int, group: Group) -> Iterator[tuple[Point, float]]:
        command = [
            sys.executable, WHEEL, str(model), "--vocab", str(vocab), "--prompt", str(group.prompt_tokens),
            "--generate", str(group.generate_tokens), "--sessions", ",".join(map(str, group.sessions)),
            "--depth", str(group.depth_tokens), "--kv-type", group.kv_type, "--threads", str(threads),
        ]  # fmt: skip
        yield from _json_points([*command, "--repack"] if repack else command, group)

    return Engine("llama.cpp wheel" + ("" if repack else " --no-repack"), measure)


# A row of llama-batched-bench: prompt, generated, sessions, tokens, seconds and tokens/s of both halves, both together.
_ROW = re.compile(
    r"^\|\s*(\d+) \|\s*(\d+) \|\s*(\d+) \|\s*\d+ \|\s*[\d.]+ \|\s*([\d.]+) \|\s*[\d.]+ \|\s*([\d.]+) \|"
)


def batched_bench(name: str, folder: Path, options: tuple[str, ...]) -> Engine:
    """A source build of llama.cpp or ik_llama.cpp; `folder` holds llama-batched-bench."""

    def rows(  # noqa: PLR0917  what the command takes
        model: Path, threads: int, kv_type: str, prompt: int, generate: int, sessions: tuple[int, ...]
    ) -> Iterator[tuple[int, float, float]]:
        context = max(sessions) * (prompt + generate + 64)
        command = [
            str(folder / "llama-batched-bench"), "-m", str(model), "-c", str(context), "-b", "2048", "-ub", "512",
            "-npp", str(prompt), "-ntg", str(generate), "-npl", ",".join(map(str, sessions)),
            "-t", str(threads), "-tb", str(threads), "-ctk", kv_type, "-ctv", kv_type, *options,
        ]  # fmt: skip
        for line in _lines(command):
            match = _ROW.match(line)
            if match:
                yield int(match[3]), float(match[4]), float(match[5])

    def measure(model: Path, threads: int, group: Group) -> Iterator[tuple[Point, float]]:
        if group.prompt_tokens:
            for _, prefill, _ in rows(model, threads, group.kv_type, group.prompt_tokens, 1, (1,)):
                yield Point("prefill", 1, group.prompt_tokens, group.kv_type), prefill
        if group.generate_tokens:
            decoded = rows(
                model, threads, group.kv_type, group.depth_tokens, group.generate_tokens, group.sessions
            )
            for sessions, _, decode in decoded:
                yield Point("decode", sessions, group.depth_tokens, group.kv_type), decode

    return Engine(name, measure)


def peers(llama_cpp: Path | None, ik_llama_cpp: Path | None, vocab: int) -> list[Engine]:
    """Every mode of every peer that is here."""
    found = []
    if llama_cpp:
        found.append(batched_bench("llama.cpp", llama_cpp, ()))
        found.append(batched_bench("llama.cpp --no-repack", llama_cpp, ("--no-repack",)))
    else:
        found += [wheel(vocab, repack=True), wheel(vocab, repack=False)]
    if ik_llama_cpp:
        found.append(batched_bench("ik_llama.cpp", ik_llama_cpp, ()))
        found.append(batched_bench("ik_llama.cpp -rtr", ik_llama_cpp, ("-rtr",)))
    return found
