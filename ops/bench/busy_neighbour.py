"""Decode speed while another process keeps one core busy, as a share of the undisturbed speed.

    python ops/bench/busy_neighbour.py MODEL.gguf --rounds 5 --generate 100
    python ops/bench/busy_neighbour.py MODEL.gguf --threads 1 --quantize SOURCE.gguf

One session decodes through the engine; quiet and disturbed stretches take turns, so that a noisy minute hits both.  The
neighbour is a plain loop at normal priority that the system may put on any core; with --quantize it is a job of the
QuantizeService: the same child process, at idle priority, on all cores.  Prints one JSON line for each round, with the cores
that other processes kept busy, one with the medians, and the CPU time of the idle process after the last step, which must
be nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from engine_client import EngineClient
from others import Others

from daemon.services.quantize import child_command
from runtime.memory import RuntimeSettings

IDLE_S = 2.0


def spin() -> None:
    """Keeps one core busy until it is killed."""
    while True:
        pass


@contextlib.contextmanager
def busy_loop() -> Iterator[int]:
    """A process that keeps one core busy: its id."""
    neighbour = multiprocessing.get_context("spawn").Process(target=spin, daemon=True)
    neighbour.start()
    assert neighbour.pid is not None
    time.sleep(1.0)  # its interpreter has started by then
    yield neighbour.pid
    neighbour.kill()
    neighbour.join()


@contextlib.contextmanager
def quantization(source: str) -> Iterator[int]:
    """A quantization as the service runs it, its process id; it must still be at work at the end."""
    with tempfile.TemporaryDirectory(dir=Path(source).parent) as folder:
        arguments = ["quantize", source, f"{folder}/out.gguf", "--recipe=Q4_K_M"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        job = subprocess.Popen(child_command(arguments), stdout=subprocess.DEVNULL, env=environment)
        time.sleep(3.0)  # it encodes by then
        try:
            yield job.pid
            if job.poll() is not None:
                sys.exit("the quantization ended too early: use a larger source, or --generate less")
        finally:
            job.kill()
            job.wait()


def decode_rate(client: EngineClient, id_: str, n_tokens: int) -> float:
    """Tokens per second of the next `n_tokens` tokens of a request that runs."""
    first = len(client.arrivals[id_]) + 1
    client.wait_tokens(id_, first + n_tokens)
    return n_tokens / (client.arrivals[id_][first + n_tokens - 1] - client.arrivals[id_][first - 1])


def measure(
    client: EngineClient, id_: str, n_tokens: int, neighbour: AbstractContextManager[int]
) -> dict[str, float]:
    """One quiet stretch and one with a neighbour."""
    others = Others()
    quiet = decode_rate(client, id_, n_tokens)
    beside_quiet = others.cores()
    with neighbour as pid:
        others = Others(pid)
        busy = decode_rate(client, id_, n_tokens)
        beside_busy = others.cores()
    return {
        "quiet_tokens_per_s": round(quiet, 2),
        "busy_tokens_per_s": round(busy, 2),
        "ratio": round(busy / quiet, 3),
        "others_cores_quiet": beside_quiet,
        "others_cores_busy": beside_busy,
    }


def idle_share() -> float:
    """CPU seconds of this process in a second in which nothing is asked of it."""
    before = os.times()
    time.sleep(IDLE_S)
    after = os.times()
    return (after.user - before.user + after.system - before.system) / IDLE_S


def main() -> int:
    """Exit status 0 with the lines printed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--generate", type=int, default=100)
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--quantize", metavar="SOURCE", help="a quantization of this file is the neighbour, beside it"
    )
    arguments = parser.parse_args()
    # What is decoded while a neighbour starts and ends is room to spare.
    tokens = arguments.rounds * (2 * arguments.generate + 300)
    settings = RuntimeSettings(sessions=1, context_tokens=tokens + 64, threads=arguments.threads)
    with EngineClient(arguments.model, settings) as client:
        prompt = client.random_prompt(random.Random(1), 16)
        id_ = client.submit(prompt, tokens, speculate=False)
        client.wait_tokens(id_, 20)
        rounds = []
        for _ in range(arguments.rounds):
            neighbour = quantization(arguments.quantize) if arguments.quantize else busy_loop()
            rounds.append(measure(client, id_, arguments.generate, neighbour))
            print(json.dumps(rounds[-1]), flush=True)
        client.engine.cancel(id_)
        client.wait(id_)
        medians = {key: round(statistics.median(row[key] for row in rounds), 3) for key in rounds[0]}
        idle_percent = round(100 * idle_share(), 2)
        print(json.dumps({"medians": medians, "idle_percent_of_a_core": idle_percent}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
