"""What Python costs between two native steps, with 8 sessions that decode through the whole service.

    python ops/bench/step_overhead.py --sessions 8 --steps 400
    python ops/bench/step_overhead.py --sessions 8 --steps 60 --model MODEL.gguf

The real engine, scheduler, bridge, services and detokenizer run over the demo model, whose native step is replaced by a
wait of `--step-ms` without the GIL and random tokens; or, with --model, over that model and its own steps, which leave the
caches as cold as they do when it serves.  Prints one JSON line: microseconds from the end of a step to the
beginning of the next one, by the clock (waits for the interpreter and for a core included) and of the engine's thread
alone; wake-ups of the event loop and microseconds of its thread for each step.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from others import Others

from daemon.services.call import Call
from daemon.services.folder import ModelFolder, entry_of
from daemon.services.generate import GenerateService
from daemon.services.host import ModelHost, runtime_parts
from quantd.v1 import generate_pb2 as pb
from runtime.memory import RuntimeSettings
from runtime.step_plan import MAX_TOP_LOGPROBS, StepPlan, StepResult

DEMO = Path(__file__).resolve().parents[1] / "demo/quantd-demo-f16.gguf"


class TimedStep:
    """Stands in for LoadedModel.step, or calls it."""

    def __init__(self, step_ms: float, n_vocab: int, real: Callable[[StepPlan], StepResult] | None) -> None:
        self.step_s = step_ms / 1e3
        self._real = real
        self.between_us: list[
            tuple[int, float, float]
        ] = []  # (rows, time since the step before, of the thread)
        self._ended_s = self._ended_cpu_s = 0.0
        self._rng = np.random.default_rng(1)
        self._n_vocab = n_vocab

    def __call__(self, plan: StepPlan) -> StepResult:
        cpu_us = 1e6 * (time.thread_time() - self._ended_cpu_s)
        self.between_us.append((plan.n_rows, 1e6 * (time.perf_counter() - self._ended_s), cpu_us))
        result = self._wait(plan.n_out) if self._real is None else self._real(plan)
        self._ended_s, self._ended_cpu_s = time.perf_counter(), time.thread_time()
        return result

    def _wait(self, n_out: int) -> StepResult:
        result = StepResult(
            self._rng.integers(300, self._n_vocab, n_out).tolist(),
            np.zeros(n_out, np.float32),
            np.zeros(n_out, np.float32),
            np.zeros((n_out, MAX_TOP_LOGPROBS), np.int32),
            np.zeros((n_out, MAX_TOP_LOGPROBS), np.float32),
            np.zeros(n_out, np.uint8),
        )
        time.sleep(self.step_s)
        return result


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """One run."""
    settings = RuntimeSettings(sessions=arguments.sessions, context_tokens=512)
    parts = runtime_parts()
    steps: list[TimedStep] = []

    def load(path: Path, wanted: RuntimeSettings, **more: Any) -> Any:
        model = parts.load_model(path, wanted, **more)
        real = model.step if arguments.model else None
        steps.append(TimedStep(arguments.step_ms, model.config.n_vocab, real))
        model.step = steps[-1]
        return model

    host = ModelHost(ModelFolder(None, None), settings, dataclasses.replace(parts, load_model=load))
    await host.load(entry_of(arguments.model or DEMO))
    service, loop = GenerateService(host), asyncio.get_running_loop()
    wakes = [0]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            wakes[0] += 1
            return real(*args)

        return call

    # What wakes the loop from another thread: the bridge's bell, and everybody else's calls.
    os.eventfd_write = counted(os.eventfd_write)
    loop.call_soon_threadsafe = counted(loop.call_soon_threadsafe)  # type: ignore[method-assign]
    prompt = list(range(300, 300 + 40))

    async def one(index: int) -> None:
        request = pb.GenerateRequest(
            tokens=pb.TokenIds(ids=[300 + index, *prompt]),
            options=pb.GenerationOptions(max_tokens=arguments.steps, ignore_eos=True),
        )
        async for event in service.generate(request, Call()):
            event.SerializeToString()  # as a transport does

    others = Others()
    wakes[0], cpu_s, first = 0, time.thread_time(), len(steps[0].between_us)
    await asyncio.gather(*(one(index) for index in range(arguments.sessions)))
    cpu_s = time.thread_time() - cpu_s
    beside = others.cores()
    rows = steps[0].between_us[first:]
    await host.stop(0.0)
    await host.close_model()
    full = sorted(us for n_rows, us, _ in rows if n_rows == arguments.sessions)
    cpu = sorted(us for n_rows, _, us in rows if n_rows == arguments.sessions)
    return {
        "sessions": arguments.sessions,
        "between_steps_us_median": round(statistics.median(full)),
        "between_steps_us_p99": round(full[int(0.99 * (len(full) - 1))]),
        "between_steps_cpu_us_median": round(statistics.median(cpu)),
        "between_steps_cpu_us_least": round(cpu[0]),
        "wake_ups_per_step": round(wakes[0] / len(rows), 3),
        "event_loop_us_per_step": round(1e6 * cpu_s / len(rows)),
        "steps": len(full),
        "others_cores": beside,
    }


def main() -> int:
    """Exit status 0 with one JSON line printed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--step-ms", type=float, default=10.0)
    parser.add_argument("--model", type=Path, help="compute the steps of this model")
    print(json.dumps(asyncio.run(measure(parser.parse_args()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
