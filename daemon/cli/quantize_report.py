"""How `quantd quantize` tells what it does: a bar and a table for people, JSON for programs."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from daemon.cli.shared import print_table

if TYPE_CHECKING:
    from quant.progress import Progress
    from quant.quantizer import QuantizeResult

Report = Callable[["Progress"], None]


@contextlib.contextmanager
def reporter(*, progress_json: bool) -> Iterator[Report]:
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
    print_line(
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


def print_line(event: dict[str, Any]) -> None:
    """One JSON object on a line of its own, for programs."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def result_facts(result: QuantizeResult, divergence: dict[str, Any] | None) -> dict[str, Any]:
    """The result as plain values; `divergence` is what --verify found."""
    facts: dict[str, Any] = {
        "output": str(result.output),
        "recipe": result.recipe,
        "output_bytes": result.output_bytes,
        "source_bytes": result.source_bytes,
        "seconds": round(result.seconds, 3),
        "bits_per_weight": round(result.bits_per_weight, 4),
        "data_sha256": result.data_sha256,
        "resumed_tensors": result.resumed_tensors,
        "was_done": result.was_done,
        "types": {name: {"tensors": count, "bytes": size} for name, (count, size) in result.types.items()},
    }
    return facts if divergence is None else {**facts, "divergence": divergence}


def print_summary(result: QuantizeResult) -> None:
    """The result for people."""
    if result.was_done:
        click.echo(f"{result.output} is there already, of the same inputs and options; nothing to do")
        return
    rows = [[name, str(count), mib(size)] for name, (count, size) in result.types.items()]
    print_table(["type", "tensors", "size"], rows, ("tensors", "size"))
    click.echo(
        f"{mib(result.source_bytes)} -> {mib(result.output_bytes)}, {result.bits_per_weight:.2f} bits per weight, "
        f"{result.recipe}, {result.seconds:.1f} s"
        + (f", {result.resumed_tensors} tensors of an earlier run" if result.resumed_tensors else "")
    )
    click.echo(str(result.output))


def mib(n_bytes: int) -> str:
    """A size for people."""
    return f"{n_bytes / 2**20:,.1f} MiB"
