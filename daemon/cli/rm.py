"""`quantd rm`: forget names of the store."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from daemon.cli.shared import local_services, read_settings, store_options
from daemon.sizes import format_size


@click.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@store_options
def command(*, names: tuple[str, ...], config: Path | None, **flags: Any) -> None:
    """Remove models from the store; what no other name uses is freed.

    A daemon that serves such a model goes on until the model leaves its memory (see `quantd stop`).

    \b
    Example:
      quantd rm llama3.2:3b
    """
    from daemon.services.call import Call
    from quantd.v1 import model_service_pb2 as rpc

    _, library = local_services(read_settings(config, **flags))

    async def remove() -> None:
        for name in names:
            freed = await library.delete_model(rpc.DeleteModelRequest(name=name), Call())
            click.echo(f"removed {name} ({format_size(freed.freed_bytes)} freed)")

    asyncio.run(remove())
