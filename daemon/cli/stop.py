"""`quantd stop`: take a model out of a running daemon's memory."""

from __future__ import annotations

from typing import Any

import click

from daemon.cli.shared import read_remote, remote_options


@click.command("stop")
@click.argument("name")
@remote_options
def command(*, name: str, **where: Any) -> None:
    """Take NAME out of the memory of the running daemon; requests that are running end first.

    It comes back when somebody asks for it. The daemon itself goes on.

    \b
    Examples:
      quantd stop llama3.2:3b
      quantd stop llama3.2:3b --grpc nuc.home:50051 --ca ca.pem --key-file key
    """
    from daemon.rpc.client import ask_models
    from quantd.v1 import model_service_pb2 as rpc

    request = rpc.UnloadModelRequest(name=name, when_idle=True)
    answer = ask_models(read_remote(**where), lambda stub, options: stub.UnloadModel(request, **options))
    click.echo(f"{name} goes when its requests have ended" if answer.pending else f"{name} is out of memory")
