"""The front of a safetensors file: a length (u64, little-endian), a JSON table of tensors, then their bytes.

Every number of the table is checked against the file before it is used.  Source: the format's page, "Format", of the
safetensors documentation.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quant.recipes import BF16, F16, F32
from runtime.errors import ModelFormatError, UnsupportedModelError

MAX_HEADER_BYTES = 100 << 20  # the format's own limit
MAX_DIMENSIONS = 8
MAX_NAME_CHARS = 512

# dtype of the file: (type id, bytes of an element)
DTYPES = {"F32": (F32, 4), "F16": (F16, 2), "BF16": (BF16, 2)}
# Integer tensors of known names (position ids, masks) may lie in a file; they are never weights.
_OTHER_BYTES = {
    "F64": 8,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
_OTHER_BYTES |= {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]  # row length last
    offset: int  # absolute, in the file
    n_bytes: int
    file: int  # index into the checkpoint's files


def read_table(path: Path, file: int) -> list[StoredTensor]:
    """Return every tensor of the file, in the order of their bytes.

    Raises ModelFormatError for a file that breaks the format or whose tensors exceed it, OSError.
    """
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        front = stream.read(8)
        if len(front) < 8:
            raise _fault(path, "", 0, f"the file has {size} bytes; a safetensors file has at least 8")
        (header_bytes,) = struct.unpack("<Q", front)
        if header_bytes > min(MAX_HEADER_BYTES, size - 8):
            raise _fault(path, "", 0, f"the table is said to have {header_bytes} bytes, the file has {size}")
        raw = stream.read(header_bytes)
    data_start = 8 + header_bytes
    table = _parse(path, raw)
    tensors = [
        _tensor(path, name, entry, data_start=data_start, size=size, file=file)
        for name, entry in table.items()
    ]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.n_bytes))
    _check_places(path, tensors, data_start, size)
    return tensors


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        table = json.loads(raw, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise _fault(path, "", 8, f"the table is no JSON: {str(error)[:120]}") from None
    if not isinstance(table, dict):
        raise _fault(path, "", 8, "the table is no JSON object")
    table.pop("__metadata__", None)
    return table


def _without_doubles(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key[:80]!r} stands twice")
        found[key] = value
    return found


def _tensor(path: Path, name: str, entry: Any, *, data_start: int, size: int, file: int) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = all(type(n) is int for n in (begin, end, *shape))
    except (TypeError, LookupError, ValueError):
        whole = False
    if not whole or not isinstance(dtype, str) or len(name) > MAX_NAME_CHARS or len(shape) > MAX_DIMENSIONS:
        raise _fault(path, name[:80], 8, "an entry of the table is malformed")
    element_bytes = DTYPES[dtype][1] if dtype in DTYPES else _OTHER_BYTES.get(dtype)
    if element_bytes is None:
        raise UnsupportedModelError(
            f"{path}: tensor {name} is of dtype {dtype[:32]}; F32, F16 and BF16 are read"
        )
    n_bytes = math.prod(shape) * element_bytes
    if min(shape, default=1) < 0 or not 0 <= begin <= end <= size - data_start:
        raise _fault(
            path,
            name,
            data_start,
            f"bytes {begin} to {end} lie outside the file's {size - data_start} of data",
        )
    if end - begin != n_bytes:
        raise _fault(
            path,
            name,
            data_start + begin,
            f"{end - begin} bytes for shape {tuple(shape)} of {dtype}: {n_bytes} are needed",
        )
    return StoredTensor(name, dtype, tuple(shape), data_start + begin, n_bytes, file)


def _check_places(path: Path, tensors: list[StoredTensor], data_start: int, size: int) -> None:
    """The tensors fill the data without gaps or overlaps, as the format demands; a cut file ends too early."""
    position = data_start
    for tensor in tensors:
        if tensor.offset != position:
            raise _fault(
                path, tensor.name, tensor.offset, "overlaps another tensor or leaves a gap before it"
            )
        position += tensor.n_bytes
    if position != size:
        raise _fault(path, "", position, f"the tensors end at byte {position}, the file at {size}")


def _fault(path: Path, name: str, offset: int, what: str) -> ModelFormatError:
    where = f"tensor {name}: " if name else ""
    return ModelFormatError("BAD_SAFETENSORS", name, offset, f"{path}: {where}{what}")
