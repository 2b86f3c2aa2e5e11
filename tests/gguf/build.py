"""A small builder of GGUF bytes with every field under the test's control, sound or not.

    gguf([kv("general.architecture", STRING, text("llama"))], [tensor("a.weight", [32], F32, 0)], data=bytes(128))

Source of the layout: the GGUF specification of the ggml project (docs/gguf.md).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

U8, I8, U16, I16, U32, I32, F32_VALUE, BOOL, STRING, ARRAY, U64, I64, F64_VALUE = range(13)
F32, F16, Q4_0, Q8_0, Q4_K = 0, 1, 2, 8, 12

_PACK = {
    U8: "<B",
    I8: "<b",
    U16: "<H",
    I16: "<h",
    U32: "<I",
    I32: "<i",
    F32_VALUE: "<f",
    BOOL: "<B",
    U64: "<Q",
    I64: "<q",
    F64_VALUE: "<d",
}


def u32(value: int) -> bytes:
    return struct.pack("<I", value & 0xFFFFFFFF)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value & 0xFFFFFFFFFFFFFFFF)


def scalar(kind: int, value: float) -> bytes:
    return struct.pack(_PACK[kind], value)


def text(value: str | bytes, *, length: int | None = None) -> bytes:
    """A string; `length` lies about its size."""
    raw = value.encode() if isinstance(value, str) else value
    return u64(len(raw) if length is None else length) + raw


def array(element_kind: int, elements: Iterable[bytes], *, count: int | None = None) -> bytes:
    """The payload of an array; `count` lies about its length."""
    parts = list(elements)
    return u32(element_kind) + u64(len(parts) if count is None else count) + b"".join(parts)


def kv(key: str | bytes, kind: int, payload: bytes, *, key_length: int | None = None) -> bytes:
    return text(key, length=key_length) + u32(kind) + payload


def string_kv(key: str, value: str | bytes) -> bytes:
    return kv(key, STRING, text(value))


def scalar_kv(key: str, kind: int, value: float) -> bytes:
    return kv(key, kind, scalar(kind, value))


def tensor(
    name: str | bytes,
    shape: Sequence[int],
    type_id: int,
    offset: int,
    *,
    n_dims: int | None = None,
    name_length: int | None = None,
) -> bytes:
    """One tensor info; shape with the row length first, offset relative to the data."""
    dims = u32(len(shape) if n_dims is None else n_dims) + b"".join(u64(n) for n in shape)
    return text(name, length=name_length) + dims + u32(type_id) + u64(offset)


def gguf(
    key_values: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    *,
    data: bytes = b"",
    version: int = 3,
    magic: bytes = b"GGUF",
    n_key_values: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file; the counts can lie, `alignment` is only the padding before the data."""
    head = magic + u32(version)
    head += u64(len(tensors) if n_tensors is None else n_tensors)
    head += u64(len(key_values) if n_key_values is None else n_key_values)
    head += b"".join(key_values) + b"".join(tensors)
    if tensors or data:
        head += bytes(-len(head) % alignment)
    return head + data


ARCHITECTURE = string_kv("general.architecture", "llama")


def small_file() -> bytes:
    """A sound file with every kind of value, arrays of each sort and three tensors."""
    values = [
        ARCHITECTURE,
        scalar_kv("x.u8", U8, 255),
        scalar_kv("x.i8", I8, -128),
        scalar_kv("x.u16", U16, 65535),
        scalar_kv("x.i16", I16, -32768),
        scalar_kv("x.u32", U32, 2**32 - 1),
        scalar_kv("x.i32", I32, -(2**31)),
        scalar_kv("x.f32", F32_VALUE, 0.5),
        scalar_kv("x.bool", BOOL, 1),
        scalar_kv("x.u64", U64, 2**64 - 1),
        scalar_kv("x.i64", I64, -(2**63)),
        scalar_kv("x.f64", F64_VALUE, -1e300),
        string_kv("x.text", "grüße 👋"),
        string_kv("x.bytes", b"\xff\xfe a\x00b"),
        kv("x.strings", ARRAY, array(STRING, [text("a"), text(""), text(b"\xc3")])),
        kv("x.integers", ARRAY, array(I32, [scalar(I32, n) for n in (1, -2, 3)])),
        kv("x.numbers", ARRAY, array(F32_VALUE, [scalar(F32_VALUE, n) for n in (1.0, 0.25)])),
        kv("x.booleans", ARRAY, array(BOOL, [b"\x00", b"\x01"])),
        kv("x.empty", ARRAY, array(STRING, [])),
        scalar_kv("general.alignment", U32, 64),
    ]
    tensors = [
        tensor("token_embd.weight", [32, 2], Q8_0, 0),  # 68 bytes
        tensor("blk.0.norm.weight", [8], F32, 128),  # 32 bytes
        tensor("output.weight", [4, 2, 1, 2], F16, 192),  # 32 bytes
    ]
    return gguf(values, tensors, data=bytes(range(224)), alignment=64)
