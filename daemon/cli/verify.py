"""`quantd verify`: is a model file whole?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from quant.verify import MAX_FAULTS, Verification, verify


@click.command("verify")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(file: Path, *, as_json: bool) -> None:
    """Check a GGUF file: its structure, that every block's numbers are finite, and its checksum where it has one.

    Exits with status 1 where the file is damaged.

    \b
    Examples:
      quantd verify model-q4.gguf
      quantd verify model-q4.gguf --json
    """
    result = verify(file)
    if as_json:
        click.echo(json.dumps({**asdict(result), "sound": result.is_sound}))
    else:
        _print(file, result)
    if not result.is_sound:
        raise click.exceptions.Exit(1)


def _print(file: Path, result: Verification) -> None:
    checksum = {
        "ok": "data checksum right",
        "wrong": "data checksum WRONG",
        "none": "no checksum in the file",
    }
    click.echo(f"{file}: {result.tensors} tensors, {result.n_bytes:,} bytes, {checksum[result.checksum]}")
    for fault in result.faults[:MAX_FAULTS]:
        click.echo(
            f"tensor {fault.tensor}: {fault.n_blocks} block(s) not finite, the first is block {fault.block} at byte {fault.offset}"
        )
    if len(result.faults) > MAX_FAULTS:
        click.echo(f"and {len(result.faults) - MAX_FAULTS} more tensors")
    if result.unchecked:
        click.echo(f"blocks of these types were not looked at: {', '.join(result.unchecked)}")
    click.echo("sound" if result.is_sound else "DAMAGED: get the file again, or quantize again")
