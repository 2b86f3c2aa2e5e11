"""Models that are split over several files."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.errors import ModelFormatError
from runtime.gguf import ModelFile
from tests.gguf.build import ARCHITECTURE, F32, I32, U16, gguf, scalar_kv, string_kv, tensor


def shard(
    number: int,
    count: int,
    names: list[str],
    *,
    total: int | None = None,
    first: int = 0,
    kind: int = U16,
) -> bytes:
    values = [ARCHITECTURE] if number == first else []
    values += [scalar_kv("split.no", kind, number), scalar_kv("split.count", kind, count)]
    if total is not None:
        values.append(scalar_kv("split.tensors.count", I32, total))
    infos = [tensor(name, [8], F32, 32 * i) for i, name in enumerate(names)]
    return gguf(values, infos, data=bytes([number + 1]) * 32 * len(names))


def shard_path(folder: Path, number: int, count: int, prefix: str = "model") -> Path:
    return folder / f"{prefix}-{number + 1:05d}-of-{count:05d}.gguf"


def write_split(folder: Path, total: int | None = 5) -> list[Path]:
    names = [["a", "b"], ["c"], ["d", "e"]]
    paths = [shard_path(folder, i, 3) for i in range(3)]
    for i, path in enumerate(paths):
        path.write_bytes(shard(i, 3, names[i], total=total))
    return paths


@pytest.mark.parametrize("given", [0, 1, 2])
def test_any_shard_opens_all(tmp_path, given):
    paths = write_split(tmp_path)
    file = ModelFile.open(paths[given])
    assert list(file.paths) == paths
    assert list(file.tensors) == ["a", "b", "c", "d", "e"]
    assert [info.shard for info in file.tensors.values()] == [0, 0, 1, 2, 2]
    assert [int(file.data(name)[0]) for name in "abcde"] == [1, 1, 2, 3, 3]
    assert file.size_bytes == sum(path.stat().st_size for path in paths)
    assert file.architecture == "llama"
    assert file.path == paths[0]


def test_links_to_shards_elsewhere(tmp_path):
    """As in a download cache: names in one folder, contents in another."""
    blobs, names = tmp_path / "blobs", tmp_path / "names"
    blobs.mkdir()
    names.mkdir()
    for i, path in enumerate(write_split(tmp_path)):
        path.rename(blobs / str(i))
        (names / path.name).symlink_to(blobs / str(i))
    assert len(ModelFile.open(shard_path(names, 2, 3)).tensors) == 5


def refused(path: Path, code: str, match: str) -> None:
    with pytest.raises(ModelFormatError, match=match) as caught:
        ModelFile.open(path)
    assert caught.value.code == code


def test_one_shard_is_a_whole_model(tmp_path):
    path = tmp_path / "any name.gguf"
    path.write_bytes(shard(0, 1, ["a"]))
    assert list(ModelFile.open(path).tensors) == ["a"]


def test_missing_shard(tmp_path):
    paths = write_split(tmp_path)
    paths[1].unlink()
    refused(paths[0], "MISSING_SHARD", "model-00002-of-00003.gguf is missing")


def test_damaged_shard_is_named(tmp_path):
    paths = write_split(tmp_path)
    paths[2].write_bytes(paths[2].read_bytes()[:-1])
    refused(paths[0], "TENSOR_OUT_OF_BOUNDS", "model-00003-of-00003.gguf: tensor")


@pytest.mark.parametrize("count", [0, 1025, 65535])
def test_bad_count(tmp_path, count):
    path = shard_path(tmp_path, 0, count)
    path.write_bytes(shard(0, count, ["a"]))
    refused(path, "BAD_SPLIT", "split.count is")


@pytest.mark.parametrize("key", ["split.count", "split.no"])
def test_wrong_types(tmp_path, key):
    path = write_split(tmp_path)[0]
    values = {"split.no": scalar_kv("split.no", U16, 0), "split.count": scalar_kv("split.count", U16, 3)}
    values[key] = string_kv(key, "3")
    path.write_bytes(gguf([ARCHITECTURE, *values.values()]))
    refused(path, "BAD_SPLIT", f"{key} is string; it must be an integer")


def test_negative_count(tmp_path):
    path = shard_path(tmp_path, 0, 3)
    path.write_bytes(shard(0, -3, ["a"], kind=I32))
    refused(path, "BAD_SPLIT", "split.count is -3")


def test_numbers_that_disagree_with_the_name(tmp_path):
    paths = write_split(tmp_path)
    paths[1].write_bytes(shard(2, 3, ["c"]))
    refused(paths[0], "BAD_SPLIT", "split.no is 2, the file's name asks for 1")
    paths[1].write_bytes(shard(1, 4, ["c"]))
    refused(paths[0], "BAD_SPLIT", "split.count is 4, the file's name asks for 3")
    paths[1].write_bytes(gguf([ARCHITECTURE]))
    refused(paths[0], "BAD_SPLIT", "split.count is None")


@pytest.mark.parametrize("name", ["renamed.gguf", "model-00001-of-00004.gguf", "model-1-of-3.gguf"])
def test_renamed_shard(tmp_path, name):
    path = write_split(tmp_path)[0].rename(tmp_path / name)
    refused(path, "BAD_SPLIT", "keep the names")


def test_number_above_the_count(tmp_path):
    write_split(tmp_path)
    path = shard_path(tmp_path, 6, 3)
    path.write_bytes(shard(0, 3, ["a", "b"]))
    refused(path, "BAD_SPLIT", "keep the names")


def test_tensor_counts(tmp_path):
    paths = write_split(tmp_path, total=6)
    refused(paths[0], "BAD_SPLIT", "hold 5 tensors, split.tensors.count says 6")
    write_split(tmp_path, total=None)
    assert len(ModelFile.open(paths[0]).tensors) == 5


def test_tensor_in_two_shards(tmp_path):
    paths = write_split(tmp_path)
    paths[1].write_bytes(shard(1, 3, ["a"]))
    refused(paths[0], "DUPLICATE_TENSOR", "tensor a is also in .*model-00001")
