"""`quantd compare`: how far a quantized model is from its original."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from daemon.cli.perplexity import read_text
from quant.compare import Divergence, compare
from quant.perplexity import DEFAULT_CTX, MIN_CTX
from quant.sensitivity import picture, tensor_losses
from runtime.gguf import ModelFile
from runtime.memory import RuntimeSettings
from runtime.model import load_model

MAX_STEP_ROWS = 256

Report = Callable[[Divergence, int], None]


@click.command("compare")
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("quantized", type=click.Path(path_type=Path))
@click.option(
    "--file", "text_path", required=True, type=click.Path(path_type=Path), help="The text, in UTF-8."
)
@click.option(
    "--ctx", type=click.IntRange(MIN_CTX), default=DEFAULT_CTX, show_default=True, help="Tokens of a chunk."
)
@click.option(
    "--chunks", type=click.IntRange(1), help="Compare only the first so many chunks [default: all]."
)
@click.option("--threads", type=click.IntRange(1, 256), help="Threads to use [default: the usable cores].")
@click.option(
    "--max-increase",
    type=float,
    metavar="PERCENT",
    help="Exit with status 1 where the perplexity rises by more than this.",
)
@click.option(
    "--picture",
    "picture_path",
    type=click.Path(path_type=Path),
    help="Write an SVG of what each tensor lost, by layer and kind.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    original: Path,
    quantized: Path,
    text_path: Path,
    *,
    ctx: int,
    chunks: int | None,
    threads: int | None,
    max_increase: float | None,
    picture_path: Path | None,
    as_json: bool,
) -> None:
    """Compare QUANTIZED with ORIGINAL on a text: perplexities, their paired ratio, KL divergence, same top token.

    The method is that of llama-perplexity --kl-divergence.  Both models are mapped at the same time.

    \b
    Examples:
      quantd compare model-f16.gguf model-q4.gguf --file wiki.test.raw --chunks 50
      quantd compare model-f16.gguf model-q4.gguf --file sample.txt --max-increase 3
      quantd compare model-f16.gguf model-q4.gguf --file sample.txt --picture loss.svg
    """
    result = measure_divergence(
        original, quantized, read_text(text_path), ctx=ctx, chunks=chunks, threads=threads
    )
    if picture_path is not None:
        losses = tensor_losses(ModelFile.open(original), ModelFile.open(quantized))
        picture_path.write_text(
            picture(losses, f"{quantized.name}: relative error of each tensor"), encoding="utf-8"
        )
    show(result, max_increase, as_json=as_json)
    if exceeds(result, max_increase):
        raise click.exceptions.Exit(1)


def measure_divergence(
    original: Path, quantized: Path, text: str, *, ctx: int, chunks: int | None, threads: int | None
) -> Divergence:
    """Load both models and compare them, with a bar on a terminal."""
    step_rows = min(ctx, MAX_STEP_ROWS)
    settings = RuntimeSettings(sessions=1, context_tokens=ctx, threads=threads, max_step_rows=step_rows)
    with contextlib.ExitStack() as stack:
        first, second = (load_model(path, settings) for path in (original, quantized))
        stack.callback(first.close)
        stack.callback(second.close)
        with _reporter() as report:
            return compare(
                first, second, text, ctx=ctx, chunks=chunks, step_rows=step_rows, on_progress=report
            )


def exceeds(result: Divergence, max_increase: float | None) -> bool:
    """Say whether the perplexity rises by more than is allowed; a ratio that is no number does."""
    return max_increase is not None and not result.increase_percent <= max_increase


def show(result: Divergence, max_increase: float | None, *, as_json: bool) -> None:
    """Print the result: one JSON object, or a table."""
    if as_json:
        passed = None if max_increase is None else not exceeds(result, max_increase)
        click.echo(json.dumps({**result.facts(), "max_increase_percent": max_increase, "passed": passed}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    rows = [
        ("perplexity, original", result.original_perplexity, result.original_perplexity_stderr, ".4f"),
        ("perplexity, quantized", result.quantized_perplexity, result.quantized_perplexity_stderr, ".4f"),
        ("increase in %, paired", result.increase_percent, 100 * result.ratio_stderr, "+.3f"),
        ("KL divergence, mean", result.kl_mean, result.kl_mean_stderr, ".6f"),
        *((f"KL divergence, {name} %", value, None, ".6f") for name, value in result.kl_percentiles.items()),
        ("KL divergence, largest", result.kl_max, None, ".6f"),
        ("same top token in %", 100 * result.same_top, 100 * result.same_top_stderr, ".3f"),
        ("change of p, mean in %", 100 * result.delta_p_mean, None, "+.3f"),
        ("change of p, RMS in %", 100 * result.delta_p_rms, None, ".3f"),
    ]
    for name, value, error, layout in rows:
        table.add_row(
            name, format(value, layout), "" if error is None else f"+/- {format(error, layout.lstrip('+'))}"
        )
    console = Console()
    console.print(table)
    console.print(f"{result.positions:,} positions in {result.chunks} chunks", highlight=False)
    if max_increase is not None:
        verdict = "more than" if exceeds(result, max_increase) else "within"
        console.print(f"{verdict} the allowed increase of {max_increase:g} %", highlight=False)


@contextlib.contextmanager
def _reporter() -> Iterator[Report]:
    """A bar with the divergence so far on a terminal, nothing else."""
    if not sys.stderr.isatty():
        yield lambda _, __: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("chunks"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("", total=None)

        def report(result: Divergence, n_chunks: int) -> None:
            bars.update(task, completed=result.chunks, total=n_chunks, description=f"KL {result.kl_mean:.5f}")

        yield report
