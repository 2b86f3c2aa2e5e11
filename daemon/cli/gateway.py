"""`quantd gateway`: the HTTP gateway alone."""

from __future__ import annotations

import click


@click.command("gateway")
@click.option("--target", required=True, metavar="HOST:PORT|unix:PATH", help="gRPC address of the daemon.")
@click.option(
    "--http", default="127.0.0.1:11434", show_default=True, metavar="HOST:PORT", help="Where to answer HTTP."
)
@click.option("--log-format", type=click.Choice(["auto", "text", "json"]), default="auto", show_default=True)
@click.option(
    "--allow-remote",
    is_flag=True,
    help="Allow an address that other machines can reach (there are no keys and no TLS).",
)
def command(target: str, http: str, log_format: str, *, allow_remote: bool) -> int:
    """Answer the OpenAI API over HTTP and pass every request on to a quantd daemon over gRPC.

    The same translation that the daemon does itself, in a process of its own.

    \b
    Examples:
      quantd gateway --target 127.0.0.1:50051 --http 127.0.0.1:8080
      quantd gateway --target unix:/run/quantd/grpc.sock
    """
    from daemon import log
    from daemon.addresses import Address

    addresses = []
    for option, text in (("--target", target), ("--http", http)):
        try:
            addresses.append(Address.parse(text))
        except ValueError as failure:
            raise click.UsageError(f"{option}: {failure}") from None
    if addresses[1].is_unix:
        raise click.UsageError("--http: HTTP needs HOST:PORT, not a unix socket")
    if not addresses[1].is_loopback and not allow_remote:
        raise click.UsageError(
            f"--http {http}: other machines could reach it, and this version has no keys and no TLS; "
            "listen on 127.0.0.1, or allow it with --allow-remote behind a proxy or firewall"
        )
    log.set_up(log_format)
    from daemon.gateway_process import serve

    return serve(addresses[0], addresses[1])
