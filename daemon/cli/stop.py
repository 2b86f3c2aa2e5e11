"""`quantd stop`: take a model out of a running daemon's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from daemon.cli.shared import read_settings


@click.command("stop")
@click.argument("name")
@click.option("--grpc", metavar="HOST:PORT|unix:PATH", help="The daemon. Default 127.0.0.1:50051.")
@click.option("--config", type=click.Path(path_type=Path), help="TOML file of the daemon.")
def command(*, name: str, config: Path | None, **flags: Any) -> None:
    """Take NAME out of the memory of the running daemon; requests that are running end first.

    It comes back when somebody asks for it. The daemon itself goes on.

    \b
    Example:
      quantd stop llama3.2:3b
    """
    from daemon.rpc.client import ask_models
    from quantd.v1 import model_service_pb2 as rpc

    settings = read_settings(config, **flags)
    request = rpc.UnloadModelRequest(name=name, when_idle=True)
    answer = ask_models(settings.grpc, lambda stub, options: stub.UnloadModel(request, **options))
    click.echo(f"{name} goes when its requests have ended" if answer.pending else f"{name} is out of memory")
