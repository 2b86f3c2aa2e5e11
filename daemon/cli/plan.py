"""`quantd plan`: what memory serving a model takes, before anything is loaded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from daemon.sizes import parse_size

EXIT_DOES_NOT_FIT = 75


def _size(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command("plan")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--sessions", type=click.IntRange(1, 256), default=4, show_default=True, help="Requests at once."
)
@click.option(
    "--context", type=click.IntRange(1), help="Tokens of one session. [default: what fits, at most 4096]"
)
@click.option(
    "--kv-budget",
    callback=_size,
    metavar="SIZE",
    help="Size of the KV arena, such as 512MiB. [default: at most 1GiB]",
)
@click.option("--kv-type", type=click.Choice(["f16", "q8_0"]), default="f16", show_default=True)
@click.option(
    "--threads", type=click.IntRange(1, 256), help="Threads of the native core. [default: usable cores]"
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def command(
    *,
    model: Path,
    sessions: int,
    context: int | None,
    kv_budget: int | None,
    kv_type: str,
    threads: int | None,
    as_json: bool,
) -> int:
    """Say what memory serving MODEL takes, and whether this machine has it.

    Loads nothing. Ends with exit code 75 where the plan does not fit, and says what would.

    \b
    Examples:
      quantd plan model-q4.gguf
      quantd plan model-q4.gguf --sessions 8 --context 8192 --kv-type q8_0
      quantd plan model-q4.gguf --json | jq .total_bytes
    """
    from runtime.gguf import ModelFile
    from runtime.memory import RuntimeSettings, plan_memory
    from runtime.model import read_config

    file = ModelFile.open(model)
    settings = RuntimeSettings(
        sessions=sessions,
        context_tokens=context,
        kv_budget_bytes=kv_budget,
        kv_type=kv_type,
        threads=threads,
    )
    plan = plan_memory(file, read_config(file), settings)
    if as_json:
        click.echo(json.dumps({"model": str(model), **dataclasses.asdict(plan)}))
    else:
        click.echo(plan.explanation)
    return 0 if plan.fits else EXIT_DOES_NOT_FIT
