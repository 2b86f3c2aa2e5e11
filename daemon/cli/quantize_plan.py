"""What a quantization would write, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from daemon.cli.quantize_report import mib, print_line
from runtime._native import type_traits

if TYPE_CHECKING:
    from quant.plan import QuantizePlan, TensorPlan


def show_plan(plan: QuantizePlan, *, as_json: bool, as_events: bool) -> None:
    """Print the type and size of every tensor, and the sums; `as_events`: one JSON object a line, the tensors first."""
    if as_events:
        for tensor in plan.tensors:
            print_line({"event": "planned_tensor", **_event_of(tensor)})
        facts = _facts(plan)
        del facts["tensors"], facts["types"]
        print_line({"event": "plan", **facts})
    elif as_json:
        click.echo(json.dumps(_facts(plan)))
    else:
        _print_table(plan)


def _event_of(tensor: TensorPlan) -> dict[str, Any]:
    """A tensor under the names of the wire."""
    return {
        "name": tensor.name,
        "shape": list(tensor.source.shape),
        "from_type": tensor.source.type_name,
        "to_type": type_traits(tensor.target_type)[0],
        "source_bytes": tensor.source.n_bytes,
        "output_bytes": tensor.target_bytes,
    }


def _facts(plan: QuantizePlan) -> dict[str, Any]:
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
