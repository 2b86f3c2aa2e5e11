"""What a quantization would write, as a table for people and as JSON for programs."""

from __future__ import annotations

import json

import click

from quant.plan import QuantizePlan
from runtime._native import type_traits


def show_plan(plan: QuantizePlan, *, as_json: bool) -> None:
    """Print the type and size of every tensor, and the sums."""
    if as_json:
        click.echo(json.dumps(_facts(plan)))
    else:
        _print_table(plan)


def mib(n_bytes: int) -> str:
    """A size for people."""
    return f"{n_bytes / 2**20:,.1f} MiB"


def _facts(plan: QuantizePlan) -> dict[str, object]:
    return {
        "recipe": plan.recipe.name,
        "output_bytes": plan.output_bytes,
        "source_bytes": plan.source_bytes,
        "bits_per_weight": round(plan.bits_per_weight, 4),
        "types": {name: {"tensors": count, "bytes": size} for name, (count, size) in plan.types().items()},
        "tensors": [
            {
                "name": tensor.name,
                "shape": list(tensor.source.shape),
                "from": tensor.source.type_name,
                "to": type_traits(tensor.target_type)[0],
                "source_bytes": tensor.source.n_bytes,
                "bytes": tensor.target_bytes,
            }
            for tensor in plan.tensors
        ],
    }


def _print_table(plan: QuantizePlan) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title, justify in (("tensor", "left"), ("shape", "right"), ("from", "left"), ("to", "left")):
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for tensor in plan.tensors:
        source = tensor.source
        shape = " x ".join(map(str, source.shape))
        target = type_traits(tensor.target_type)[0]
        table.add_row(
            tensor.name, shape, source.type_name, target, mib(source.n_bytes), mib(tensor.target_bytes)
        )
    console = Console()
    console.print(table)
    console.print(
        f"{mib(plan.source_bytes)} -> {mib(plan.output_bytes)}, {plan.bits_per_weight:.2f} bits per weight, "
        f"{plan.recipe.name}; nothing was written",
        highlight=False,
    )
