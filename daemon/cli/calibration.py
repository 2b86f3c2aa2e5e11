"""The options of `quantd quantize` that say where importance comes from; nothing is imported for them until they are used."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quant.recipes import base_of
from runtime.errors import RequestError

if TYPE_CHECKING:
    from quant.allocation import Allocation
    from quant.feedback import ErrorFeedback
    from quant.importance import Importance
    from quant.policy import Overrides

BUILT_IN = "built-in"


@dataclass(frozen=True, slots=True)
class Calibration:
    """The options as they were given."""

    text: str | None  # --calibrate: BUILT_IN or the name of a file
    imatrix: Path | None
    save_imatrix: Path | None
    feedback: bool  # not --no-error-feedback
    folder: Path  # for what is too large for memory while the work goes on: the output's
    threads: int | None
    shows: bool  # False: for programs, nothing is told on the way


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of a model before it is quantized."""

    importance: Importance | None = None
    feedback: ErrorFeedback | None = None
    allocation: Allocation | None = None


@contextlib.contextmanager
def measured(source: Path, recipe: str, overrides: Overrides, options: Calibration) -> Iterator[Measured]:
    """Run a text through the model as the options and a recipe best-NAME ask for; it must be a GGUF file that quantd serves.

    Raises RequestError and what quant.importance and quant.allocation raise.
    """
    with contextlib.ExitStack() as open_files:
        yield _measure(source, recipe, overrides, options, open_files)


def _measure(
    source: Path, recipe: str, overrides: Overrides, options: Calibration, open_files: contextlib.ExitStack
) -> Measured:
    if options.text is not None and options.imatrix is not None:
        raise RequestError("imatrix", "imatrix: give --calibrate or --imatrix, not both")
    base = base_of(recipe)
    text = options.text or (BUILT_IN if base is not None and options.imatrix is None else None)
    if options.save_imatrix is not None and text is None:
        raise RequestError("save_imatrix", "save_imatrix: there is nothing to save without --calibrate")
    if text is None and options.imatrix is None:
        return Measured()
    if source.is_dir() and (text is not None or base is not None):
        raise RequestError(
            "recipe" if text is None else "calibrate",
            "calibrate: the source must be a GGUF file; convert the folder first with --recipe F16 or BF16, or give an "
            "--imatrix",
        )
    from daemon.cli.scoring import read_text
    from quant.allocation import allocate
    from quant.calibration_text import TEXT
    from quant.feedback import ErrorFeedback
    from quant.importance import collect, dataset_name, read_imatrix, write_imatrix
    from quant.moments import InputMoments

    words = TEXT if text in {None, BUILT_IN} else read_text(Path(text or ""))
    importance = feedback = None
    if options.imatrix is not None:
        importance = read_imatrix(options.imatrix)
    elif text is not None:
        dataset = BUILT_IN if text == BUILT_IN else dataset_name(text)
        moments = open_files.enter_context(InputMoments(options.folder)) if options.feedback else None
        importance = collect(source, words, dataset=dataset, threads=options.threads, moments=moments)
        feedback = ErrorFeedback(moments) if moments is not None else None
        click.echo(f"calibrated on {importance.n_tokens:,} tokens of {dataset}", err=True)
        if options.save_imatrix is not None:
            write_imatrix(options.save_imatrix, importance)
    if base is None:
        return Measured(importance, feedback)
    with _tensors_bar(shows=options.shows) as report:
        allocation = allocate(
            source,
            base,
            words,
            overrides=overrides,
            importance=importance,
            feedback=feedback,
            threads=options.threads,
            on_progress=report,
        )
    click.echo(
        f"{allocation.recipe}: expected KL divergence on {allocation.n_tokens:,} tokens of the text "
        f"{allocation.divergence:.5f}, with the types of {base.name} {allocation.divergence_of_recipe:.5f}",
        err=True,
    )
    return Measured(importance, feedback, allocation)


@contextlib.contextmanager
def _tensors_bar(*, shows: bool) -> Iterator[Callable[[int, int], None]]:
    """How far the measuring is: a bar on a terminal."""
    if not (shows and sys.stderr.isatty()):
        yield lambda _, __: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("tensors measured"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
