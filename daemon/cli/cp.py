"""`quantd cp`: a second name for a model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from daemon.cli.shared import local_services, read_settings, store_options


@click.command("cp")
@click.argument("source")
@click.argument("destination")
@store_options
def command(*, source: str, destination: str, config: Path | None, **flags: Any) -> None:
    """Give SOURCE a second name, DESTINATION.

    Models of the store share their files, so this takes no space. A file of the model folder is copied into the store.

    \b
    Examples:
      quantd cp llama3.2:3b assistant
      quantd cp my-model my-model:backup --models-dir /srv/models
    """
    from daemon.services.call import Call
    from quantd.v1 import model_service_pb2 as rpc

    _, library = local_services(read_settings(config, **flags))
    request = rpc.CopyModelRequest(source=source, destination=destination)
    asyncio.run(library.copy_model(request, Call()))
    click.echo(f"{destination} is {source}")
