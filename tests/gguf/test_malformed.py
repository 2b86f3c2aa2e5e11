"""The reader refuses every malformed file with a typed error, and never does anything else."""

from __future__ import annotations

import os
import resource
import socket
import time
from pathlib import Path

import pytest

from runtime._native import GgufFile
from runtime.errors import ModelFormatError
from runtime.gguf import ModelFile
from tests.gguf.build import (
    ARCHITECTURE,
    F16,
    F32,
    F32_VALUE,
    STRING,
    U8,
    U32,
    gguf,
    kv,
    scalar_kv,
    small_file,
    string_kv,
    tensor,
    text,
    u32,
    u64,
)
from tests.gguf.cases import MALFORMED

MIB = 2**20


def read_everything(file: GgufFile) -> None:
    """Touch all that a file offers: values, tensor table, first and last byte of each tensor."""
    for key in file.keys():
        file.kind(key)
        file.get(key)
    for name, _, _, offset, n_bytes in file.tensors():
        data = file.data(name)
        assert data.shape == (n_bytes,)
        assert offset + n_bytes <= file.size_bytes
        assert 0 <= int(data[0]) + int(data[-1])


def write(folder: Path, content: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "code"), [case[1:] for case in MALFORMED], ids=[case[0] for case in MALFORMED]
)
def test_refused_with_its_code(tmp_path, content, code):
    with pytest.raises(ModelFormatError) as caught:
        GgufFile(write(tmp_path, content))
    error = caught.value
    assert error.code == code
    assert 0 <= error.offset < 2**64
    assert error.message.isascii()
    assert error.message.isprintable()
    assert len(error.message) < 400


ACCEPTED = {
    "G13 nothing inside": gguf(),
    "version 2": gguf([ARCHITECTURE], version=2),
    "G22 key of 65,535 bytes": gguf([kv("k" * 65535, U8, b"\0")]),
    "G29 string at the limit": gguf([kv("k", STRING, text(bytes(16 * MIB)))]),
    "G34 alignment 8": gguf(
        [scalar_kv("general.alignment", U32, 8)], [tensor("a", [2], F32, 8)], data=bytes(16), alignment=8
    ),
    "G37 name of 64 bytes": gguf([], [tensor("n" * 64, [8], F32, 0)], data=bytes(32)),
    "G37 name beyond ASCII": gguf([], [tensor("größe.weight", [8], F32, 0)], data=bytes(32)),
    "G46 known but not served": gguf([], [tensor("a", [256], 16, 0)], data=bytes(66)),
    "G53 gap between tensors": gguf(
        [], [tensor("a", [8], F32, 0), tensor("b", [8], F32, 1024)], data=bytes(2048)
    ),
    "tensors out of order": gguf([], [tensor("a", [8], F32, 32), tensor("b", [8], F32, 0)], data=bytes(64)),
    "G55 trailing garbage": gguf([], [tensor("a", [8], F32, 0)], data=bytes(32) + b"garbage"),
    "last tensor unpadded": gguf([], [tensor("a", [1], F16, 0)], data=bytes(2)),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_unusual_but_sound(tmp_path, name):
    read_everything(GgufFile(write(tmp_path, ACCEPTED[name])))


def test_architecture_must_be_named(tmp_path):
    """G13 and G35: such files open, for inspection, and are no models."""
    cases = {
        gguf(): "MISSING_KEY",
        gguf([string_kv("general.architecture", "")]): "BAD_VALUE",
        gguf([string_kv("general.architecture", "a" * MIB)]): "BAD_VALUE",
        gguf([string_kv("general.architecture", b"lla\x1b[31mma")]): "BAD_VALUE",
        gguf([scalar_kv("general.architecture", U32, 7)]): "WRONG_TYPE",
    }
    for content, code in cases.items():
        file = ModelFile.open(write(tmp_path, content))
        with pytest.raises(ModelFormatError, match=r"general\.architecture") as caught:
            _ = file.architecture
        assert caught.value.code == code


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_must_be_finite(tmp_path, value):
    """G31."""
    file = ModelFile.open(write(tmp_path, gguf([scalar_kv("llama.rope.freq_base", F32_VALUE, value)])))
    with pytest.raises(
        ModelFormatError, match=r"llama\.rope\.freq_base is (nan|-?inf); a finite number is needed"
    ):
        file.number("llama.rope.freq_base")


def test_names_in_errors_cannot_forge_log_lines(tmp_path):
    path = write(tmp_path, gguf([kv(b'a\n"b\\\x1b[31m', U8, b"\0")]))
    with pytest.raises(ModelFormatError) as caught:
        GgufFile(path)
    assert caught.value.where == r"a\x0a\x22b\x5c\x1b[31m"
    assert caught.value.message.isprintable()


def test_only_regular_files(tmp_path):
    """G16."""
    fifo, unix = tmp_path / "fifo", tmp_path / "socket"
    os.mkfifo(fifo)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(unix))
        for path in (tmp_path, fifo, Path("/dev/zero")):
            with pytest.raises(ModelFormatError, match="not a model file") as caught:
                GgufFile(path)
            assert caught.value.code == "NOT_A_FILE"
        with pytest.raises(OSError, match="socket"):
            GgufFile(unix)
    with pytest.raises(FileNotFoundError):
        GgufFile(tmp_path / "nothing")
    with pytest.raises(ValueError, match="null"):
        GgufFile("a\0b")
    with pytest.raises(OSError, match="too long"):
        GgufFile("x" * 5000)


def test_unreadable_file(tmp_path):
    path = write(tmp_path, small_file())
    path.chmod(0)
    is_root = os.geteuid() == 0
    try:
        if is_root:  # root may read everything
            os.seteuid(65534)
        with pytest.raises(PermissionError):
            GgufFile(path)
    finally:
        if is_root:
            os.seteuid(0)


def test_sparse_files_cost_nothing(tmp_path):
    """G16 and G29: a file of 1 TiB, and a string that claims most of a sparse file."""
    path = write(tmp_path, gguf([], [tensor("a", [2**37], F32, 0)]))
    os.truncate(path, 2**40)
    file = GgufFile(path)
    assert file.size_bytes == 2**40
    path.write_bytes(gguf([kv("k", STRING, text("", length=2 * 2**30))]))
    os.truncate(path, 4 * 2**30)
    with pytest.raises(ModelFormatError) as caught:
        GgufFile(path)
    assert caught.value.code == "STRING_TOO_LONG"
    endless = kv("k", STRING, text("", length=16 * MIB))[: -0 or None]
    path.write_bytes(b"GGUF" + u32(3) + u64(0) + u64(65_536) + endless)
    os.truncate(path, 2**33)
    with pytest.raises(ModelFormatError):
        GgufFile(path)


def test_baits_are_cheap(tmp_path):
    """G12 and G57: large tables cost in proportion to their bytes; the limits here are generous."""
    infos = [tensor(f"{'n' * 55}{i:08d}", [1], F32, 32 * i) for i in range(60_000)]
    path = write(tmp_path, gguf([ARCHITECTURE], infos, data=bytes(32 * 60_000)))
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    file = GgufFile(path)
    assert time.perf_counter() - started < 1.0
    assert len(file.tensors()) == 60_000
    path.write_bytes(gguf([ARCHITECTURE], [*infos[:-1], infos[0]], data=bytes(32 * 60_000)))
    with pytest.raises(ModelFormatError, match="appears twice"):
        GgufFile(path)
    for content in (gguf(n_key_values=65_536), gguf(n_tensors=65_536), gguf(n_key_values=2**60)):
        path.write_bytes(content)
        with pytest.raises(ModelFormatError):
            GgufFile(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 200 * 1024


def truncations_are_refused(content: bytes, sizes: list[int]) -> None:
    """Cut the file at each size, largest first, and check that it is refused as truncated."""
    descriptor = os.memfd_create(
        "model.gguf"
    )  # in memory: truncating a file on a disk takes most of the time
    path = f"/proc/self/fd/{descriptor}"
    try:
        os.write(descriptor, content)
        for size in sorted(sizes, reverse=True):
            os.truncate(descriptor, size)
            try:
                GgufFile(path)
            except ModelFormatError as error:
                assert error.code in ("TRUNCATED", "EMPTY_FILE", "TENSOR_OUT_OF_BOUNDS"), (size, error.code)
            else:
                pytest.fail(f"accepted when cut at {size} bytes")
    finally:
        os.close(descriptor)


def test_every_truncation_of_a_small_file():
    """G32: every byte of the metadata, the padding and the data."""
    content = small_file()
    truncations_are_refused(content, list(range(len(content))))


def test_every_truncation_of_the_demo_model(demo_model):
    """G32 on a real model: every byte of the metadata, then the end of the last tensor."""
    file = GgufFile(demo_model)
    sizes = [*range(file.data_offset + 1), file.size_bytes - 1]
    truncations_are_refused(demo_model.read_bytes(), sizes)


def test_every_flip_of_a_small_file(tmp_path):
    """G33: every bit and every whole byte of the metadata; the outcome is an error or a file that can be read."""
    content = small_file()
    path = write(tmp_path, content)
    metadata_bytes = len(content) - 224
    outcomes = {"refused": 0, "accepted": 0}
    with path.open("r+b", buffering=0) as raw:
        for position in range(metadata_bytes):
            for mask in (1, 2, 4, 8, 16, 32, 64, 128, 255):
                os.pwrite(raw.fileno(), bytes([content[position] ^ mask]), position)
                try:
                    read_everything(GgufFile(path))
                    outcomes["accepted"] += 1
                except ModelFormatError:
                    outcomes["refused"] += 1
            os.pwrite(raw.fileno(), content[position : position + 1], position)
    assert outcomes["refused"] > metadata_bytes
    assert outcomes["accepted"] > metadata_bytes
