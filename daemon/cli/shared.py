"""What the commands about the store share: its options, its services without a daemon, and how sizes and times look."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from daemon.config import Settings
    from daemon.rpc.client import Remote
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


def remote_options(command: Command) -> Command:
    """Where the running daemon is, and how it is talked to."""
    path = click.Path(path_type=Path)
    for option in (
        click.option(
            "--key-file", type=path, help="File that holds the API key. Default: the variable QUANTD_API_KEY."
        ),
        click.option(
            "--client-key", type=path, envvar="QUANTD_CLIENT_KEY", help="Private key of --client-cert (PEM)."
        ),
        click.option(
            "--client-cert",
            type=path,
            envvar="QUANTD_CLIENT_CERT",
            help="Certificate to show to a daemon that asks for one (PEM).",
        ),
        click.option(
            "--ca",
            type=path,
            envvar="QUANTD_CA",
            help="Talk TLS; the daemon's certificate is signed by this one (PEM).",
        ),
        click.option(
            "--tls", is_flag=True, help="Talk TLS; the daemon's certificate is one that this system trusts."
        ),
        click.option("--config", type=path, help="TOML file of the daemon."),
        click.option("--grpc", metavar="HOST:PORT|unix:PATH", help="The daemon. Default 127.0.0.1:50051."),
    ):
        command = option(command)
    return command


def read_remote(  # noqa: PLR0917 - one parameter an option
    grpc: str | None,
    config: Path | None,
    ca: Path | None,
    client_cert: Path | None,
    client_key: Path | None,
    key_file: Path | None,
    *,
    tls: bool,
) -> Remote:
    """The daemon that these options mean; with TLS also where the daemon's own configuration has it."""
    import os

    from daemon.rpc.client import Remote

    settings = read_settings(config, grpc=grpc)
    if (client_cert is None) != (client_key is None):
        raise click.UsageError("a client certificate needs both files: --client-cert and --client-key")
    api_key = os.environ.get("QUANTD_API_KEY", "")
    if key_file is not None:
        try:
            api_key = key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as failure:
            raise click.UsageError(f"--key-file {key_file}: {failure}") from None
    if not api_key.isascii() or not api_key.isprintable():
        raise click.UsageError("the API key holds characters that no key has")
    own = settings.tls_cert if ca is None and not tls else None  # a certificate that signed itself
    secure = tls or ca is not None or client_cert is not None or own is not None
    return Remote(settings.grpc, api_key, secure, ca or own, client_cert, client_key)


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
