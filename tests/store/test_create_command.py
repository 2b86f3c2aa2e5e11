"""`quantd create`: an error names the line of the Modelfile that it comes from, and leaves nothing."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from daemon.cli import root
from daemon.errors import ApiError
from daemon.store.models import ModelStore
from daemon.store.names import ModelName
from quant.convert.lora import Adapter
from quant.quantizer import Quantizer
from runtime.gguf import ModelFile
from tests.daemon.fakes import write_gguf
from tests.quant import hugging_face as hf
from tests.quant.test_lora import write_adapter


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTD_STORE_DIR", str(tmp_path / "store"))
    monkeypatch.setenv("QUANTD_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("QUANTD_REGISTRY", "http://127.0.0.1:1")
    (tmp_path / "models").mkdir()
    write_gguf(tmp_path / "models" / "demo.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and no more")
    return tmp_path


def quantd(*arguments):
    return CliRunner().invoke(root, [str(one) for one in arguments], standalone_mode=False)


@pytest.mark.parametrize(
    ("text", "line", "part", "code"),
    [
        ("FROM demo\nPARAMETER heat 1\n", 2, "heat is no parameter", 64),
        ("# x\nFROM ./none.gguf\n", 2, "./none.gguf is not there", 64),
        ("# x\nFROM ..\n", 2, "a folder without config.json", 64),
        ("FROM broken.gguf\n", 1, "broken.gguf", 65),
        ("FROM demo\nTEMPLATE {% for %}\n", 2, "template", 65),
        ("FROM demo\nADAPTER ./x\n", 2, "adapter", 64),
        ("FROM demo\nSYSTEM " + "x" * (2**20 + 1), 2, "at most 1048576 bytes", 64),
        ("FROM no/such\n", 1, "127.0.0.1", 69),
        ("SYSTEM x\n", 2, "without FROM", 64),
        ("FROM demo\nSYSTEM \xff\n", 2, "no UTF-8", 64),
    ],
)
def test_an_error_names_its_line(here, text, line, part, code):
    path = here / "Modelfile"
    path.write_bytes(text.encode("latin-1"))
    done = quantd("create", "x", "-f", path)
    assert isinstance(done.exception, ApiError), done.exception
    assert done.exception.message.startswith(f"{path}, line {line}: "), done.exception.message
    assert part in done.exception.message
    assert done.exception.row.exit_code == code
    assert json.loads(quantd("list", "--json").stdout)["models"][0]["name"] == "demo"
    assert not (here / "store" / "manifests").exists()


def test_an_adapter_needs_a_folder_to_be_merged_into(here):
    weights = hf.decoder_weights(hf.LLAMA)
    (here / "lora").mkdir()
    (here / "lora" / "adapter_config.json").write_text("{}")
    hf.write_folder(here / "tiny", hf.LLAMA, weights)
    path = here / "Modelfile"
    for source, part in (("demo", "is a GGUF file"), ("./tiny", "adapter_config.json: r is missing")):
        path.write_text(f"FROM {source}\nADAPTER lora\n")
        done = quantd("create", "x", "-f", path)
        assert isinstance(done.exception, ApiError)
        assert f"{path}, line 2: " in done.exception.message
        assert part in done.exception.message
    assert not list((here / "store").glob("blobs/making*"))


def test_a_hugging_face_folder_with_an_adapter_becomes_a_model(here):
    weights = {name: x.astype(np.float16) for name, x in hf.decoder_weights(hf.LLAMA).items()}
    folder = hf.write_folder(here / "tiny", hf.LLAMA, weights)
    write_adapter(here / "lora", weights)
    (here / "Modelfile").write_text(
        "FROM ./tiny\nADAPTER ./lora/adapter_model.safetensors\nSYSTEM Be kind.\n"
    )
    done = quantd("create", "kind", "-f", here / "Modelfile", "-q", "q8_0", "--json")
    assert done.exception is None, done.exception
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[-1]["name"] == "kind:latest"
    assert [one["status"] for one in events[-3:-1]] == ["computing the digest", "writing the manifest"]
    Quantizer(folder, here / "same.gguf", "Q8_0", adapters=[Adapter(here / "lora")]).run()
    stored = ModelStore(here / "store").find(ModelName.parse("kind"))
    found, same = ModelFile.open(stored.path), ModelFile.open(here / "same.gguf")
    assert all(np.array_equal(found.data(name), same.data(name)) for name in same.tensors)
    assert stored.manifest.source == "tiny, converted to Q8_0, 1 adapter merged"
    assert not list((here / "store" / "blobs").glob("making*"))


def test_no_modelfile(here):
    done = quantd("create", "x", "-f", here / "none")
    assert "name a Modelfile with -f" in done.exception.message
