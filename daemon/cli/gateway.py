"""`quantd gateway`: the HTTP gateway alone."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("gateway")
@click.option("--target", required=True, metavar="HOST:PORT|unix:PATH", help="gRPC address of the daemon.")
@click.option(
    "--http", default="127.0.0.1:11434", show_default=True, metavar="HOST:PORT", help="Where to answer HTTP."
)
@click.option("--log-format", type=click.Choice(["auto", "text", "json"]), default="auto", show_default=True)
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Certificate (PEM) for HTTPS.")
@click.option(
    "--tls-key", type=click.Path(path_type=Path), help="Its private key (PEM), without a passphrase."
)
@click.option(
    "--target-ca",
    type=click.Path(path_type=Path),
    help="The daemon answers TLS with a certificate of this CA.",
)
@click.option(
    "--allow-remote",
    is_flag=True,
    help="Allow an address that other machines can reach without TLS.",
)
def command(
    *,
    target: str,
    http: str,
    log_format: str,
    tls_cert: Path | None,
    tls_key: Path | None,
    target_ca: Path | None,
    allow_remote: bool,
) -> int:
    """Answer the OpenAI API over HTTP and pass every request on to a quantd daemon over gRPC.

    The same translation that the daemon does itself, in a process of its own. API keys pass through: the daemon knows them.

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
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("TLS needs both files: --tls-cert and --tls-key")
    if not addresses[1].is_loopback and tls_cert is None and not allow_remote:
        raise click.UsageError(
            f"--http {http}: other machines could reach it, and it has no TLS (--tls-cert and --tls-key); give them, "
            "listen on 127.0.0.1, or allow it with --allow-remote behind a proxy or firewall"
        )
    log.set_up(log_format)
    from daemon.gateway_process import serve
    from daemon.tls import TlsFiles

    tls = None if tls_cert is None or tls_key is None else TlsFiles(tls_cert, tls_key)
    return serve(addresses[0], addresses[1], tls=tls, target_ca=target_ca)
