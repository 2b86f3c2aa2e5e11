"""`quantd plan`: what memory serving a model takes, before anything is loaded."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daemon.cli.shared import read_settings, store_options
from daemon.sizes import format_size, parse_size

if TYPE_CHECKING:
    from daemon.config import Settings
    from daemon.store.offer import Variant
    from runtime.gguf import ModelFile
    from runtime.memory import MemoryPlan, RuntimeSettings

EXIT_DOES_NOT_FIT = 75


def _size(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command("plan")
@click.argument("model")
@store_options
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
    model: str,
    config: Path | None,
    sessions: int,
    context: int | None,
    kv_budget: int | None,
    kv_type: str,
    threads: int | None,
    as_json: bool,
    **flags: Any,
) -> int:
    """Say what memory serving MODEL takes, and whether this machine has it.

    MODEL is a GGUF file, a name of the store or the model folder, or a model that is not here yet: of that only the
    beginning of its file is read. Loads nothing. Ends with exit code 75 where the plan does not fit, and says what would: the
    largest context, the most sessions, and which quantization (of those that the Hub has, or of those that `quantd quantize`
    could make from an F32, F16 or BF16 file).

    \b
    Examples:
      quantd plan model-q4.gguf
      quantd plan model-q4.gguf --sessions 8 --context 8192 --kv-type q8_0
      quantd plan model-q4.gguf --json | jq .total_bytes
      quantd plan hf.co/Qwen/Qwen2.5-7B-Instruct-GGUF --sessions 2
    """
    from runtime.memory import RuntimeSettings

    settings = RuntimeSettings(
        sessions=sessions,
        context_tokens=context,
        kv_budget_bytes=kv_budget,
        kv_type=kv_type,
        threads=threads,
    )
    plan, variants = _plan(model, settings, read_settings(config, **flags))
    rest_bytes = plan.total_bytes - plan.weights_bytes
    table: list[dict[str, Any]] = [
        {
            "quantization": variant.quant,
            "size_bytes": variant.size_bytes,
            "fits": variant.size_bytes + rest_bytes <= plan.available_bytes,
        }
        for variant in sorted(variants, key=lambda one: one.size_bytes)
    ]
    if as_json:
        click.echo(json.dumps({"model": model, **dataclasses.asdict(plan), "variants": table}))
    else:
        click.echo(plan.explanation)
        if table:
            click.echo("Quantizations of this model:")
        for one in table:
            fits = "fits" if one["fits"] else "does not fit"
            click.echo(f"  {one['quantization']:<10} {format_size(one['size_bytes']):>10}  {fits}")
    return 0 if plan.fits else EXIT_DOES_NOT_FIT


def _plan(model: str, settings: RuntimeSettings, daemon: Settings) -> tuple[MemoryPlan, Sequence[Variant]]:
    """The plan of a file, of a name, or of a model elsewhere; and what else could be made or had of it."""
    from daemon.services.asked import catalog
    from daemon.store.names import ModelName
    from daemon.store.places import Places
    from daemon.store.pull import remote_plan
    from runtime.gguf import ModelFile
    from runtime.memory import plan_memory
    from runtime.model import read_config, settings_for

    path = Path(model)
    name = None if model.endswith(".gguf") else ModelName.find(model)
    if not path.exists() and name is not None:
        entry = catalog(daemon).find(model)
        if entry is None:
            return remote_plan(name, Places(daemon.hub, daemon.registry, any_host=True), settings)
        path = entry.path
    file = ModelFile.open(path)
    config = read_config(file)
    return plan_memory(file, config, settings_for(config, settings)), _recipes(file)


def _recipes(file: ModelFile) -> list[Variant]:
    """What `quantd quantize` would make of a file that is not quantized."""
    from daemon.store.offer import Variant
    from quant.plan import plan_quantization
    from quant.recipes import FLOATS, RECIPES
    from quant.source import open_gguf
    from runtime.errors import QuantdError

    if any(tensor.type_id not in FLOATS for tensor in file.tensors.values()):
        return []
    source = open_gguf(file.path)
    found = []
    for name, recipe in RECIPES.items():
        try:
            found.append(Variant(name, plan_quantization(source, recipe).output_bytes))
        except QuantdError:
            continue  # a recipe that is not for this model
    return found
