"""Tensors of the Open Inference Protocol as Python values, and back.

The values stand in a field for their type, or all together in raw_input_contents: little-endian, each BYTES value behind its
length in 4 bytes.  The message's own size bounds how many there can be.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from daemon.errors import ApiError
from quantd.kserve import inference_pb2 as pb

Value = bool | int | float | bytes

# datatype -> (field of InferTensorContents, NumPy's type in raw contents; None: not of a fixed size)
_TYPES: dict[str, tuple[str, str | None]] = {
    "BOOL": ("bool_contents", "?"),
    "INT8": ("int_contents", "i1"),
    "INT16": ("int_contents", "<i2"),
    "INT32": ("int_contents", "<i4"),
    "INT64": ("int64_contents", "<i8"),
    "UINT8": ("uint_contents", "u1"),
    "UINT16": ("uint_contents", "<u2"),
    "UINT32": ("uint_contents", "<u4"),
    "UINT64": ("uint64_contents", "<u8"),
    "FP32": ("fp32_contents", "<f4"),
    "FP64": ("fp64_contents", "<f8"),
    "BYTES": ("bytes_contents", None),
}
_LENGTH = struct.Struct("<I")  # of a BYTES value
MAX_RANK = 8


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor that came in, or goes out."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Sequence[Value]  # prod(shape) values, row-major

    @property
    def field(self) -> str:
        """How errors name it."""
        return f"inputs[{self.name[:64]!r}]"

    def texts(self) -> list[str]:
        """The values of a BYTES tensor as text; ApiError INVALID_ARGUMENT where it is none."""
        if self.datatype != "BYTES":
            raise refuse(self.field, f"must be BYTES, not {self.datatype}")
        try:
            return [value.decode() for value in self.values if isinstance(value, bytes)]
        except UnicodeDecodeError:
            raise refuse(self.field, "must be UTF-8") from None


def refuse(field: str, message: str) -> ApiError:
    """A refusal that names what is wrong."""
    return ApiError("INVALID_ARGUMENT", f"{field}: {message}", field=field)


def read_inputs(request: pb.ModelInferRequest) -> dict[str, Tensor]:
    """The input tensors by name; ApiError INVALID_ARGUMENT for values that do not fit their shape or type."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise refuse("raw_input_contents", f"{len(raw)} contents for {len(request.inputs)} inputs")
    found: dict[str, Tensor] = {}
    for index, given in enumerate(request.inputs):
        field = f"inputs[{given.name[:64]!r}]"
        if given.datatype not in _TYPES:
            raise refuse(field, f"the type {given.datatype[:16]!r} is not known; {', '.join(_TYPES)} are")
        if given.parameters:
            raise refuse(field, f"the parameter {min(given.parameters)[:64]!r} is not known")
        if given.name in found:
            raise refuse(field, "is there twice")
        shape = tuple(given.shape)
        if len(shape) > MAX_RANK or any(size < 0 for size in shape):
            raise refuse(field, f"a shape has at most {MAX_RANK} sizes, none below 0, not {list(shape)[:16]}")
        values = _values(given, raw[index] if raw else None, field)
        if math.prod(shape) != len(values):
            raise refuse(field, f"{len(values)} values do not fill the shape {list(shape)}")
        found[given.name] = Tensor(given.name, given.datatype, shape, values)
    return found


def _values(given: pb.ModelInferRequest.InferInputTensor, raw: bytes | None, field: str) -> Sequence[Value]:
    name, kind = _TYPES[given.datatype]
    others = [one.name for one, _ in given.contents.ListFields() if raw is not None or one.name != name]
    if others:
        wanted = "raw_input_contents" if raw is not None else name
        raise refuse(field, f"the values of {given.datatype} belong into {wanted}, not {others[0]}")
    if raw is None:
        values: Sequence[Value] = getattr(given.contents, name)
        return values
    if kind is None:
        return _raw_texts(raw, field)
    size = np.dtype(kind).itemsize
    if len(raw) % size:
        raise refuse(field, f"{len(raw)} bytes are not whole values of {size} bytes")
    listed: list[Value] = np.frombuffer(raw, kind).tolist()
    return listed


def _raw_texts(raw: bytes, field: str) -> list[Value]:
    texts: list[Value] = []
    at = 0
    while at < len(raw):
        if len(raw) - at < _LENGTH.size:
            raise refuse(field, "the bytes end within a length")
        begin = at + _LENGTH.size
        at = begin + _LENGTH.unpack_from(raw, at)[0]
        if at > len(raw):
            raise refuse(field, "the bytes end within a value")
        texts.append(raw[begin:at])
    return texts


def add_output(response: pb.ModelInferResponse, tensor: Tensor, *, raw: bool) -> None:
    """Append a tensor to an answer, in raw contents or in the field of its type."""
    name, kind = _TYPES[tensor.datatype]
    given = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    if not raw:
        getattr(given.contents, name).extend(tensor.values)
    elif kind is None:
        texts: Any = tensor.values
        response.raw_output_contents.append(b"".join(_LENGTH.pack(len(text)) + text for text in texts))
    else:
        response.raw_output_contents.append(np.asarray(tensor.values, kind).tobytes())
