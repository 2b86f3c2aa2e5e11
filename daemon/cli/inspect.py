"""`quantd inspect`: what a GGUF file holds.  Nothing of the tensor data is read.

Everything shown comes from a file that somebody else made, so text is escaped before it reaches a terminal.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

    from runtime.gguf import MetadataValue, ModelFile

MAX_SHOWN_CHARS = 100
MAX_SHOWN_ELEMENTS = 4


@click.command("inspect")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
@click.option("--tensors", "with_tensors", is_flag=True, help="List every tensor.")
def command(*, model: Path, as_json: bool, with_tensors: bool) -> None:
    """Show what a GGUF file holds: architecture, sizes, tensor types, vocabulary, metadata.

    MODEL is a GGUF file, or any shard of a split model.

    \b
    Examples:
      quantd inspect model-q4.gguf
      quantd inspect model-q4.gguf --tensors
      quantd inspect model-q4.gguf --json | jq .types
    """
    from runtime.gguf import ModelFile

    report = describe(ModelFile.open(model), with_tensors=with_tensors)
    if as_json:
        click.echo(json.dumps(report, allow_nan=False))
    else:
        _print_tables(report)


def describe(file: ModelFile, *, with_tensors: bool = False) -> dict[str, Any]:
    """Return what there is to say about a model file, as plain JSON values.

    Keys: path, shards, size_bytes, gguf_version, architecture (None for files that are no models, such as importance
    matrices), name, parameters, bits_per_weight, context_length, embedding_length, layers, types (name -> tensors,
    parameters, bytes, served), tokenizer (model, pre, vocabulary) or None, chat_template, metadata (key -> type and value, or length
    and first elements), and tensors when asked for.  Raises ModelFormatError for the wrong types.
    """
    keys = file.keys()
    architecture = file.architecture if "general.architecture" in file else None
    parameters = sum(tensor.n_elements for tensor in file.tensors.values())
    tensor_bytes = sum(tensor.n_bytes for tensor in file.tensors.values())
    report: dict[str, Any] = {
        "path": _text(str(file.path)),
        "shards": len(file.shards),
        "size_bytes": file.size_bytes,
        "gguf_version": file.shards[0].version,
        "architecture": architecture,
        "name": _text(file.string("general.name", "")) or None,
        "parameters": parameters,
        "bits_per_weight": round(8 * tensor_bytes / parameters, 2) if parameters else None,
        "context_length": _size(file, architecture, "context_length"),
        "embedding_length": _size(file, architecture, "embedding_length"),
        "layers": _size(file, architecture, "block_count"),
        "types": _types(file),
        "tokenizer": _tokenizer(file),
        "chat_template": "tokenizer.chat_template" in file,
        "metadata": {key: _metadata(file, key) for key in keys},
    }
    if with_tensors:
        report["tensors"] = [
            {
                "name": tensor.name,
                "type": tensor.type_name,
                "shape": list(tensor.shape),
                "bytes": tensor.n_bytes,
                "offset": tensor.offset,
                "shard": tensor.shard,
            }
            for tensor in file.tensors.values()
        ]
    return report


def _size(file: ModelFile, architecture: str | None, name: str) -> int | None:
    key = f"{architecture}.{name}"
    return file.integer(key) if key in file else None


def _types(file: ModelFile) -> dict[str, dict[str, int | bool]]:
    """Return what each tensor type takes, the largest first."""
    from runtime._native import type_traits

    totals: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0])
    for tensor in file.tensors.values():
        total = totals[tensor.type_id]
        total[0] += 1
        total[1] += tensor.n_elements
        total[2] += tensor.n_bytes
    by_size = sorted(totals.items(), key=lambda item: -item[1][2])
    return {
        type_traits(type_id)[0]: {
            "tensors": tensors,
            "parameters": parameters,
            "bytes": n_bytes,
            "served": type_traits(type_id)[3],
        }
        for type_id, (tensors, parameters, n_bytes) in by_size
    }


def _tokenizer(file: ModelFile) -> dict[str, Any] | None:
    if "tokenizer.ggml.model" not in file:
        return None
    return {
        "model": _text(file.string("tokenizer.ggml.model")),
        "pre": _text(file.string("tokenizer.ggml.pre", "")) or None,
        "vocabulary": file.length("tokenizer.ggml.tokens"),
    }


def _metadata(file: ModelFile, key: str) -> dict[str, Any]:
    kind = str(file.kind(key))
    value = file.head(key, MAX_SHOWN_ELEMENTS)
    if isinstance(value, list):
        return {"type": kind, "length": file.length(key), "first": [_plain(element) for element in value]}
    return {"type": kind, "value": _plain(value)}


def _plain(value: MetadataValue | None) -> Any:
    """Return a scalar that JSON can hold: text whole and valid, numbers that are not finite by name."""
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _text(value: str) -> str:
    """Return text with bytes that are not UTF-8 as replacement characters."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _shown(value: object) -> str:
    """Return one printable line of bounded length; control characters cannot reach the terminal."""
    text = value if isinstance(value, str) else str(value)
    cut = text[:MAX_SHOWN_CHARS]
    line = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in cut
    )
    return line if len(text) <= MAX_SHOWN_CHARS else f"{line}... ({len(text):,} characters)"


def _shown_metadata(entry: dict[str, Any]) -> str:
    if "length" not in entry:
        value = entry["value"]
        # 32-bit numbers as they were meant: 1e-05, not 9.999999747378752e-06
        return f"{value:.7g}" if entry["type"] == "f32" and isinstance(value, float) else _shown(value)
    more = ", ..." if entry["length"] > len(entry["first"]) else ""
    return _shown(f"[{', '.join(json.dumps(item, ensure_ascii=False) for item in entry['first'])}{more}]")


def _bytes_text(n_bytes: int) -> str:
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if n_bytes >= 1024**power:
            return f"{n_bytes / 1024**power:.2f} {unit}"
    return f"{n_bytes} B"


def _count_text(count: int) -> str:
    for power, unit in ((3, "B"), (2, "M"), (1, "K")):
        if count >= 1000**power:
            return f"{count / 1000**power:.2f} {unit}"
    return str(count)


def _print_tables(report: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 200  # a pipe has no width; do not fold what grep will read
    console.print(_summary_table(report))
    if report["types"]:
        console.print(_types_table(report))
    console.print(_metadata_table(report))
    if "tensors" in report:
        console.print(_tensors_table(report))


def _table(title: str, *columns: str, right: frozenset[str] = frozenset()) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, show_header=bool(columns))
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _summary_table(report: dict[str, Any]) -> Table:
    from rich import box
    from rich.table import Table

    shards = f" in {report['shards']} files" if report["shards"] > 1 else ""
    tokenizer = report["tokenizer"]
    rows = {
        "file": report["path"],
        "name": report["name"],
        "architecture": report["architecture"] or "none: this file is not a model",
        "size": f"{_bytes_text(report['size_bytes'])}{shards}, GGUF version {report['gguf_version']}",
        "parameters": f"{_count_text(report['parameters'])}, {report['bits_per_weight']} bits each"
        if report["parameters"]
        else "none: no tensors",
        "layers": report["layers"],
        "embedding": report["embedding_length"],
        "context": None if report["context_length"] is None else f"{report['context_length']:,} tokens",
        "vocabulary": f"{tokenizer['vocabulary']:,} tokens" if tokenizer else "none",
        "tokenizer": " ".join(filter(None, (tokenizer["model"], tokenizer["pre"]))) if tokenizer else None,
        "chat template": "yes" if report["chat_template"] else "no",
    }
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value is not None:
            table.add_row(name, _shown(value))
    return table


def _types_table(report: dict[str, Any]) -> Table:
    table = _table(
        "Tensor types",
        *("type", "tensors", "parameters", "size", "served"),
        right=frozenset({"tensors", "parameters", "size"}),
    )
    for name, total in report["types"].items():
        table.add_row(
            name,
            f"{total['tensors']:,}",
            _count_text(total["parameters"]),
            _bytes_text(total["bytes"]),
            "yes" if total["served"] else "no",
        )
    return table


def _metadata_table(report: dict[str, Any]) -> Table:
    table = _table("Metadata", "key", "type", "value")
    for key, entry in report["metadata"].items():
        kind = entry["type"] if "length" not in entry else f"{entry['type'][6:-1]} x {entry['length']:,}"
        table.add_row(_shown(key), kind, _shown_metadata(entry))
    return table


def _tensors_table(report: dict[str, Any]) -> Table:
    table = _table("Tensors", "name", "type", "shape", "size", "offset", right=frozenset({"size", "offset"}))
    for tensor in report["tensors"]:
        shape = " x ".join(str(n) for n in tensor["shape"])
        table.add_row(
            _shown(tensor["name"]), tensor["type"], shape, _bytes_text(tensor["bytes"]), str(tensor["offset"])
        )
    return table
