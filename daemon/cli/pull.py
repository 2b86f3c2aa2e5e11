"""`quantd pull`: download a model into the store."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daemon.cli.shared import read_settings, store_options

if TYPE_CHECKING:
    from daemon.store.pull import Step


@click.command("pull")
@click.argument("name")
@store_options
@click.option("--as", "as_name", metavar="NAME", help="Name to store it under. Default: the same.")
@click.option("--sessions", metavar="N", help="Sessions that the memory plan counts with. Default 4.")
@click.option("--context", metavar="N", help="Tokens of one session that the plan counts with.")
@click.option("--kv-type", metavar="f16|q8_0", help="Type of cached keys and values. Default f16.")
@click.option("--force", is_flag=True, help="Download it even where the memory plan does not fit.")
@click.option("--json", "as_json", is_flag=True, help="Progress and result as one JSON object a line.")
def command(
    *, name: str, config: Path | None, as_name: str | None, force: bool, as_json: bool, **flags: Any
) -> None:
    """Download NAME into the store: from the Hugging Face Hub, or from an Ollama registry.

    Of a Hub repository the tag names the quantization; without one, the best that small machines run is taken. Free
    disk and the memory plan are checked first. What was fetched before an interruption is not fetched again, and every file
    is checked against its sha256. HF_TOKEN opens gated repositories.

    \b
    Examples:
      quantd pull hf.co/bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M
      quantd pull hf.co/Qwen/Qwen2.5-1.5B-Instruct-GGUF --as qwen
      quantd pull llama3.2:3b
    """
    from daemon import log
    from daemon.services.build import catalog, runtime_settings
    from daemon.store.download import PullCancelledError
    from daemon.store.names import ModelName
    from daemon.store.pull import Places, pull

    log.set_up(level="warning")
    settings = read_settings(config, **flags)
    store = catalog(settings).store
    assert store is not None
    cancel = threading.Event()
    with _interrupts(cancel), _reporter(as_json=as_json) as report:
        try:
            final = pull(
                store,
                ModelName.parse(name),
                places=Places(settings.hub, settings.registry, any_host=True),
                report=report,
                cancel=cancel,
                as_name=ModelName.parse(as_name, "as") if as_name else None,
                settings=None if force else runtime_settings(settings),
            )
        except PullCancelledError:
            raise KeyboardInterrupt from None
    stored = store.find(final)
    assert stored is not None
    if as_json:
        _print_line(
            {
                "event": "result",
                "name": str(final),
                "digest": f"sha256:{stored.manifest.digest}",
                "size_bytes": stored.manifest.size_bytes,
                "source": stored.manifest.source,
            }
        )
    else:
        click.echo(f"{final} is in the store; quantd run {final} talks to it")


@contextlib.contextmanager
def _interrupts(cancel: threading.Event) -> Iterator[None]:
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
def _reporter(*, as_json: bool) -> Iterator[Callable[[Step], None]]:
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
            if not step.digest:
                bars.console.print(step.status, markup=False, highlight=False)
                return
            if step.digest not in tasks:
                tasks[step.digest] = bars.add_task(step.status.replace("[", "("), total=step.total_bytes)
            bars.update(tasks[step.digest], completed=step.completed_bytes)

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
        _print_line(
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


def _print_line(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()
