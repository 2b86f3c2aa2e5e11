"""How commands that fetch or make models show their steps, and how they stop."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from daemon.store.pull import Step


@contextlib.contextmanager
def interrupts(cancel: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the download at a sound place; a second one ends the program."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous: dict[int, Any] = {}

    def stop(number: int, _frame: object) -> None:
        cancel.set()
        signal.signal(number, previous[number])

    for wanted in (signal.SIGINT, signal.SIGTERM):
        previous[wanted] = signal.signal(wanted, stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def reporter(*, as_json: bool) -> Iterator[Callable[[Step], None]]:
    """Lines for programs, a bar on a terminal, the beginning of each step otherwise."""
    if as_json:
        yield _Lines()
        return
    if not sys.stderr.isatty():
        yield _Words()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def report(step: Step) -> None:
            if not step.total_bytes:
                bars.console.print(step.status, markup=False, highlight=False)
                return
            key = step.digest or step.status
            if key not in tasks:
                tasks[key] = bars.add_task(step.status.replace("[", "("), total=step.total_bytes)
            bars.update(tasks[key], completed=step.completed_bytes)

        yield report


class _Lines:
    """At most ten lines a second, and the last of each blob."""

    def __init__(self) -> None:
        self._shown = ("", "")
        self._shown_s = 0.0

    def __call__(self, step: Step) -> None:
        import time

        key, now_s = (step.status, step.digest), time.monotonic()
        if key == self._shown and now_s - self._shown_s < 0.1 and step.completed_bytes != step.total_bytes:
            return
        self._shown, self._shown_s = key, now_s
        print_line(
            {
                "event": "progress",
                "status": step.status,
                "digest": f"sha256:{step.digest}" if step.digest else "",
                "completed_bytes": step.completed_bytes,
                "total_bytes": step.total_bytes,
            }
        )


class _Words:
    """Each step once, on standard error."""

    def __init__(self) -> None:
        self._shown = ""

    def __call__(self, step: Step) -> None:
        if step.status != self._shown:
            self._shown = step.status
            click.echo(step.status, err=True)


def print_line(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()
