"""The HTTP gateway as a process of its own, in front of a daemon that it reaches over gRPC."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import click

from daemon.addresses import Address, listen
from daemon.gateway import create_app
from daemon.gateway.guard import LOOPBACK_HOSTS
from daemon.gateway.remote import RemoteBackend
from daemon.http_server import HttpServer
from daemon.tls import TlsFiles, client_credentials


def serve(
    target: Address, http: Address, *, tls: TlsFiles | None = None, target_ca: Path | None = None
) -> int:
    """Runs until SIGTERM or SIGINT; returns the exit code.

    `tls`: answer HTTPS; `target_ca`: the CA of the daemon's certificate, None to talk to it without TLS.  Raises ApiError if
    the address is taken or a file cannot be used.
    """
    return asyncio.run(_serve(target, http, tls, target_ca))


async def _serve(target: Address, http: Address, tls: TlsFiles | None, target_ca: Path | None) -> int:
    credentials = None if target_ca is None else client_credentials(target_ca)
    if tls is not None:
        tls.check()
    listener = listen(http, "HTTP")
    address = http.with_port(listener.getsockname()[1])
    backend = RemoteBackend(str(target), credentials)
    server = HttpServer(
        create_app(backend, allowed_hosts=LOOPBACK_HOSTS if http.is_loopback else None), listener, tls
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await server.start()
    click.echo(f"quantd gateway to {target}")
    scheme = "http" if tls is None else "https"
    click.echo(f"  OpenAI API  {scheme}://{address}/v1")
    click.echo(f"  API page    {scheme}://{address}/docs")
    sys.stdout.flush()
    await stop.wait()
    await server.stop()
    await backend.close()
    return 0
