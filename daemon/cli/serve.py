"""`quantd serve`: the daemon."""

from __future__ import annotations

import faulthandler
import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from daemon.config import Settings
    from daemon.head_start import HeadStart


@click.command("serve")
@click.argument("model", required=False)
@click.option(
    "--config", type=click.Path(path_type=Path), help="TOML file; default /etc/quantd/quantd.toml if there."
)
@click.option("--http", metavar="HOST:PORT", help="OpenAI API, metrics, health. Default 127.0.0.1:11434.")
@click.option("--grpc", metavar="HOST:PORT|unix:PATH", help="gRPC. Default 127.0.0.1:50051.")
@click.option("--models-dir", metavar="DIR", help="Folder of GGUF files that clients may name.")
@click.option(
    "--output-dir", metavar="DIR", help="Folder for quantizations of clients. Default: the models folder."
)
@click.option(
    "--store-dir", metavar="DIR", help="Folder of the model store. Default: ~/.local/share/quantd/store."
)
@click.option(
    "--kv-budget", metavar="SIZE", help="Memory for the KV arena, such as 1GiB. Default: 1GiB or less."
)
@click.option("--kv-type", metavar="f16|q8_0", help="Type of cached keys and values. Default f16.")
@click.option(
    "--prefix-cache",
    metavar="on|off",
    help="Compute a beginning that requests have in common once. Default on.",
)
@click.option(
    "--speculate",
    metavar="auto|off",
    help="Guess tokens of answers that repeat text, where that is faster; the answer stays the same. Default auto.",
)
@click.option("--sessions", metavar="N", help="Requests that run at the same time, 1 to 256. Default 4.")
@click.option(
    "--context",
    metavar="N",
    help="Tokens of one session. Default: what the model and the arena give, at most 4096.",
)
@click.option("--threads", metavar="N", help="Compute threads. Default: the cores this process may use.")
@click.option("--max-waiting", metavar="N", help="Requests that may wait for a session. Default 64.")
@click.option("--max-models", metavar="N", help="Models in memory at once, 1 to 16. Default 3.")
@click.option(
    "--keep-alive",
    metavar="TIME",
    help="How long an idle model stays that a request loaded, such as 10m; -1 for ever. Default 5m.",
)
@click.option(
    "--load-timeout", metavar="S", help="Longest wait of a request for its model to be loaded. Default 300."
)
@click.option(
    "--engine-failure",
    metavar="unload|exit",
    help="When the engine of one of several models fails: take that model out of memory, or end. Default unload.",
)
@click.option(
    "--max-waiting-tokens", metavar="N", help="Prompt tokens that may wait for a session. Default 262144."
)
@click.option(
    "--max-wait-seconds", metavar="S", help="How long a request may wait for a session. Default 600."
)
@click.option(
    "--keys-file", metavar="FILE", help="API keys, made by `quantd key add`. Default: no key is needed."
)
@click.option("--tls-cert", metavar="FILE", help="Certificate (PEM) for both listeners.")
@click.option("--tls-key", metavar="FILE", help="Its private key (PEM), without a passphrase.")
@click.option(
    "--tls-client-ca", metavar="FILE", help="Clients must show a certificate that this CA signed (PEM)."
)
@click.option(
    "--origins",
    metavar="LIST",
    help="Web pages of other origins that may ask, such as https://chat.example,chrome-extension://*.",
)
@click.option(
    "--drain-seconds", metavar="S", help="Time that running requests get after SIGTERM. Default 20."
)
@click.option("--log-format", metavar="auto|text|json", help="Default: text on a terminal, else JSON.")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error. Default info.")
@click.option(
    "--allow-remote",
    is_flag=True,
    default=None,
    help="Allow addresses that other machines can reach without keys and TLS.",
)
def command(config: Path | None, **flags: Any) -> int:
    """Serve MODEL, a GGUF file or a name in the model folder, over gRPC and the OpenAI API.

    Other models of the folder are loaded when a request first names them, as far as the memory goes: idle ones make room,
    the one used least recently first.

    Every option is also a key of the TOML file (kv_budget = "1GiB") and a variable (QUANTD_KV_BUDGET=1GiB).
    Options win over variables, variables over the file. Where nothing of ours is set, OLLAMA_HOST, _ORIGINS, _MODELS (a folder
    in it), _KEEP_ALIVE, _LOAD_TIMEOUT, _MAX_QUEUE, _KV_CACHE_TYPE, _NUM_PARALLEL, _MAX_LOADED_MODELS, _CONTEXT_LENGTH, _DEBUG
    and _MAX_KV_CACHE count.

    \b
    Examples:
      quantd serve model.gguf
      quantd serve model.gguf --kv-budget 2GiB --sessions 8
      quantd serve --models-dir /srv/models --grpc unix:/run/quantd/grpc.sock
    \b
    Then:
      curl http://127.0.0.1:11434/v1/chat/completions -H 'Content-Type: application/json' \\
        -d '{"model": "model", "messages": [{"role": "user", "content": "Hello!"}]}'
    """
    # A start makes hundreds of thousands of objects that stay: looking for garbage among them takes a tenth of it.  The
    # daemon sets them aside and turns the collector on again when it serves.
    gc.disable()
    # Before the first file is mapped: its guard of SIGBUS stands in front of this, and the other way round a model that is
    # cut would end the process.  Enabled once, it stays as it is.
    faulthandler.enable()
    # pydantic would read the metadata of every installed package for plugins that nobody wants here.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from daemon.addresses import require_free
    from daemon.config import load

    settings = load(flags, config)
    # Before the seconds that it takes to import the rest; the daemon itself checks again when it binds.
    for address, what in ((settings.http, "HTTP"), (settings.grpc, "gRPC")):
        require_free(address, what)
    begun = _begin_load(settings)  # before all other imports, which it runs beside
    from daemon import log

    log.set_up(settings.log_format, settings.log_level)
    from daemon.app import serve

    return serve(settings, None if begun is None else begun.load_model)


def _begin_load(settings: Settings) -> HeadStart | None:
    """Loads the model beside the imports that are still to come; None where none is to be served from the start."""
    from daemon.services.asked import find_model, runtime_settings

    entry = find_model(settings)
    if entry is None:
        return None
    from daemon.head_start import HeadStart

    return HeadStart(entry.path, runtime_settings(settings))
