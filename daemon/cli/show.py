"""`quantd show`: everything about one model."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daemon.cli.shared import count_of, local_services, read_settings, store_options
from daemon.sizes import format_size

if TYPE_CHECKING:
    from quantd.v1 import model_service_pb2 as rpc

PARTS = ("modelfile", "template", "system", "license", "parameters")


@click.command("show")
@click.argument("name")
@store_options
@click.option("--only", type=click.Choice(PARTS), help="Print this part alone, as it is.")
@click.option("--verbose", is_flag=True, help="With --json: metadata arrays and the tensors too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def command(
    *, name: str, config: Path | None, only: str | None, verbose: bool, as_json: bool, **flags: Any
) -> None:
    """Show what NAME is: its file, defaults, template, system text, licenses.

    \b
    Examples:
      quantd show llama3.2
      quantd show llama3.2 --only template
      quantd show llama3.2 --only modelfile > Modelfile
      quantd show llama3.2 --json | jq .parameters
    """
    from google.protobuf import json_format

    from daemon.services.call import Call
    from quantd.v1 import model_service_pb2 as rpc

    _, library = local_services(read_settings(config, **flags))
    shown = asyncio.run(library.show_model(rpc.ShowModelRequest(name=name, verbose=verbose), Call()))
    facts = json_format.MessageToDict(shown, preserving_proto_field_name=True)
    if as_json:
        facts["metadata"] = {key: json.loads(value) for key, value in facts.pop("metadata_json", {}).items()}
        click.echo(json.dumps(facts))
    elif only:
        click.echo(_part(shown, facts, only))
    else:
        _print(shown, facts)


def _part(shown: rpc.ShowModelResponse, facts: dict[str, Any], only: str) -> str:
    if only == "modelfile":
        from daemon.store.modelfile import modelfile_text

        return modelfile_text(shown).rstrip("\n")
    if only == "license":
        return "\n\n".join(shown.licenses)
    if only == "parameters":
        return json.dumps(facts.get("parameters", {}), indent=2)
    return shown.template if only == "template" else shown.system


def _print(shown: rpc.ShowModelResponse, facts: dict[str, Any]) -> None:
    from daemon.quantization_name import quantization_name

    model = shown.model
    lines = {
        "name": model.name,
        "digest": model.digest or "(a file of the model folder)",
        "source": shown.source,
        "architecture": model.architecture,
        "parameters": count_of(model.num_parameters),
        "type": quantization_name(model),
        "size": format_size(model.size_bytes),
        "context": f"{model.context_length} tokens",
        "vocabulary": f"{model.vocab_size} tokens",
        "template": ("its own" if shown.template_is_override else "of the file")
        if shown.template
        else "none",
        "system": shown.system[:100],
        "messages": f"{len(shown.messages)} before every conversation" if shown.messages else "",
        "license": (shown.licenses[0].strip().splitlines() or [""])[0][:100] if shown.licenses else "",
    }
    for key, value in lines.items():
        if value:
            click.echo(f"{key:<13} {''.join(c if c.isprintable() else ' ' for c in value)}")
    if facts.get("parameters"):
        click.echo(f"{'defaults':<13} {json.dumps(facts['parameters'])}")
