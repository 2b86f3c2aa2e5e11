"""`quantd list`: the models that can be served by name."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import click

from daemon.cli.shared import ago, count_of, local_services, print_table, read_settings, store_options
from daemon.sizes import format_size


@click.command("list")
@store_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def command(*, config: Path | None, as_json: bool, **flags: Any) -> None:
    """List the models of the store and of the model folder.

    \b
    Examples:
      quantd list
      quantd list --json | jq -r '.models[].name'
    """
    from google.protobuf import json_format

    from daemon.quantization_name import quantization_name
    from daemon.services.call import Call
    from quantd.v1 import model_service_pb2 as rpc

    models, _ = local_services(read_settings(config, **flags))
    found = asyncio.run(models.list_models(rpc.ListModelsRequest(), Call())).models
    if as_json:
        shown = [
            json_format.MessageToDict(
                model, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
            for model in found
        ]
        click.echo(json.dumps({"models": shown}))
        return
    rows = [
        [
            model.name,
            model.digest.removeprefix("sha256:")[:12] or "(file)",
            format_size(model.size_bytes),
            count_of(model.num_parameters),
            quantization_name(model),
            ago(model.modified_unix_ms),
        ]
        for model in found
    ]
    print_table(["NAME", "ID", "SIZE", "PARAMETERS", "TYPE", "MODIFIED"], rows, ("SIZE", "PARAMETERS"))
