"""Calibrated quantization through the command: importance is heeded, named in the manifest, and the same everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from daemon.__main__ import run
from quant.importance import read_imatrix
from quant.quantizer import Quantizer
from quant.sensitivity import tensor_losses
from runtime.gguf import ModelFile

DEMO = Path(__file__).resolve().parents[2] / "ops/demo/quantd-demo-f16.gguf"


@pytest.fixture(scope="module")
def imatrix(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imatrix")
    text = folder / "text.txt"
    text.write_text((DEMO.parent / "heldout.txt").read_text(encoding="utf-8")[:1200], encoding="utf-8")
    arguments = [
        "quantize",
        str(DEMO),
        str(folder / "q4.gguf"),
        "--calibrate",
        str(text),
        "--no-error-feedback",
    ]
    assert run([*arguments, "--save-imatrix", str(folder / "imatrix.gguf"), "--threads", "2"]) == 0
    return folder


def test_output_error_falls_and_the_manifest_names_the_text(imatrix, tmp_path):
    plain = tmp_path / "plain.gguf"
    Quantizer(DEMO, plain, "Q4_K_M").run()
    importance = read_imatrix(imatrix / "imatrix.gguf")
    original, calibrated = ModelFile.open(DEMO), ModelFile.open(imatrix / "q4.gguf")
    with_it = {one.name: one for one in tensor_losses(original, calibrated, importance)}
    without = {one.name: one for one in tensor_losses(original, ModelFile.open(plain), importance)}
    assert {n: one.type_name for n, one in with_it.items()} == {
        n: one.type_name for n, one in without.items()
    }
    ratios = [with_it[name].error / without[name].error for name in with_it if name != "token_embd.weight"]
    assert np.mean(ratios) < 0.95
    assert max(ratios) < 1.01
    manifest = json.loads((imatrix / "q4.gguf.manifest.json").read_text(encoding="utf-8"))
    assert manifest["options"].startswith("importance=text.txt:")


def test_imatrix_file_gives_the_same_bytes_on_any_number_of_threads(imatrix, tmp_path):
    files = []
    for threads in ("1", "3"):
        output = tmp_path / f"{threads}.gguf"
        arguments = ["quantize", str(DEMO), str(output), "--imatrix", str(imatrix / "imatrix.gguf")]
        assert run([*arguments, "--threads", threads]) == 0
        files.append(output.read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("place", ["first", "last"])
def test_calibrate_without_a_text_takes_no_argument(tmp_path, capsys, place):
    output = tmp_path / "out.gguf"
    files = [str(DEMO), str(output)]
    arguments = ["--calibrate", *files] if place == "first" else [*files, "--calibrate"]
    assert run(["quantize", "--threads", "2", *arguments]) == 0
    assert "of built-in" in capsys.readouterr().err
    assert output.is_file()


def test_calibrate_does_not_hide_a_missing_output(capsys):
    assert run(["quantize", "--calibrate", str(DEMO)]) == 64
    assert "OUTPUT" in capsys.readouterr().err


def test_refusals(imatrix, tmp_path, capsys):
    output = str(tmp_path / "out.gguf")
    both = ["--calibrate", str(imatrix / "text.txt"), "--imatrix", str(imatrix / "imatrix.gguf")]
    assert run(["quantize", str(DEMO), output, *both]) == 64
    assert "not both" in capsys.readouterr().err
    assert run(["quantize", str(DEMO), output, "--save-imatrix", str(tmp_path / "i.dat")]) == 64
    assert run(["quantize", str(DEMO), output, "--imatrix", str(DEMO)]) == 65
    assert list(tmp_path.iterdir()) == []


def test_verify_at_the_end(tmp_path, capsys):
    output = tmp_path / "q8.gguf"
    text = tmp_path / "text.txt"
    text.write_text((DEMO.parent / "heldout.txt").read_text(encoding="utf-8")[:5000], encoding="utf-8")
    arguments = ["quantize", str(DEMO), str(output), "--recipe", "Q8_0", "--json", "--verify", str(text)]
    assert run([*arguments, "--max-increase", "-50"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["recipe"] == "Q8_0"
    assert facts["divergence"]["passed"] is False
    assert facts["divergence"]["kl_mean"] < 0.05
