"""`quantd pull`: download a model into the store."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import click

from daemon.cli.shared import read_settings, store_options
from daemon.cli.steps import interrupts, print_line, reporter


@click.command("pull")
@click.argument("name")
@store_options
@click.option("--as", "as_name", metavar="NAME", help="Name to store it under. Default: the same.")
@click.option("--sessions", metavar="N", help="Sessions that the memory plan counts with. Default 4.")
@click.option("--context", metavar="N", help="Tokens of one session that the plan counts with.")
@click.option("--kv-type", metavar="f16|q8_0", help="Type of cached keys and values. Default f16.")
@click.option("--force", is_flag=True, help="Download it even where the memory plan does not fit.")
@click.option("--json", "as_json", is_flag=True, help="Progress and result as one JSON object a line.")
def command(
    *, name: str, config: Path | None, as_name: str | None, force: bool, as_json: bool, **flags: Any
) -> None:
    """Download NAME into the store: from the Hugging Face Hub, or from an Ollama registry.

    Of a Hub repository the tag names the quantization; without one, the best that small machines run is taken. Free
    disk and the memory plan are checked first. What was fetched before an interruption is not fetched again, and every file
    is checked against its sha256. HF_TOKEN opens gated repositories.

    \b
    Examples:
      quantd pull hf.co/bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M
      quantd pull hf.co/Qwen/Qwen2.5-1.5B-Instruct-GGUF --as qwen
      quantd pull llama3.2:3b
    """
    from daemon import log
    from daemon.services.asked import catalog, runtime_settings
    from daemon.store.download import PullCancelledError
    from daemon.store.names import ModelName
    from daemon.store.places import Places
    from daemon.store.pull import pull

    log.set_up(level="warning")
    settings = read_settings(config, **flags)
    store = catalog(settings).store
    assert store is not None
    cancel = threading.Event()
    with interrupts(cancel), reporter(as_json=as_json) as report:
        try:
            final = pull(
                store,
                ModelName.parse(name),
                places=Places(settings.hub, settings.registry, any_host=True),
                report=report,
                cancel=cancel,
                as_name=ModelName.parse(as_name, "as") if as_name else None,
                settings=None if force else runtime_settings(settings),
            )
        except PullCancelledError:
            raise KeyboardInterrupt from None
    stored = store.find(final)
    assert stored is not None
    if as_json:
        print_line(
            {
                "event": "result",
                "name": str(final),
                "digest": f"sha256:{stored.manifest.digest}",
                "size_bytes": stored.manifest.size_bytes,
                "source": stored.manifest.source,
            }
        )
    else:
        click.echo(f"{final} is in the store; quantd run {final} talks to it")
