"""`quantd create`: make a model of the store from a Modelfile."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daemon.cli.shared import local_services, read_settings, store_options
from daemon.cli.steps import print_line, reporter

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.config import Settings
    from daemon.services.creating import LocalFiles
    from daemon.services.library import LibraryService
    from daemon.store.modelfile import Modelfile, Said
    from daemon.store.pull import Step
    from quantd.v1 import model_pb2
    from quantd.v1 import model_service_pb2 as rpc


@click.command("create")
@click.argument("name")
@click.option(
    "-f",
    "--file",
    "modelfile",
    metavar="FILE",
    default="Modelfile",
    show_default=True,
    help="The Modelfile; - for standard input.",
)
@click.option(
    "-q",
    "--quantize",
    metavar="RECIPE",
    default="",
    help="Quantize on the way, as quantd quantize does: Q4_K_M, Q8_0, auto, ...",
)
@store_options
@click.option("--json", "as_json", is_flag=True, help="Progress and result as one JSON object a line.")
def command(
    *, name: str, modelfile: str, quantize: str, config: Path | None, as_json: bool, **flags: Any
) -> None:
    """Make NAME from a Modelfile: weights, and what every request to NAME gets with them.

    \b
    A Modelfile, as Ollama's:
      FROM llama3.2:3b                  a name (downloaded if it is not here), a GGUF file, or a Hugging Face folder
      PARAMETER temperature 0.7         also num_ctx, num_predict, stop, top_k, top_p, min_p, seed, repeat_penalty, ...
      SYSTEM You are a pirate.
      MESSAGE user Who are you?         messages that go before every conversation
      MESSAGE assistant Arr!
      TEMPLATE "{{ bos_token }}..."     a Jinja chat template instead of the file's
      ADAPTER ./my-lora                 a PEFT adapter, merged into a Hugging Face folder
      LICENSE MIT

    Relative paths start at the Modelfile. Weights of the store are shared, not copied; a Hugging Face folder is converted, to the
    type that it is stored in unless --quantize says otherwise. An error names its line, and leaves what NAME was.

    \b
    Examples:
      quantd create pirate -f Modelfile
      quantd create qwen:q4 -f Modelfile --quantize Q4_K_M
      printf 'FROM qwen\\nPARAMETER num_ctx 8192\\n' | quantd create qwen-long -f -
      quantd show pirate --only modelfile
    """
    from daemon.services.creating import LocalFiles
    from daemon.store.modelfile import parse_modelfile
    from daemon.store.names import ModelName

    ModelName.parse(name)
    where = "standard input" if modelfile == "-" else modelfile
    said = parse_modelfile(_read(modelfile), where)
    for warning in said.warnings:
        click.echo(f"{where}, {warning}", err=True)
    settings = read_settings(config, **flags)
    _, library = local_services(settings)
    folder = Path() if modelfile == "-" else Path(modelfile).parent
    blamed: Said | None = None  # for whatever goes wrong meanwhile
    with reporter(as_json=as_json) as report:
        try:
            local = LocalFiles(
                _local_weights(said.source.value, folder),
                tuple(_adapter(one, folder) for one in said.adapters),
            )
            if local.weights is None and not library.has_source(said.source.value):
                blamed = said.source
                _pull(said.source.value, settings, report)
                blamed = None
            model = asyncio.run(_create(library, _request(name, quantize, said, local), local, report))
        except Exception as failure:
            raise _with_line(failure, said, where, blamed) from failure
    if as_json:
        print_line(
            {"event": "result", "name": model.name, "digest": model.digest, "size_bytes": model.size_bytes}
        )
    else:
        click.echo(f"{model.name} is in the store; quantd run {model.name} talks to it")


def _read(path: str) -> str:
    """The file's text, bounded."""
    from daemon.errors import ApiError
    from daemon.store.modelfile import MAX_MODELFILE_BYTES

    try:
        if path == "-":
            data = sys.stdin.buffer.read(MAX_MODELFILE_BYTES + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(MAX_MODELFILE_BYTES + 1)
        return data.decode()
    except UnicodeDecodeError as failure:
        line = data[: failure.start].count(b"\n") + 1
        raise ApiError("INVALID_ARGUMENT", f"{path}, line {line}: is no UTF-8 text", field="file") from None
    except OSError as failure:
        raise ApiError(
            "INVALID_ARGUMENT", f"{path}: {failure.strerror}; name a Modelfile with -f", field="file"
        ) from None


def _request(name: str, quantize: str, said: Modelfile, local: LocalFiles) -> rpc.CreateModelRequest:
    from quantd.v1 import generate_pb2 as pb
    from quantd.v1 import model_service_pb2 as rpc

    request = rpc.CreateModelRequest(name=name, quantize=quantize, licenses=said.licenses)
    if local.weights is None:
        setattr(request, "from", said.source.value)
    if said.template is not None:
        request.template = said.template.value
    if said.system is not None:
        request.system = said.system.value
    if said.parameters.ByteSize():
        request.parameters.CopyFrom(said.parameters)
    request.messages.extend(pb.ChatMessage(role=role, content=text) for role, text in said.messages)
    return request


def _local_weights(value: str, folder: Path) -> Path | None:
    """The file or folder that FROM means; None where it is a name."""
    from daemon.errors import ApiError

    path = folder / Path(value).expanduser()
    if path.is_file() or (path / "config.json").is_file():
        return path
    if value.startswith((".", "/", "~")) or value.endswith(".gguf"):
        what = "a folder without config.json" if path.is_dir() else "not there"
        raise ApiError("MODEL_NOT_FOUND", f"{value} is {what}", field="from")
    return None


def _adapter(said: Said, folder: Path) -> Path:
    from daemon.errors import ApiError

    path = folder / Path(said.value).expanduser()
    if path.name == "adapter_model.safetensors":
        path = path.parent
    if not (path / "adapter_config.json").is_file():
        raise ApiError(
            "MODEL_NOT_FOUND",
            f"{said.value} is no folder of an adapter in PEFT's form (adapter_config.json, adapter_model.safetensors)",
            field="adapter_files",
        )
    return path


def _pull(source: str, settings: Settings, report: Callable[[Step], None]) -> None:
    """Downloads a model that is not here, as `quantd pull` does."""
    import threading

    from daemon.cli.steps import interrupts
    from daemon.services.asked import catalog, runtime_settings
    from daemon.store.download import PullCancelledError
    from daemon.store.names import ModelName
    from daemon.store.places import Places
    from daemon.store.pull import pull

    store, cancel = catalog(settings).store, threading.Event()
    assert store is not None
    with interrupts(cancel):
        try:
            pull(
                store,
                ModelName.parse(source, "from"),
                places=Places(settings.hub, settings.registry, any_host=True),
                report=report,
                cancel=cancel,
                settings=runtime_settings(settings),
            )
        except PullCancelledError:
            raise KeyboardInterrupt from None


async def _create(
    library: LibraryService,
    request: rpc.CreateModelRequest,
    local: LocalFiles,
    report: Callable[[Step], None],
) -> model_pb2.Model:
    from daemon.services.call import Call
    from daemon.store.pull import Step

    async with aclosing(library.create_model(request, Call(), local)) as events:
        async for event in events:
            if event.HasField("model"):
                return event.model
            progress = event.progress
            report(Step(progress.status, "", progress.completed_bytes, progress.total_bytes))
    raise AssertionError("the model is the last event")


def _with_line(failure: Exception, said: Modelfile, where: str, blamed: Said | None) -> Exception:
    """The failure with the line of the instruction that it comes from."""
    from daemon.errors import ApiError, to_api_error

    error = to_api_error(failure)
    adapter = said.adapters[0] if said.adapters else None
    lines = {
        "from": said.source,
        "source": said.source,
        "template": said.template,
        "system": said.system,
        "adapter_files": adapter,
        "lora": adapter,
    }
    if blamed is None:
        blamed = lines.get(error.field)
    if blamed is None and error.reason == "TEMPLATE_ERROR":
        blamed = said.template
    if blamed is None and error.reason in ("INVALID_MODEL_FILE", "UNSUPPORTED_MODEL"):
        blamed = said.source
    if error.reason == "INTERNAL" or blamed is None:
        return failure
    return ApiError(
        error.reason,
        f"{where}, line {blamed.line}: {error.message}",
        field=error.field,
        details=error.details,
    )
