"""`quantd bench`: prefill and decode speed of a model, by the same native steps that serving takes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from runtime.model import LoadedModel
    from runtime.step_plan import StepPlan, StepResult

DECODE_PROMPT_TOKENS = 16
"""Tokens that each session holds before its decoding is timed, where no depth is asked for."""

MAX_SESSIONS = 256


@dataclass(frozen=True, slots=True)
class Measurement:
    """One line of the result."""

    test: str  # "prefill" or "decode"
    sessions: int
    prompt_tokens: int  # of each session, in the cache before decoding is timed
    generated_tokens: int  # of each session
    tokens_per_s: float  # of all sessions together: prompt tokens for prefill, generated ones for decode


def _session_counts(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 1,4,8") from None
    if not all(1 <= count <= MAX_SESSIONS for count in counts):
        raise click.BadParameter(f"each number must lie between 1 and {MAX_SESSIONS}")
    return counts


@click.command("bench")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--prompt",
    type=click.IntRange(0),
    default=512,
    show_default=True,
    help="Prompt tokens of the prefill test.",
)
@click.option(
    "--generate",
    type=click.IntRange(0),
    default=128,
    show_default=True,
    help="Tokens that each session generates in a decode test.",
)
@click.option(
    "--depth",
    type=click.IntRange(1),
    default=DECODE_PROMPT_TOKENS,
    show_default=True,
    help="Tokens that each session holds before its decoding is timed.",
)
@click.option(
    "--sessions",
    callback=_session_counts,
    default="1",
    show_default=True,
    metavar="N,N,...",
    help="Decode tests: sessions stepped together.",
)
@click.option(
    "--threads", type=click.IntRange(1, 256), help="Threads of the native core. [default: usable cores]"
)
@click.option("--kv-type", type=click.Choice(["f16", "q8_0"]), default="f16", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def command(
    *,
    model: Path,
    prompt: int,
    generate: int,
    depth: int,
    sessions: tuple[int, ...],
    threads: int | None,
    kv_type: str,
    as_json: bool,
) -> None:
    """Measure how fast MODEL reads a prompt and generates, on random tokens.

    0 leaves a test out.  Speed depends on what else the machine does: repeat, and compare medians.

    \b
    Examples:
      quantd bench model-q4.gguf
      quantd bench model-q4.gguf --prompt 128 --generate 64 --sessions 1,4,8 --json
      quantd bench model-q4.gguf --prompt 0 --depth 4096 --generate 32 --kv-type q8_0
    """
    from runtime.memory import RuntimeSettings
    from runtime.model import load_model

    settings = RuntimeSettings(sessions=max(sessions), kv_type=kv_type, threads=threads)
    context_tokens = max(prompt, depth + generate, settings.page_tokens)
    settings = replace(settings, context_tokens=context_tokens)
    loaded = load_model(model, settings)
    try:
        loaded.warm_up()
        if not as_json:
            click.echo(f"{loaded.name}: {loaded.level} kernels, kv {kv_type}")
            click.echo(f"{'test':8} {'sessions':>8} {'prompt':>8} {'generated':>10} {'tokens/s':>12}")
        for line in measure(loaded, prompt=prompt, generate=generate, depth=depth, sessions=sessions):
            click.echo(json.dumps(asdict(line)) if as_json else _table_row(line))
    finally:
        loaded.close()


def measure(
    model: LoadedModel, *, prompt: int, generate: int, depth: int, sessions: tuple[int, ...]
) -> Iterator[Measurement]:
    """Yield the prefill measurement, then one decode measurement for each number of sessions.

    Raises ValueError where the model's arena is too small for them.
    """
    if prompt > 0:
        batch = _Batch(model, 1, prompt)
        seconds = batch.prefill(prompt)
        yield Measurement("prefill", 1, prompt, 0, prompt / seconds)
    if generate > 0:
        for count in sessions:
            batch = _Batch(model, count, depth + generate)
            batch.prefill(depth)
            seconds = batch.decode(generate)
            yield Measurement("decode", count, depth, generate, count * generate / seconds)


def _table_row(line: Measurement) -> str:
    return f"{line.test:8} {line.sessions:8} {line.prompt_tokens:8} {line.generated_tokens:10} {line.tokens_per_s:12.2f}"


class _Batch:
    """`count` sessions of random tokens, each with pages of its own."""

    def __init__(self, model: LoadedModel, count: int, tokens_each: int) -> None:
        import numpy as np

        self._model = model
        self._pages_each = -(-tokens_each // model.page_tokens)
        if count * self._pages_each > model.n_pages:
            raise ValueError(
                f"{count} sessions of {tokens_each} tokens need {count * self._pages_each} KV pages; the memory plan "
                f"has {model.n_pages}"
            )
        self._random = np.random.default_rng(1)
        self._held = [0] * count  # tokens that each session holds
        self._last = [0] * count  # the token that each session generated last

    def prefill(self, n_tokens: int) -> float:
        """Compute n_tokens more of each session, one session after the other; return the seconds."""
        start = time.perf_counter()
        for session in range(len(self._held)):
            left = n_tokens
            while left > 0:
                part = min(left, self._model.settings.max_step_rows)
                tokens = self._random.integers(0, self._model.config.n_vocab, part).tolist()
                left -= part
                result = self._step([(session, tokens)], wanted=left == 0)
                if left == 0:
                    self._keep([session], result)
        return time.perf_counter() - start

    def decode(self, n_tokens: int) -> float:
        """Generate n_tokens with all sessions in each step; return the seconds."""
        everyone = list(range(len(self._held)))
        start = time.perf_counter()
        for _ in range(n_tokens):
            result = self._step([(session, [self._last[session]]) for session in everyone], wanted=True)
            self._keep(everyone, result)
        return time.perf_counter() - start

    def _keep(self, sessions: list[int], result: StepResult) -> None:
        for session, token in zip(sessions, result.token_ids, strict=True):
            self._last[session] = max(token, 0)  # -1: logits of random weights may overflow

    def _step(self, parts: list[tuple[int, list[int]]], *, wanted: bool) -> StepResult:
        """Run one step; the last row of each part draws a token where one is wanted."""
        result = self._model.step(self._plan(parts, wanted=wanted))
        for session, tokens in parts:
            self._held[session] += len(tokens)
        return result

    def _plan(self, parts: list[tuple[int, list[int]]], *, wanted: bool) -> StepPlan:
        import numpy as np

        from runtime._native import Sampler
        from runtime.step_plan import StepPlan

        def ints(values: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
            return np.array(values, np.int32)

        starts, page_starts = [0], [0]
        positions: list[int] = []
        pages: list[int] = []
        for session, tokens in parts:
            first = self._held[session]
            positions += range(first, first + len(tokens))
            starts.append(starts[-1] + len(tokens))
            pages += range(session * self._pages_each, (session + 1) * self._pages_each)
            page_starts.append(len(pages))
        out_rows = [end - 1 for end in starts[1:]] if wanted else []
        return StepPlan(
            tokens=ints([token for _, tokens in parts for token in tokens]),
            positions=ints(positions),
            seq_starts=ints(starts),
            page_starts=ints(page_starts),
            pages=ints(pages),
            out_rows=ints(out_rows),
            samplers=[Sampler(temperature=0) for _ in out_rows],
            targets=ints([-1] * len(out_rows)),
        )
