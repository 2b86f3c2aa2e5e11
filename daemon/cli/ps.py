"""`quantd ps`: the models that a running daemon has in memory."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from daemon.cli.shared import print_table, read_remote, remote_options
from daemon.keep_alive import format_keep_alive
from daemon.sizes import format_size


@click.command("ps")
@remote_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def command(*, as_json: bool, **where: Any) -> None:
    """List the models in the memory of the running daemon, the one used last first.

    \b
    Examples:
      quantd ps --grpc 127.0.0.1:50052
      QUANTD_API_KEY=... quantd ps --grpc nuc.home:50051 --ca ca.pem
    """
    from google.protobuf import json_format

    from daemon.rpc.client import ask_models
    from quantd.v1 import model_service_pb2 as rpc

    found = ask_models(
        read_remote(**where), lambda stub, options: stub.ListRunning(rpc.ListRunningRequest(), **options)
    ).models
    if as_json:
        shown = [
            json_format.MessageToDict(
                one, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
            for one in found
        ]
        click.echo(json.dumps({"models": shown}))
        return
    rows = []
    for one in found:
        left_s = one.expires_unix_ms / 1e3 - time.time()
        until = format_keep_alive(left_s) if one.expires_unix_ms else "for ever"
        rows.append(
            [
                one.model.name,
                format_size(one.memory_bytes),
                format_size(one.kv_arena_bytes),
                str(one.model.session_context_tokens),
                str(one.num_requests),
                until,
            ]
        )
    print_table(
        ["NAME", "MEMORY", "KV ARENA", "CONTEXT", "REQUESTS", "STAYS"],
        rows,
        ("MEMORY", "KV ARENA", "CONTEXT", "REQUESTS"),
    )
