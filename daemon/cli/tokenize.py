"""quantd tokenize: the token ids of a text, by the model's own vocabulary."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click


@click.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("text", required=False)
@click.option(
    "--file",
    "source",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="Take the text from this file; - is standard input.",
)
@click.option("--no-special", is_flag=True, help="Do not add the tokens that begin and end a text.")
@click.option(
    "--parse-special", is_flag=True, help="Take text such as <s> as the special token of that name."
)
@click.option("--json", "as_json", is_flag=True, help='Print {"ids": [...]}.')
def command(
    *,
    model: Path,
    text: str | None,
    source: Path | None,
    no_special: bool,
    parse_special: bool,
    as_json: bool,
) -> None:
    """Print the token ids of TEXT or of a file.

    MODEL is any GGUF file with a vocabulary; it needs no weights.

    \b
    Examples:
      quantd tokenize model.gguf "Hello, world!"
      quantd tokenize model.gguf --file book.txt --no-special --json
    """
    from runtime.gguf import ModelFile
    from runtime.tokenizer import build_tokenizer

    if (text is None) == (source is None):
        raise click.UsageError("give either TEXT or --file")
    if source is not None:
        text = _read(source)
    tokenizer = build_tokenizer(ModelFile.open(model))
    ids = tokenizer.encode(text or "", add_special=not no_special, parse_special=parse_special)
    if as_json:
        click.echo(json.dumps({"ids": ids}))
        return
    for token_id in ids:
        shown = json.dumps(tokenizer.token_text(token_id), ensure_ascii=not _prints_unicode())
        click.echo(f"{token_id:>8}  {shown}")


def _read(source: Path) -> str:
    data = sys.stdin.buffer.read() if str(source) == "-" else source.read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{source}: no UTF-8 text (byte {error.start})") from None


def _prints_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
