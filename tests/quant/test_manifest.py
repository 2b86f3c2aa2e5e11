"""Where an output comes from: the manifest in it and beside it, published checksums, and runs that find their work done."""

from __future__ import annotations

import hashlib
import json

import gguf
import numpy as np
import pytest

from quant.errors import OutputExistsError
from quant.quantizer import Quantizer
from runtime.errors import ModelFormatError
from runtime.gguf import ModelFile
from tests.quant import hugging_face as hf
from tests.quant.helpers import write_model


@pytest.fixture
def source(tmp_path):
    return write_model(tmp_path / "in.gguf", n_layers=1)


def test_manifest(source, tmp_path):
    output = tmp_path / "out.gguf"
    result = Quantizer(source, output, "Q4_K_M").run()
    file = ModelFile.open(output)
    raw = output.read_bytes()
    data_sha256 = hashlib.sha256(raw[file.shards[0].data_offset :]).hexdigest()
    assert file.get("quantd.data_sha256") == data_sha256 == result.data_sha256
    assert file.get("quantd.input_sha256") == [hashlib.sha256(source.read_bytes()).hexdigest()]
    assert file.get("quantd.inputs") == ["in.gguf"]
    beside = json.loads((tmp_path / "out.gguf.manifest.json").read_text())
    assert beside["data_sha256"] == data_sha256
    assert beside["inputs"][0]["bytes"] == source.stat().st_size
    original = {t.name: t.data for t in gguf.GGUFReader(source).tensors}
    errors = file.numbers("quantd.tensor_errors")
    assert [t["name"] for t in beside["tensors"]] == list(file.tensors)
    for entry, embedded in zip(beside["tensors"], errors, strict=True):
        info = file.tensors[entry["name"]]
        assert entry["type"] == info.type_name
        assert entry["error"] == pytest.approx(embedded, rel=1e-6)
        if info.type_name == "F32":
            assert entry["error"] == 0
            continue
        x = original[info.name].astype(np.float64)
        decoded = gguf.quants.dequantize(file.data(info.name).reshape(x.shape[0], -1), info.type_id)
        lost = np.sqrt(((x - decoded)[::16] ** 2).sum() / (x[::16] ** 2).sum())
        assert entry["error"] == pytest.approx(lost, rel=1e-3)
        assert 0.001 < entry["error"] < 0.12


def test_a_finished_output_is_left_alone(source, tmp_path):
    output, beside = tmp_path / "out.gguf", tmp_path / "out.gguf.manifest.json"
    first = Quantizer(source, output).run()
    before = output.stat()
    beside.unlink()
    again = Quantizer(source, output).run()
    assert again.was_done
    assert not first.was_done
    assert again.data_sha256 == first.data_sha256
    assert output.stat() == before
    assert json.loads(beside.read_text())["data_sha256"] == first.data_sha256, (
        "what a kill kept from being written"
    )


def test_another_job_does_not_take_it_for_its_own(source, tmp_path):
    output = tmp_path / "out.gguf"
    Quantizer(source, output).run()
    with pytest.raises(OutputExistsError):
        Quantizer(source, output, "Q8_0")
    with pytest.raises(OutputExistsError):
        Quantizer(source, output, hash_inputs=False)
    raw = bytearray(source.read_bytes())
    raw[-1] ^= 1  # same name, same size, other weights
    source.write_bytes(raw)
    job = Quantizer(source, output)
    with pytest.raises(OutputExistsError, match="made of other inputs"):
        job.run()


def test_without_input_hashes(source, tmp_path):
    output = tmp_path / "out.gguf"
    Quantizer(source, output, hash_inputs=False).run()
    assert json.loads((tmp_path / "out.gguf.manifest.json").read_text())["inputs"][0]["sha256"] is None


def folder_with(tmp_path, name, etag):
    folder = hf.write_folder(tmp_path / "model", hf.LLAMA, hf.decoder_weights(hf.LLAMA))
    metadata = folder / ".cache" / "huggingface" / "download" / f"{name}.metadata"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"main\n{etag(folder / name)}\n1700000000.0\n")
    return folder


def sha256_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def git_blob_of(path):
    raw = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()


@pytest.mark.parametrize(("name", "etag"), [("model.safetensors", sha256_of), ("config.json", git_blob_of)])
def test_published_checksums_are_compared(tmp_path, name, etag):
    folder = folder_with(tmp_path, name, etag)
    Quantizer(folder, tmp_path / "out.gguf", "Q8_0").run()
    raw = bytearray((folder / name).read_bytes())
    raw[-3] ^= 1 if name == "model.safetensors" else 0
    (folder / name).write_bytes(raw if name == "model.safetensors" else raw + b" ")
    with pytest.raises(ModelFormatError, match=r"published was .*; the download is damaged") as caught:
        Quantizer(folder, tmp_path / "other.gguf", "Q8_0").run()
    assert (caught.value.code, caught.value.where) == ("CHECKSUM_MISMATCH", name)
    assert not list(tmp_path.glob("*other*"))


def test_the_cache_of_the_hub_names_its_blobs_by_hash(tmp_path):
    folder = hf.write_folder(tmp_path / "model", hf.LLAMA, hf.decoder_weights(hf.LLAMA))
    (tmp_path / "blobs").mkdir()
    blob = tmp_path / "blobs" / ("a" * 64)
    (folder / "model.safetensors").rename(blob)
    (folder / "model.safetensors").symlink_to(blob)
    with pytest.raises(ModelFormatError, match="published was aaaa"):
        Quantizer(folder, tmp_path / "out.gguf", "Q8_0").run()
