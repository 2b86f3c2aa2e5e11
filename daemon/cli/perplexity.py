"""`quantd perplexity`: how well a model predicts a text."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from quant.perplexity import DEFAULT_CTX, MIN_CTX, Perplexity, measure
from runtime.errors import RequestError
from runtime.memory import RuntimeSettings
from runtime.model import load_model

MAX_STEP_ROWS = 512

Report = Callable[[Perplexity, int], None]


@click.command("perplexity")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--file", "text_path", required=True, type=click.Path(path_type=Path), help="The text, in UTF-8."
)
@click.option(
    "--ctx", type=click.IntRange(MIN_CTX), default=DEFAULT_CTX, show_default=True, help="Tokens of a chunk."
)
@click.option("--chunks", type=click.IntRange(1), help="Score only the first so many chunks [default: all].")
@click.option("--threads", type=click.IntRange(1, 256), help="Threads to use [default: the usable cores].")
@click.option(
    "--parse-special",
    is_flag=True,
    help="Read names of control tokens in the text, such as <|im_end|>, as these tokens; llama-perplexity does not.",
)
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
    settings = RuntimeSettings(sessions=1, context_tokens=ctx, threads=threads, max_step_rows=step_rows)
    loaded = load_model(model, settings)
    try:
        with _reporter() as report:
            result = measure(
                loaded,
                text,
                ctx=ctx,
                chunks=chunks,
                step_rows=step_rows,
                parse_special=parse_special,
                on_progress=report,
            )
    finally:
        loaded.close()
    if as_json:
        facts = {"perplexity": result.perplexity, "stderr": result.stderr, "chunks": result.chunks}
        click.echo(json.dumps(facts))
    else:
        click.echo(
            f"perplexity {result.perplexity:.4f} +/- {result.stderr:.4f} ({result.chunks} chunks of {ctx} tokens)"
        )


def read_text(path: Path) -> str:
    """Return a UTF-8 file without its last line break; RequestError where it is no UTF-8."""
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as failure:
        raise RequestError("file", f"{path} is not UTF-8: byte {failure.start}") from None
    return text.removesuffix("\n")  # one final line break is the editor's, not the text's


@contextlib.contextmanager
def _reporter() -> Iterator[Report]:
    """A bar with the estimate so far on a terminal, nothing else."""
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

        def report(result: Perplexity, n_chunks: int) -> None:
            bars.update(
                task,
                completed=result.chunks,
                total=n_chunks,
                description=f"perplexity {result.perplexity:.3f}",
            )

        yield report
