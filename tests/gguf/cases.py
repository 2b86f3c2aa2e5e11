"""Malformed GGUF files: (name, bytes, expected code), one or more for each class that the reader must refuse.

The names begin with the class: G1-G16 header, G17-G36 metadata, G37-G57 tensor table.
"""

from __future__ import annotations

import gzip
import io
import zipfile

from tests.gguf.build import (
    ARCHITECTURE,
    ARRAY,
    BOOL,
    F16,
    F32,
    I32,
    Q4_0,
    Q4_K,
    STRING,
    U8,
    U32,
    U64,
    array,
    gguf,
    kv,
    scalar,
    scalar_kv,
    string_kv,
    tensor,
    text,
    u32,
    u64,
)

Case = tuple[str, bytes, str]

SOUND = gguf([ARCHITECTURE], [tensor("a", [8], F32, 0)], data=bytes(32))


def one_kv(payload: bytes, **options: int) -> bytes:
    return gguf([payload], **options)


def one_tensor(*args: object, data: bytes = bytes(4096), **options: int) -> bytes:
    return gguf([ARCHITECTURE], [tensor(*args, **options)], data=data)  # type: ignore[arg-type]


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", b"x")
    return buffer.getvalue()


HEADER: list[Case] = [
    ("G1 empty file", b"", "EMPTY_FILE"),
    ("G2 three bytes", b"GGU", "TRUNCATED"),
    ("G3 magic only", b"GGUF", "TRUNCATED"),
    ("G4 older format GGML", b"GGML" + SOUND[4:], "BAD_MAGIC"),
    ("G4 older format ggjt", b"tjgg" + SOUND[4:], "BAD_MAGIC"),
    ("G4 big-endian magic", b"FUGG" + SOUND[4:], "BAD_MAGIC"),
    ("G5 version 0", gguf(version=0), "UNSUPPORTED_VERSION"),
    ("G6 version 1", gguf(version=1), "UNSUPPORTED_VERSION"),
    ("G7 version 4", gguf(version=4), "UNSUPPORTED_VERSION"),
    ("G7 version 2^31+1", gguf(version=2**31 + 1), "UNSUPPORTED_VERSION"),
    ("G8 big-endian version", gguf(version=0x03000000), "BIG_ENDIAN"),
    ("G9 n_tensors -1", gguf(n_tensors=-1), "TOO_MANY_TENSORS"),
    ("G10 n_tensors 2^63-1", gguf(n_tensors=2**63 - 1), "TOO_MANY_TENSORS"),
    ("G11 n_kv -1", gguf(n_key_values=-1), "TOO_MANY_KEYS"),
    ("G12 n_kv 2^60", gguf(n_key_values=2**60), "TOO_MANY_KEYS"),
    ("G12 n_kv 65536 in 24 bytes", gguf(n_key_values=65536), "TRUNCATED"),
    ("G12 n_tensors 65536 in 24 bytes", gguf(n_tensors=65536), "TRUNCATED"),
    ("G14 ends in n_tensors", SOUND[:11], "TRUNCATED"),
    ("G14 ends in n_kv", SOUND[:23], "TRUNCATED"),
    ("G15 gzip", gzip.compress(SOUND), "BAD_MAGIC"),
    ("G15 zip", zipped(), "BAD_MAGIC"),
    ("G15 HTML", b"<!DOCTYPE html><html><body>404</body></html>", "BAD_MAGIC"),
    ("G15 LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "BAD_MAGIC"),
    ("G15 safetensors", u64(2) + b"{}", "BAD_MAGIC"),
    ("G15 zeros", bytes(4096), "BAD_MAGIC"),
    ("G15 text", b"hello", "BAD_MAGIC"),
    ("G15 partial download", SOUND[: len(SOUND) // 2], "TRUNCATED"),
]

METADATA: list[Case] = [
    ("G17 key length 2^64-1", one_kv(kv("k", U8, b"\0", key_length=2**64 - 1)), "BAD_KEY"),
    ("G18 key behind the end", one_kv(kv("k", U8, b"\0", key_length=1000)), "TRUNCATED"),
    ("G19 empty key", one_kv(kv("", U8, b"\0")), "BAD_KEY"),
    ("G20 duplicate key", gguf([ARCHITECTURE, ARCHITECTURE]), "DUPLICATE_KEY"),
    ("G21 duplicate, other type", gguf([scalar_kv("a", U8, 1), scalar_kv("a", U32, 1)]), "DUPLICATE_KEY"),
    ("G22 key not UTF-8", one_kv(kv(b"a\xff", U8, b"\0")), "BAD_KEY"),
    ("G22 key overlong UTF-8", one_kv(kv(b"a\xc0\xaf", U8, b"\0")), "BAD_KEY"),
    ("G22 key surrogate", one_kv(kv(b"a\xed\xa0\x80", U8, b"\0")), "BAD_KEY"),
    ("G22 key with NUL", one_kv(kv(b"a\0b", U8, b"\0")), "BAD_KEY"),
    ("G22 key with newline", one_kv(kv(b"a\nb", U8, b"\0")), "BAD_KEY"),
    ("G22 key of 64 KiB", one_kv(kv("k" * 65536, U8, b"\0")), "BAD_KEY"),
    ("G23 type 13", one_kv(kv("k", 13, b"\0" * 8)), "BAD_VALUE_TYPE"),
    ("G23 type 2^31", one_kv(kv("k", 2**31, b"\0" * 8)), "BAD_VALUE_TYPE"),
    ("G23 type -1", one_kv(kv("k", -1, b"\0" * 8)), "BAD_VALUE_TYPE"),
    ("G24 array of array", one_kv(kv("k", ARRAY, array(ARRAY, [array(U8, [b"\0"])]))), "NESTED_ARRAY"),
    ("G25 array of type 99", one_kv(kv("k", ARRAY, array(99, [b"\0" * 8]))), "BAD_VALUE_TYPE"),
    ("G26 u64 array of 2^61", one_kv(kv("k", ARRAY, array(U64, [], count=2**61))), "ARRAY_TOO_LONG"),
    ("G26 u64 array behind the end", one_kv(kv("k", ARRAY, array(U64, [], count=2**24))), "TRUNCATED"),
    ("G27 10^9 strings", one_kv(kv("k", ARRAY, array(STRING, [], count=10**9))), "ARRAY_TOO_LONG"),
    ("G27 2^24 strings, none there", one_kv(kv("k", ARRAY, array(STRING, [], count=2**24))), "TRUNCATED"),
    ("G28 string of 2^63", one_kv(kv("k", STRING, text("x", length=2**63))), "STRING_TOO_LONG"),
    ("G28 string of 2^64-1", one_kv(kv("k", STRING, text("x", length=2**64 - 1))), "STRING_TOO_LONG"),
    (
        "G28 string in array",
        one_kv(kv("k", ARRAY, array(STRING, [text("", length=2**40)]))),
        "STRING_TOO_LONG",
    ),
    ("G28 string behind the end", one_kv(kv("k", STRING, text("x", length=2))), "TRUNCATED"),
    ("G30 bool 2", one_kv(kv("k", BOOL, b"\2")), "BAD_BOOL"),
    ("G30 bool 255 in array", one_kv(kv("k", ARRAY, array(BOOL, [b"\1", b"\xff"]))), "BAD_BOOL"),
    ("G34 alignment 0", one_kv(scalar_kv("general.alignment", U32, 0)), "BAD_ALIGNMENT"),
    ("G34 alignment 1", one_kv(scalar_kv("general.alignment", U32, 1)), "BAD_ALIGNMENT"),
    ("G34 alignment 2", one_kv(scalar_kv("general.alignment", U32, 2)), "BAD_ALIGNMENT"),
    ("G34 alignment 3", one_kv(scalar_kv("general.alignment", U32, 3)), "BAD_ALIGNMENT"),
    ("G34 alignment 2^31", one_kv(scalar_kv("general.alignment", U32, 2**31)), "BAD_ALIGNMENT"),
    ("G34 alignment i32", one_kv(scalar_kv("general.alignment", I32, 32)), "BAD_ALIGNMENT"),
    ("G34 alignment u64", one_kv(scalar_kv("general.alignment", U64, 32)), "BAD_ALIGNMENT"),
    ("G34 alignment text", one_kv(string_kv("general.alignment", "32")), "BAD_ALIGNMENT"),
    (
        "G34 alignment array",
        one_kv(kv("general.alignment", ARRAY, array(U32, [scalar(U32, 32)]))),
        "BAD_ALIGNMENT",
    ),
    (
        "G34 alignment 64, tensor at 32",
        gguf(
            [ARCHITECTURE, scalar_kv("general.alignment", U32, 64)],
            [tensor("a", [8], F32, 0), tensor("b", [8], F32, 32)],
            data=bytes(128),
            alignment=64,
        ),
        "BAD_OFFSET",
    ),
]


def two_tensors(second_offset: int, first_elements: int = 8) -> bytes:
    infos = [tensor("a", [first_elements], F32, 0), tensor("b", [8], F32, second_offset)]
    return gguf([ARCHITECTURE], infos, data=bytes(4096))


TENSORS: list[Case] = [
    ("G37 name of 65 bytes", one_tensor("n" * 65, [8], F32, 0), "BAD_TENSOR_NAME"),
    ("G37 name length 2^64-1", one_tensor("n", [8], F32, 0, name_length=2**64 - 1), "BAD_TENSOR_NAME"),
    ("G37 empty name", one_tensor("", [8], F32, 0), "BAD_TENSOR_NAME"),
    ("G37 name with NUL", one_tensor(b"a\0b", [8], F32, 0), "BAD_TENSOR_NAME"),
    ("G37 name not UTF-8", one_tensor(b"a\x80", [8], F32, 0), "BAD_TENSOR_NAME"),
    ("G37 name with newline", one_tensor(b"a\nERROR forged", [8], F32, 0), "BAD_TENSOR_NAME"),
    ("G37 name with escape codes", one_tensor(b"a\x1b[31m", [8], F32, 0), "BAD_TENSOR_NAME"),
    (
        "G38 duplicate name",
        gguf([ARCHITECTURE], [tensor("a", [8], F32, 0), tensor("a", [8], F32, 32)], data=bytes(64)),
        "DUPLICATE_TENSOR",
    ),
    ("G39 no dimensions", one_tensor("a", [], F32, 0), "BAD_DIMENSIONS"),
    ("G39 five dimensions", one_tensor("a", [1, 1, 1, 1, 1], F32, 0), "BAD_DIMENSIONS"),
    ("G39 2^32-1 dimensions", one_tensor("a", [8], F32, 0, n_dims=2**32 - 1), "BAD_DIMENSIONS"),
    ("G40 negative dimension", one_tensor("a", [-8], F32, 0), "BAD_DIMENSIONS"),
    ("G40 negative second dimension", one_tensor("a", [8, -1], F32, 0), "BAD_DIMENSIONS"),
    ("G41 dimension 0", one_tensor("a", [0], F32, 0), "BAD_DIMENSIONS"),
    ("G41 second dimension 0", one_tensor("a", [32, 0], Q4_0, 0), "BAD_DIMENSIONS"),
    ("G42 product overflows", one_tensor("a", [2**32, 2**32], F32, 0), "BAD_DIMENSIONS"),
    ("G42 product overflows int64", one_tensor("a", [2**31, 2**31, 2], F32, 0), "BAD_DIMENSIONS"),
    ("G42 product wraps to a little", one_tensor("a", [2**32 + 32, 2**32, 1], F32, 0), "BAD_DIMENSIONS"),
    ("G43 bytes overflow", one_tensor("a", [2**62, 1], F32, 0), "BAD_DIMENSIONS"),
    ("G43 bytes overflow in blocks", one_tensor("a", [2**31, 2**31], 28, 0), "BAD_DIMENSIONS"),
    ("G43 dimensions above 2^31", one_tensor("a", [2**31 + 32, 1], F32, 0), "TENSOR_OUT_OF_BOUNDS"),
    ("G44 bytes fit, padding wraps", one_tensor("a", [2**62 - 1], F32, 0), "TENSOR_OUT_OF_BOUNDS"),
    (
        "G45 sum wraps",
        gguf(
            [ARCHITECTURE],
            [tensor("a", [2**61], F32, 0), tensor("b", [2**61], F32, 2**63)],
            data=bytes(4096),
        ),
        "TENSOR_OUT_OF_BOUNDS",
    ),
    *(
        (f"G46 type {type_id}", one_tensor("a", [256], type_id, 0), "UNKNOWN_TENSOR_TYPE")
        for type_id in (4, 5, 9, 15, 31, 32, 33, 36, 37, 38, 43, 63, 64, 137, 2**31, 2**32 - 1)
    ),
    ("G47 Q4_0 rows of 33", one_tensor("a", [33, 2], Q4_0, 0), "BAD_ROW_LENGTH"),
    ("G47 Q4_0 rows of 16, whole blocks", one_tensor("a", [16, 2], Q4_0, 0), "BAD_ROW_LENGTH"),
    ("G47 Q4_K rows of 255", one_tensor("a", [255], Q4_K, 0), "BAD_ROW_LENGTH"),
    ("G47 Q4_K rows of 288", one_tensor("a", [288, 8], Q4_K, 0), "BAD_ROW_LENGTH"),
    ("G48 offset not aligned", one_tensor("a", [8], F32, 16), "BAD_OFFSET"),
    ("G49 offset 2^64-32", one_tensor("a", [8], F32, 2**64 - 32), "TENSOR_OUT_OF_BOUNDS"),
    ("G50 one byte behind the end", one_tensor("a", [8], F32, 0, data=bytes(31)), "TENSOR_OUT_OF_BOUNDS"),
    ("G51 exact overlap", two_tensors(0), "TENSOR_OVERLAP"),
    ("G51 partial overlap", two_tensors(32, first_elements=9), "TENSOR_OVERLAP"),
    ("G52 tensor inside the metadata", one_tensor("a", [8], F32, 2**64 - 64), "TENSOR_OUT_OF_BOUNDS"),
    (
        "G54 data starts behind the end",
        gguf([ARCHITECTURE], [tensor("a", [8], F16, 0)]).rstrip(b"\0"),
        "TRUNCATED",
    ),
    ("G54 no data at all", gguf([ARCHITECTURE], [tensor("a", [8], F32, 0)]), "TENSOR_OUT_OF_BOUNDS"),
    ("G56 65,537 tensors", gguf([ARCHITECTURE], n_tensors=65_537), "TOO_MANY_TENSORS"),
    ("G56 65,537 keys", gguf([ARCHITECTURE], n_key_values=65_537), "TOO_MANY_KEYS"),
]

BIG: list[Case] = [
    (
        "magic and an enormous count of nothing",
        b"GGUF" + u32(3) + u64(0) + u64(65_536) + u64(65_535),
        "TRUNCATED",
    ),
]

MALFORMED: list[Case] = HEADER + METADATA + TENSORS + BIG
