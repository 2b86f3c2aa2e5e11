"""What the commands that run a text through a model share: their options, the text, the models and the bar."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from quant.perplexity import DEFAULT_CTX, MIN_CTX
from runtime.errors import RequestError
from runtime.memory import RuntimeSettings
from runtime.model import LoadedModel, load_model

_Function = TypeVar("_Function", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--file", "text_path", required=True, type=click.Path(path_type=Path), help="The text, in UTF-8."
    ),
    click.option(
        "--ctx",
        type=click.IntRange(MIN_CTX),
        default=DEFAULT_CTX,
        show_default=True,
        help="Tokens of a chunk.",
    ),
    click.option("--chunks", type=click.IntRange(1), help="Only the first so many chunks [default: all]."),
    click.option(
        "--threads", type=click.IntRange(1, 256), help="Threads to use [default: the usable cores]."
    ),
    click.option(
        "--parse-special",
        is_flag=True,
        help="Read names of control tokens in the text, such as <|im_end|>, as these tokens; llama-perplexity does not.",
    ),
)


def text_options(function: _Function) -> _Function:
    """Add --file, --ctx, --chunks, --threads and --parse-special to a command."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def read_text(path: Path) -> str:
    """Return a UTF-8 file without its last line break; RequestError where it is no UTF-8."""
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as failure:
        raise RequestError("file", f"{path} is not UTF-8: byte {failure.start}") from None
    return text.removesuffix("\n")  # one final line break is the editor's, not the text's


@contextlib.contextmanager
def loaded(*paths: Path, ctx: int, step_rows: int, threads: int | None) -> Iterator[tuple[LoadedModel, ...]]:
    """Load models for one sequence of `ctx` tokens, and close them at the end."""
    settings = RuntimeSettings(sessions=1, context_tokens=ctx, threads=threads, max_step_rows=step_rows)
    with contextlib.ExitStack() as stack:
        models = []
        for path in paths:
            models.append(load_model(path, settings))
            stack.callback(models[-1].close)
        yield tuple(models)


@contextlib.contextmanager
def chunk_bar() -> Iterator[Callable[[int, int, str], None]]:
    """A bar for (chunks done, chunks in all, what is known so far) on a terminal, nothing else."""
    if not sys.stderr.isatty():
        yield lambda _, __, ___: None
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
        yield lambda done, total, so_far: bars.update(task, completed=done, total=total, description=so_far)
