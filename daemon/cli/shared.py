"""What the commands about the store share: its options, its services without a daemon, and how sizes and times look."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from daemon.config import Settings
    from daemon.services.library import LibraryService
    from daemon.services.model import ModelService

Command = TypeVar("Command", bound=Callable[..., Any])


def store_options(command: Command) -> Command:
    """--config, --store-dir and --models-dir: where the models are, as `serve` takes them."""
    for option in (
        click.option("--models-dir", metavar="DIR", help="Folder of GGUF files that are shown by name."),
        click.option(
            "--store-dir",
            metavar="DIR",
            help="Folder of the model store. Default: ~/.local/share/quantd/store.",
        ),
        click.option("--config", type=click.Path(path_type=Path), help="TOML file of the daemon."),
    ):
        command = option(command)
    return command


def read_settings(config: Path | None, **flags: Any) -> Settings:
    """The settings of these flags, of the environment and of the file."""
    from daemon.config import load

    return load(flags, config)


def local_services(settings: Settings) -> tuple[ModelService, LibraryService]:
    """The services over the store itself, for commands that need no daemon."""
    from daemon import log
    from daemon.services.build import build_services

    log.set_up(level="warning")
    services = build_services(settings)
    return services.model, services.library


def ago(unix_ms: int) -> str:
    """A time for people: "2 days ago"."""
    seconds = max(0, int(time.time() - unix_ms / 1e3))
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        count = seconds // length
        if count:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def count_of(number: int) -> str:
    """A number of parameters for people: "1.2B", "4.0M"."""
    for unit, length in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= length:
            return f"{number / length:.1f}{unit}"
    return str(number)


def print_table(columns: list[str], rows: list[list[str]], right: tuple[str, ...] = ()) -> None:
    """Columns that line up, never wrapped: what stands in them may be copied."""
    widths = [max(len(row[index]) for row in [columns, *rows]) for index in range(len(columns))]
    for row in [columns, *rows]:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())
