"""What the reader gives back, against the writer's input and against the reader of the `gguf` package."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import gguf as oracle
import numpy as np
import pytest

from quant.gguf_header import KeyValue, StoredValue, encode_metadata
from runtime._native import GgufFile, type_traits
from runtime.errors import ModelChangedError, ModelFormatError
from runtime.gguf import ModelFile
from tests.gguf.build import small_file

KINDS = {
    "u8": oracle.GGUFValueType.UINT8,
    "i8": oracle.GGUFValueType.INT8,
    "u16": oracle.GGUFValueType.UINT16,
    "i16": oracle.GGUFValueType.INT16,
    "u32": oracle.GGUFValueType.UINT32,
    "i32": oracle.GGUFValueType.INT32,
    "f32": oracle.GGUFValueType.FLOAT32,
    "bool": oracle.GGUFValueType.BOOL,
    "string": oracle.GGUFValueType.STRING,
    "u64": oracle.GGUFValueType.UINT64,
    "i64": oracle.GGUFValueType.INT64,
    "f64": oracle.GGUFValueType.FLOAT64,
}
VALUES = {
    "u8": [0, 255],
    "i8": [-128, 127],
    "u16": [65535],
    "i16": [-32768],
    "u32": [2**32 - 1],
    "i32": [-(2**31)],
    "f32": [0.5, -1e30],
    "bool": [True, False],
    "string": ["", "plain", "größer 👋\n"],
    "u64": [2**64 - 1],
    "i64": [-(2**63)],
    "f64": [0.1, -1e300],
}


def write_with_oracle(path) -> dict[str, tuple[str, object]]:
    """Write every kind of value, arrays of each and tensors of several types; return what was written."""
    writer = oracle.GGUFWriter(path, "llama")
    expected: dict[str, tuple[str, object]] = {"general.architecture": ("string", "llama")}
    for kind, values in VALUES.items():
        for i, value in enumerate(values):
            writer.add_key_value(f"one.{kind}.{i}", value, KINDS[kind])
            expected[f"one.{kind}.{i}"] = (kind, value)
        writer.add_key_value(f"many.{kind}", values, oracle.GGUFValueType.ARRAY, KINDS[kind])
        expected[f"many.{kind}"] = (f"array[{kind}]", values)
    rng = np.random.default_rng(7)
    weights = rng.standard_normal((6, 256), dtype=np.float32)
    writer.add_tensor("f32", weights)
    writer.add_tensor("f16", weights.astype(np.float16))
    writer.add_tensor("cube", weights.reshape(2, 3, 256))
    for type_name in ("Q4_0", "Q8_0", "BF16"):
        quantized = oracle.quants.quantize(weights, oracle.GGMLQuantizationType[type_name])
        writer.add_tensor(type_name.lower(), quantized, raw_dtype=oracle.GGMLQuantizationType[type_name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def check_against_oracle(path) -> None:
    file, reader = GgufFile(path), oracle.GGUFReader(path)
    theirs = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert file.keys() == list(theirs)
    for key, field in theirs.items():
        value = file.get(key)
        if field.types[-1] == oracle.GGUFValueType.STRING and b"\xff" in bytes(field.parts[-1]):
            continue
        assert value == field.contents(), key
    assert (file.alignment, file.data_offset) == (reader.alignment, reader.data_offset)
    assert len(file.tensors()) == len(reader.tensors)
    for (name, type_id, shape, offset, n_bytes), tensor in zip(file.tensors(), reader.tensors, strict=True):
        assert (name, type_id, list(shape)) == (tensor.name, tensor.tensor_type, tensor.shape.tolist())
        assert (offset, n_bytes) == (tensor.data_offset, tensor.n_bytes)
        np.testing.assert_array_equal(file.data(name), tensor.data.view(np.uint8).reshape(-1))


def test_values_stand_as_they_would_be_written(tmp_path):
    path = tmp_path / "model.gguf"
    write_with_oracle(path)
    file = ModelFile.open(path)
    for key in file.keys():
        entry = KeyValue(key, file.kind(key), file.get(key))
        assert encode_metadata([StoredValue(key, file.stored(key))]) == encode_metadata([entry]), key
    with pytest.raises(KeyError):
        file.stored("absent")


def test_agrees_with_the_writer(tmp_path):
    path = tmp_path / "model.gguf"
    expected = write_with_oracle(path)
    file = GgufFile(path)
    assert file.keys() == list(expected)
    for key, (kind, value) in expected.items():
        assert file.kind(key) == kind
        if kind.endswith(("f32", "f32]")):
            np.testing.assert_allclose(file.get(key), value, rtol=1e-7)
        else:
            assert file.get(key) == value
            assert type(file.get(key)) is type(value)


def test_agrees_with_the_oracle(tmp_path):
    path = tmp_path / "model.gguf"
    write_with_oracle(path)
    check_against_oracle(path)


@pytest.mark.parametrize("name", ["stories260K", "tiny256-Q4_K_M", "tiny256-IQ4_XS"])
def test_agrees_with_the_oracle_on_real_files(shared_dir, name):
    check_against_oracle(shared_dir / "models" / f"{name}.gguf")


def test_agrees_with_the_oracle_on_the_demo_model(demo_model):
    check_against_oracle(demo_model)


def test_type_sizes_agree_with_the_oracle():
    for type_id in range(64):
        name, block_elements, block_bytes, _ = type_traits(type_id)
        if block_elements == 0:
            assert name == "?"
            continue
        theirs = oracle.GGMLQuantizationType(type_id)
        assert name == theirs.name
        assert (block_elements, block_bytes) == oracle.GGML_QUANT_SIZES[theirs]
    assert type_traits(2**32 - 1) == ("?", 0, 0, False)


def test_text_that_is_not_utf8_survives(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(small_file())
    file = GgufFile(path)
    assert file.get("x.bytes").encode("utf-8", "surrogateescape") == b"\xff\xfe a\x00b"
    assert file.get("x.strings") == ["a", "", "\udcc3"]
    assert file.get("x.text") == "grüße 👋"


def test_absent_names(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(small_file())
    file = GgufFile(path)
    for access in (file.get, file.kind, file.length, file.offset, file.data):
        with pytest.raises(KeyError):
            access("absent\n")


def test_data_is_read_only_and_outlives_the_file(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(small_file())
    file = GgufFile(path)
    data = file.data("blk.0.norm.weight")
    del file
    assert not data.flags.writeable
    np.testing.assert_array_equal(data, np.arange(128, 160, dtype=np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        data[0] = 1


def test_odd_paths(tmp_path):
    for name in ("grüße 👋.gguf", os.fsdecode(b"\xff\xfe.gguf")):
        path = tmp_path / name
        path.write_bytes(small_file())
        assert GgufFile(path).path == str(path)
        assert GgufFile(str(path)).version == 3
    link = tmp_path / "link.gguf"
    link.symlink_to(path)
    assert GgufFile(link).version == 3


def test_a_file_truncated_in_use_is_noticed_and_survived(tmp_path):
    """The pages behind the new end fault; they read as zero, and the file says that it is poisoned."""
    path = tmp_path / "model.gguf"
    path.write_bytes(small_file() + bytes(1 << 20))
    file = ModelFile.open(path)
    file.check_unchanged()
    os.truncate(path, 4096)
    assert file.shards[0].resident_bytes() >= 0
    os.truncate(path, 0)
    data = file.data("token_embd.weight")
    assert data.sum() == 0
    with pytest.raises(ModelChangedError, match="truncated"):
        file.check_unchanged()
    with pytest.raises(ModelFormatError, match="while it was open") as caught:
        file.strings("x.strings")
    assert caught.value.code == "FILE_CHANGED"
    path.write_bytes(small_file())
    ModelFile.open(path).check_unchanged()


def test_a_file_overwritten_in_use_is_noticed(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(small_file())
    file = ModelFile.open(path)
    os.utime(path)  # as a write does, without the clock's granularity
    with pytest.raises(ModelChangedError, match="changed"):
        file.check_unchanged()
    with pytest.raises(ModelFormatError):
        file.get("x.text")
    assert not file.shards[0].poisoned()


def test_a_file_replaced_or_deleted_stays_in_use(tmp_path):
    path, other = tmp_path / "model.gguf", tmp_path / "other.gguf"
    path.write_bytes(small_file())
    other.write_bytes(small_file())
    file = ModelFile.open(path)
    other.rename(path)
    path.unlink()
    file.check_unchanged()
    assert int(file.data("blk.0.norm.weight")[0]) == 128


def test_many_threads_meet_a_truncated_file(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(small_file())
    file = ModelFile.open(path)
    os.truncate(path, 0)
    sums = []
    threads = [
        threading.Thread(target=lambda: sums.append(int(file.data("output.weight").sum()))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [0] * 8


@pytest.mark.parametrize("faulthandler", ["before", "after", "never"])
def test_other_bus_errors_still_end_the_process(tmp_path, faulthandler):
    """A fault outside our maps, or a SIGBUS that was sent, must not be swallowed."""
    path = tmp_path / "model.gguf"
    path.write_bytes(small_file())
    other = tmp_path / "other"
    program = (
        "import faulthandler, mmap, os, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        f"from runtime._native import GgufFile\n"
        f"{'faulthandler.enable()' if faulthandler == 'before' else ''}\n"
        f"file = GgufFile({str(path)!r})\n"
        f"{'faulthandler.enable()' if faulthandler == 'after' else ''}\n"
        f"with open({str(other)!r}, 'r+b') as raw:\n"
        "    mapped = mmap.mmap(raw.fileno(), 0)\n"
        "    raw.truncate(0)\n"
        "if sys.argv[1] == 'touch':\n"
        "    mapped[0]\n"
        "os.kill(os.getpid(), 7)\n"
    )
    for action in ("touch", "send"):
        other.write_bytes(bytes(4096))
        result = subprocess.run(
            [sys.executable, "-c", program, action], capture_output=True, text=True, timeout=60, check=False
        )
        assert result.returncode == -signal.SIGBUS, result.stderr
        assert ("Bus error" in result.stderr) == (faulthandler != "never")
