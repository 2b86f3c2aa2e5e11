"""`quantd version`: what is installed, and which kernels this CPU gets."""

from __future__ import annotations

import importlib.metadata
import json
import platform

import click


@click.command("version")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
def command(as_json: bool) -> None:
    """Show the versions of quantd and of what it stands on.

    \b
    Examples:
      quantd version
      quantd version --json
    """
    facts = {
        "quantd": _installed("quantd"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{
            name: _installed(name)
            for name in ("grpcio", "protobuf", "numpy", "tokenizers", "fastapi", "uvicorn")
        },
    }
    if as_json:
        click.echo(json.dumps(facts))
        return
    for name, value in facts.items():
        click.echo(f"{name:<12} {value}")


def _installed(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
