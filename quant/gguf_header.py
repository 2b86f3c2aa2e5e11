"""The front of a GGUF v3 file: metadata and tensor table, as bytes.

The metadata of a source file comes out with the same bytes for each value; only the keys that quantization changes are
left out and set anew at the end, the way llama-quantize does it.  Nothing depends on the time or the machine.
"""

from __future__ import annotations

import array
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import cast

from runtime.gguf import MetadataValue

MAGIC = b"GGUF"
VERSION = 3
DEFAULT_ALIGNMENT = 32
QUANTIZATION_VERSION = 2  # of the block layouts, as llama-quantize notes it

# kind: (type id, code of the array module)
_NUMBERS = {
    "u8": (0, "B"),
    "i8": (1, "b"),
    "u16": (2, "H"),
    "i16": (3, "h"),
    "u32": (4, "I"),
    "i32": (5, "i"),
    "f32": (6, "f"),
    "bool": (7, "B"),
    "u64": (10, "Q"),
    "i64": (11, "q"),
    "f64": (12, "d"),
}
_STRING = 8
_LENGTH = struct.Struct("<Q")
_ARRAY = 9


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One entry of the metadata; `kind` as runtime.gguf names it ("u32", "array[string]")."""

    key: str
    kind: str
    value: MetadataValue


@dataclass(frozen=True, slots=True)
class StoredValue:
    """An entry that goes over from a file as it stands there, its kind before its value."""

    key: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One line of the tensor table; `offset` counts from the start of the data section."""

    name: str
    shape: tuple[int, ...]  # row length first
    type_id: int
    offset: int


@dataclass(frozen=True, slots=True)
class EncodedMetadata:
    """Entries of the metadata as bytes."""

    n_entries: int
    raw: bytes


NO_METADATA = EncodedMetadata(0, b"")


def align(offset: int, alignment: int) -> int:
    """Return the next multiple of the alignment at or after the offset."""
    return -(-offset // alignment) * alignment


def quantized_metadata(
    metadata: Sequence[KeyValue | StoredValue], file_type: int
) -> list[KeyValue | StoredValue]:
    """Return a source's metadata with the keys that say how the file was and is quantized replaced."""
    replaced = {"general.quantization_version", "general.file_type"}
    return [
        *(entry for entry in metadata if entry.key not in replaced and not entry.key.startswith("quantd.")),
        KeyValue("general.quantization_version", "u32", QUANTIZATION_VERSION),
        KeyValue("general.file_type", "u32", file_type),
    ]


def encode_metadata(entries: Sequence[KeyValue | StoredValue]) -> EncodedMetadata:
    """Return entries as they stand in a header, to be used in several."""
    return EncodedMetadata(len(entries), b"".join(chain.from_iterable(map(_entry, entries))))


def header_bytes(
    metadata: Sequence[KeyValue],
    tensors: Sequence[TensorEntry],
    alignment: int,
    before: EncodedMetadata = NO_METADATA,
) -> bytes:
    """Return everything before the data section, padded to the alignment; `before` stands before the metadata."""
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), before.n_entries + len(metadata)), before.raw]
    parts += chain.from_iterable(map(_entry, metadata))
    for tensor in tensors:
        parts += (_string(tensor.name), _tensor(tensor))
    raw = b"".join(parts)
    return raw.ljust(align(len(raw), alignment), b"\0")


def _entry(entry: KeyValue | StoredValue) -> tuple[bytes, bytes]:
    raw = entry.raw if isinstance(entry, StoredValue) else _value(entry.kind, entry.value)
    return _string(entry.key), raw


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _value(kind: str, value: MetadataValue) -> bytes:
    if kind.startswith("array["):
        element = kind.removeprefix("array[").removesuffix("]")
        items = cast("list[int] | list[float] | list[str]", value)
        type_id, raw = _elements(element, items)
        return struct.pack("<IIQ", _ARRAY, type_id, len(items)) + raw
    type_id, raw = _elements(kind, cast("list[int] | list[float] | list[str]", [value]))
    return struct.pack("<I", type_id) + raw


def _elements(kind: str, items: Iterable[int] | Iterable[float] | Iterable[str]) -> tuple[int, bytes]:
    if kind == "string":
        # A vocabulary has hundreds of thousands of them: no function of ours is called for each.
        texts = [str.encode(item, "utf-8", "surrogateescape") for item in cast("Iterable[str]", items)]
        return _STRING, b"".join(
            chain.from_iterable(zip(map(_LENGTH.pack, map(len, texts)), texts, strict=True))
        )
    type_id, code = _NUMBERS[kind]
    numbers = array.array(code, cast("Iterable[float]", items))
    if sys.byteorder == "big":
        numbers.byteswap()
    return type_id, numbers.tobytes()


def _tensor(tensor: TensorEntry) -> bytes:
    # Trailing dimensions of one are not written: readers take them as one.
    shape = list(tensor.shape)
    while len(shape) > 1 and shape[-1] == 1:
        shape.pop()
    return struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, tensor.type_id, tensor.offset)
