"""`quantd version`: what is installed, and which kernels this CPU gets."""

from __future__ import annotations

import importlib.metadata
import json
import platform

import click


@click.command("version")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
def command(as_json: bool) -> None:
    """Show the versions of quantd and of what it stands on, and which kernels run on this CPU.

    \b
    Examples:
      quantd version
      quantd version --json
    """
    from runtime._native import kernel_level, kernel_levels
    from runtime.cpu import usable_cores

    facts = {
        "quantd": _installed("quantd"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": usable_cores(),
        "kernels": kernel_level(),
        "levels": kernel_levels(),
        **{
            name: _installed(name)
            for name in ("grpcio", "protobuf", "numpy", "llguidance", "fastapi", "uvicorn")
        },
    }
    if as_json:
        click.echo(json.dumps(facts))
        return
    for name, value in facts.items():
        click.echo(f"{name:<12} {' '.join(value) if isinstance(value, list) else value}")


def _installed(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
