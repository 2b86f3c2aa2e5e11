"""`quantd compare`: how far a quantized model is from its original."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from daemon.cli.scoring import chunk_bar, loaded, read_text, text_options
from quant.compare import Divergence, compare
from quant.sensitivity import picture, tensor_losses
from runtime.gguf import ModelFile

MAX_STEP_ROWS = 256


@click.command("compare")
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("quantized", type=click.Path(path_type=Path))
@text_options
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
    parse_special: bool,
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
        original,
        quantized,
        read_text(text_path),
        ctx=ctx,
        chunks=chunks,
        threads=threads,
        parse_special=parse_special,
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
    original: Path,
    quantized: Path,
    text: str,
    *,
    ctx: int,
    chunks: int | None,
    threads: int | None,
    parse_special: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Divergence:
    """Load both models and compare them, with a bar on a terminal; `on_progress` gets chunks done and in all."""

    def report(so_far: Divergence, total: int) -> None:
        bar(so_far.chunks, total, f"KL {so_far.kl_mean:.5f}")
        if on_progress is not None:
            on_progress(so_far.chunks, total)

    step_rows = min(ctx, MAX_STEP_ROWS)
    with (
        loaded(original, quantized, ctx=ctx, step_rows=step_rows, threads=threads) as (first, second),
        chunk_bar() as bar,
    ):
        return compare(
            first,
            second,
            text,
            ctx=ctx,
            chunks=chunks,
            step_rows=step_rows,
            parse_special=parse_special,
            on_progress=report,
        )


def exceeds(result: Divergence, max_increase: float | None) -> bool:
    """Say whether the perplexity rises by more than is allowed; a ratio that is no number does."""
    return max_increase is not None and not result.increase_percent <= max_increase


def facts_of(result: Divergence, max_increase: float | None) -> dict[str, Any]:
    """The result as plain values."""
    passed = None if max_increase is None else not exceeds(result, max_increase)
    return {**result.facts(), "max_increase_percent": max_increase, "passed": passed}


def show(result: Divergence, max_increase: float | None, *, as_json: bool) -> None:
    """Print the result: one JSON object, or a table."""
    if as_json:
        click.echo(json.dumps(facts_of(result, max_increase)))
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
