"""`quantd quantize`: an F32, F16 or BF16 GGUF file to a smaller one."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import click

from daemon.errors import to_api_error
from quant.errors import QuantizeCancelledError
from quant.quantizer import Progress, Quantizer, QuantizeResult
from quant.recipes import DEFAULT_RECIPE, RECIPES

Report = Callable[[Progress], None]


@click.command("quantize")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--recipe", default=DEFAULT_RECIPE, show_default=True, help=f"Mixture of types: {', '.join(RECIPES)}."
)
@click.option("--threads", type=int, help="Threads to use, 1 to 256 [default: the usable cores].")
@click.option("--force", is_flag=True, help="Replace OUTPUT if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.option(
    "--progress-json", is_flag=True, help="Print progress and result as one JSON object a line, for programs."
)
def command(
    source: Path,
    output: Path,
    recipe: str,
    *,
    threads: int | None,
    force: bool,
    as_json: bool,
    progress_json: bool,
) -> None:
    """Make a smaller GGUF file OUTPUT from SOURCE, a GGUF file in F32, F16 or BF16.

    Each tensor gets the type that llama-quantize gives it for the recipe.  OUTPUT appears under its name only when
    it is complete; an error or Ctrl-C leaves nothing behind.

    \b
    Examples:
      quantd quantize model-f16.gguf model-q4.gguf
      quantd quantize model-f16.gguf model-q8.gguf --recipe Q8_0 --threads 4
    """
    try:
        with _stop_signals() as cancel:
            job = Quantizer(source, output, recipe, threads=threads, force=force)
            with _reporter(progress_json=progress_json) as report:
                result = job.run(report, cancel)
    except Exception as failure:
        if progress_json:
            error = to_api_error(failure)
            _print_line({"event": "error", "reason": error.reason, "message": error.message})
        raise
    if progress_json:
        _print_line({"event": "result", **_facts(result)})
    elif as_json:
        click.echo(json.dumps(_facts(result)))
    else:
        _print_summary(result)


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """SIGTERM and Ctrl-C set the event, so that the work stops at a sound place; a second Ctrl-C interrupts at once."""
    cancel = threading.Event()
    interrupted = False

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = number == signal.SIGINT
        cancel.set()

    if threading.current_thread() is not threading.main_thread():
        yield cancel
        return
    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield cancel
    except QuantizeCancelledError:
        if interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _reporter(*, progress_json: bool) -> Iterator[Report]:
    """How progress is shown: lines for programs, a bar on a terminal, nothing else."""
    if progress_json:
        yield _print_progress
    elif sys.stderr.isatty():
        with _bar() as report:
            yield report
    else:
        yield lambda _: None


@contextlib.contextmanager
def _bar() -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.fields[tensors]}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("", total=None, tensors="")

        def report(progress: Progress) -> None:
            bars.update(
                task,
                completed=progress.bytes_done,
                total=progress.bytes_total,
                description=progress.tensor,
                tensors=f"{progress.tensors_done}/{progress.tensors_total} tensors",
            )

        yield report


def _print_progress(progress: Progress) -> None:
    _print_line(
        {
            "event": "progress",
            "tensors_done": progress.tensors_done,
            "tensors_total": progress.tensors_total,
            "bytes_done": progress.bytes_done,
            "bytes_total": progress.bytes_total,
            "bytes_per_s": round(progress.bytes_per_s, 1),
            "eta_s": round(progress.eta_s, 3),
            "tensor": progress.tensor,
        }
    )


def _print_line(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def _facts(result: QuantizeResult) -> dict[str, Any]:
    return {
        "output": str(result.output),
        "recipe": result.recipe,
        "output_bytes": result.output_bytes,
        "source_bytes": result.source_bytes,
        "seconds": round(result.seconds, 3),
        "bits_per_weight": round(result.bits_per_weight, 4),
        "types": {name: {"tensors": count, "bytes": size} for name, (count, size) in result.types.items()},
    }


def _print_summary(result: QuantizeResult) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=None, pad_edge=False)
    table.add_column("type")
    table.add_column("tensors", justify="right")
    table.add_column("size", justify="right")
    for name, (count, size) in result.types.items():
        table.add_row(name, str(count), _mib(size))
    console.print(table)
    console.print(
        f"{_mib(result.source_bytes)} -> {_mib(result.output_bytes)}, {result.bits_per_weight:.2f} bits per weight, "
        f"{result.recipe}, {result.seconds:.1f} s",
        highlight=False,
    )
    console.print(str(result.output), markup=False, highlight=False, soft_wrap=True)


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:,.1f} MiB"
