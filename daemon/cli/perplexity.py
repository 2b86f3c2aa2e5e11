"""`quantd perplexity`: how well a model predicts a text."""

from __future__ import annotations

import json
from pathlib import Path

import click

from daemon.cli.scoring import chunk_bar, loaded, read_text, text_options
from quant.perplexity import measure

MAX_STEP_ROWS = 512


@click.command("perplexity")
@click.argument("model", type=click.Path(path_type=Path))
@text_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: perplexity, stderr, chunks.")
def command(
    model: Path,
    text_path: Path,
    *,
    ctx: int,
    chunks: int | None,
    threads: int | None,
    parse_special: bool,
    as_json: bool,
) -> None:
    """Measure the perplexity of MODEL on a text, by the method of llama-perplexity.  Lower is better.

    \b
    Examples:
      quantd perplexity model-q4.gguf --file wiki.test.raw
      quantd perplexity model-q4.gguf --file wiki.test.raw --chunks 50 --json
    """
    text = read_text(text_path)
    step_rows = min(ctx, MAX_STEP_ROWS)
    with (
        loaded(model, ctx=ctx, step_rows=step_rows, threads=threads) as (only,),
        chunk_bar() as bar,
    ):
        result = measure(
            only,
            text,
            ctx=ctx,
            chunks=chunks,
            step_rows=step_rows,
            parse_special=parse_special,
            on_progress=lambda so_far, total: bar(
                so_far.chunks, total, f"perplexity {so_far.perplexity:.3f}"
            ),
        )
    if as_json:
        facts = {"perplexity": result.perplexity, "stderr": result.stderr, "chunks": result.chunks}
        click.echo(json.dumps(facts))
    else:
        click.echo(
            f"perplexity {result.perplexity:.4f} +/- {result.stderr:.4f} ({result.chunks} chunks of {ctx} tokens)"
        )
