"""`quantd key`: API keys in a file."""

from __future__ import annotations

import json
from pathlib import Path

import click

FILE = click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("/etc/quantd/keys.toml"),
    show_default=True,
    help="The file that `quantd serve --keys-file` names.",
)


@click.group("key")
def command() -> None:
    """Make, list and remove the API keys of a daemon.

    The file holds hashes only, and a running daemon reads it again within a second of a change. A key is shown once,
    when it is made.

    \b
    Examples:
      quantd key add ci --file keys.toml --max-sessions 2 --tokens-per-minute 6000
      quantd key add admin --file keys.toml --manage
      quantd key list --file keys.toml
      quantd key remove ci --file keys.toml
      quantd serve model.gguf --keys-file keys.toml
    """


@command.command("add")
@click.argument("name")
@FILE
@click.option(
    "--max-sessions", type=click.IntRange(1, 256), help="Requests that run at the same time; more wait."
)
@click.option(
    "--max-waiting", type=click.IntRange(0, 4096), help="Requests that may wait; one more is refused."
)
@click.option("--tokens-per-minute", type=click.IntRange(1, 10**9), help="Prompt and answer together.")
@click.option(
    "--priority", type=click.IntRange(-10, 10), default=0, show_default=True, help="Higher is served first."
)
@click.option(
    "--manage", is_flag=True, help="May also load, unload, pull, create, delete and quantize models."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def add(
    *,
    name: str,
    path: Path,
    max_sessions: int | None,
    max_waiting: int | None,
    tokens_per_minute: int | None,
    priority: int,
    manage: bool,
    as_json: bool,
) -> None:
    """Make a key called NAME, add its hash to the file, and print the key: once, and never again."""
    from daemon.access.keys import Key, hash_of, new_secret, parse_keys, read_keys, write_keys
    from daemon.errors import ApiError

    keys = read_keys(path) if path.exists() else {}
    secret = new_secret()
    key = Key(name, hash_of(secret), max_sessions, max_waiting, tokens_per_minute, priority, manage)
    if any(other.name == name for other in keys.values()):
        raise ApiError("OUTPUT_EXISTS", f"{path} has a key {name!r}; remove it first, or choose another name")
    parse_keys(f"[[keys]]\nname = {json.dumps(name)}\nsha256 = {json.dumps(key.sha256)}\n", "NAME")
    write_keys(path, [*keys.values(), key])
    if as_json:
        click.echo(json.dumps({"name": name, "key": secret, "file": str(path)}))
        return
    click.echo(secret)
    click.echo(f"added {name!r} to {path}; the key above is shown this once", err=True)


@command.command("list")
@FILE
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_keys(path: Path, *, as_json: bool) -> None:
    """List the names and limits of the keys; the keys themselves are nowhere."""
    from dataclasses import asdict

    from daemon.access.keys import read_keys

    keys = read_keys(path).values()
    if as_json:
        for key in keys:
            click.echo(json.dumps(asdict(key)))
        return
    click.echo(f"{'name':24} {'sessions':>8} {'waiting':>8} {'tokens/min':>11} {'priority':>8} {'manage':>6}")
    for key in keys:
        limits = [key.max_sessions, key.max_waiting, key.tokens_per_minute]
        sessions, waiting, tokens = ("-" if limit is None else str(limit) for limit in limits)
        manage = "yes" if key.manage else "no"
        click.echo(f"{key.name:24} {sessions:>8} {waiting:>8} {tokens:>11} {key.priority:>8} {manage:>6}")


@command.command("remove")
@click.argument("name")
@FILE
def remove(name: str, path: Path) -> None:
    """Remove the key called NAME; a running daemon refuses it from the next second on."""
    from daemon.access.keys import read_keys, write_keys
    from daemon.errors import ApiError

    keys = list(read_keys(path).values())
    left = [key for key in keys if key.name != name]
    if len(left) == len(keys):
        raise ApiError("INVALID_ARGUMENT", f"{path} has no key {name!r}; `quantd key list` shows the names")
    write_keys(path, left)
    click.echo(f"removed {name!r} from {path}")
