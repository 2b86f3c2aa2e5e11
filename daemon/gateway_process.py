"""The HTTP gateway as a process of its own, in front of a daemon that it reaches over gRPC."""

from __future__ import annotations

import asyncio
import signal
import sys

import click

from daemon.addresses import Address, listen
from daemon.gateway import create_app
from daemon.gateway.guard import LOOPBACK_HOSTS
from daemon.gateway.remote import RemoteBackend
from daemon.http_server import HttpServer


def serve(target: Address, http: Address) -> int:
    """Runs until SIGTERM or SIGINT; returns the exit code.  Raises ApiError if the address is taken."""
    return asyncio.run(_serve(target, http))


async def _serve(target: Address, http: Address) -> int:
    listener = listen(http, "HTTP")
    address = http.with_port(listener.getsockname()[1])
    backend = RemoteBackend(str(target))
    server = HttpServer(
        create_app(backend, allowed_hosts=LOOPBACK_HOSTS if http.is_loopback else None), listener
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await server.start()
    click.echo(f"quantd gateway to {target}")
    click.echo(f"  OpenAI API  http://{address}/v1")
    click.echo(f"  API page    http://{address}/docs")
    sys.stdout.flush()
    await stop.wait()
    await server.stop()
    await backend.close()
    return 0
