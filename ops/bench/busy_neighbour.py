"""Decode speed while another process keeps one core busy, as a share of the undisturbed speed.

    python ops/bench/busy_neighbour.py MODEL.gguf --rounds 5 --generate 64
    python ops/bench/busy_neighbour.py MODEL.gguf --threads 1 --quantize SOURCE.gguf

Quiet and disturbed stretches of one decoding session take turns, so that a noisy minute hits both.  The neighbour is a
plain loop at normal priority that the system may put on any core; with --quantize it is a job of the QuantizeService: the
same child process, at idle priority, on all cores.  Also printed: the CPU time that the idle process
uses after the last step, which must be nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from daemon.services.quantize import child_command
from runtime.memory import RuntimeSettings
from runtime.model import LoadedModel, load_model
from runtime.step_plan import StepPlan

IDLE_S = 2.0


def spin() -> None:
    """Keeps one core busy until it is killed."""
    while True:
        pass


@contextlib.contextmanager
def busy_loop() -> Iterator[None]:
    """A process that keeps one core busy."""
    neighbour = multiprocessing.get_context("spawn").Process(target=spin, daemon=True)
    neighbour.start()
    time.sleep(1.0)  # its interpreter has started by then
    yield
    neighbour.kill()
    neighbour.join()


@contextlib.contextmanager
def quantization(source: str) -> Iterator[None]:
    """A quantization as the service runs it; it must still be at work at the end."""
    with tempfile.TemporaryDirectory(dir=Path(source).parent) as folder:
        arguments = ["quantize", source, f"{folder}/out.gguf", "--recipe=Q4_K_M"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        job = subprocess.Popen(child_command(arguments), stdout=subprocess.DEVNULL, env=environment)
        time.sleep(3.0)  # it encodes by then
        try:
            yield
            if job.poll() is not None:
                sys.exit("the quantization ended too early: use a larger source, or --generate less")
        finally:
            job.kill()
            job.wait()


class Session:
    """One session that decodes random tokens."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._random = np.random.default_rng(1)
        self._held = 0

    def decode(self, n_tokens: int) -> float:
        """Tokens per second of n_tokens steps of one row."""
        start = time.perf_counter()
        for _ in range(n_tokens):
            n_pages = self._held // self._model.page_tokens + 1
            self._model.step(
                StepPlan(
                    tokens=np.array([self._random.integers(0, self._model.config.n_vocab)], np.int32),
                    positions=np.array([self._held], np.int32),
                    seq_starts=np.array([0, 1], np.int32),
                    page_starts=np.array([0, n_pages], np.int32),
                    pages=np.arange(n_pages, dtype=np.int32),
                    out_rows=np.array([0], np.int32),
                    samplers=[None],
                    targets=np.array([-1], np.int32),
                )
            )
            self._held += 1
        return n_tokens / (time.perf_counter() - start)


def idle_share() -> float:
    """CPU seconds of this process in a second in which nothing is asked of it."""
    before = os.times()
    time.sleep(IDLE_S)
    after = os.times()
    return (after.user - before.user + after.system - before.system) / IDLE_S


def main() -> int:
    """Exit status 0 with the medians on the standard output."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--quantize", metavar="SOURCE", help="a quantization of this file is the neighbour, beside it"
    )
    arguments = parser.parse_args()
    tokens = 2 * arguments.rounds * arguments.generate + arguments.generate
    model = load_model(
        arguments.model, RuntimeSettings(sessions=1, context_tokens=tokens + 32, threads=arguments.threads)
    )
    session = Session(model)
    session.decode(arguments.generate)
    rates: dict[str, list[float]] = {"quiet": [], "busy": []}
    for _ in range(arguments.rounds):
        rates["quiet"].append(session.decode(arguments.generate))
        with quantization(arguments.quantize) if arguments.quantize else busy_loop():
            rates["busy"].append(session.decode(arguments.generate))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(f"{name:6} {medians[name]:8.2f} tokens/s ({min(values):.2f} to {max(values):.2f})")
    print(f"ratio  {medians['busy'] / medians['quiet']:8.2f}, {arguments.threads} threads")
    print(f"idle   {100 * idle_share():8.2f} % of a core")
    return 0


if __name__ == "__main__":
    sys.exit(main())
