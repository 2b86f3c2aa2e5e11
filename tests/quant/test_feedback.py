"""Error feedback: what the calibration gathers for it, and that files made with it are closer to the original."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from daemon.__main__ import run
from quant.chunks import CHUNK_ELEMENTS, chunks_of, encode_chunk
from quant.compare import compare
from quant.feedback import ErrorFeedback
from quant.importance import collect
from quant.input_files import InputFiles
from quant.moments import InputMoments
from quant.plan import plan_quantization
from quant.policy import Overrides
from quant.quantizer import Quantizer
from quant.recipes import find_recipe
from quant.source import open_gguf
from runtime._native import FeedbackFactors, dequantize, feed_back, has_levels, type_traits
from runtime.gguf import ModelFile
from runtime.memory import RuntimeSettings
from runtime.model import load_model

DEMO = Path(__file__).resolve().parents[2] / "ops/demo/quantd-demo-f16.gguf"
HELDOUT = (DEMO.parent / "heldout.txt").read_text(encoding="utf-8")
# The text that calibrates and the one that is measured on have nothing in common.
CALIBRATION, MEASURED = HELDOUT[40_000:50_000], HELDOUT[:12_000]
TYPES = ("Q4_0", "Q5_1", "IQ4_NL", "IQ4_XS", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    with InputMoments(tmp_path_factory.mktemp("moments")) as moments:
        importance = collect(DEMO, CALIBRATION, max_tokens=2048, threads=1, moments=moments)
        yield importance, moments


def weights_of(name: str) -> np.ndarray:
    info = ModelFile.open(DEMO).tensors[name]
    return ModelFile.open(DEMO).data(name).view("<f2").astype(np.float32).reshape(-1, info.shape[0])


def test_moments_are_those_of_the_inputs(calibrated):
    importance, moments = calibrated
    matrices = {
        t.name: t.shape[0]
        for t in ModelFile.open(DEMO).tensors.values()
        if len(t.shape) > 1 and t.name != "token_embd.weight"
    }
    assert moments.n_seen("token_embd.weight") == 0
    for name, n_in in matrices.items():
        n_seen = moments.n_seen(name)
        assert n_seen == 2048
        sums = moments.of(name)
        assert sums.shape == (n_in // 256, 256, 256)
        squares = np.concatenate([np.diag(one) for one in sums])
        np.testing.assert_allclose(squares / n_seen, importance.tensors[name].mean_squares[0], rtol=1e-4)
        for one in sums:
            # No two columns go together more than each with itself.
            scale = np.sqrt(np.outer(np.diag(one), np.diag(one)))
            assert (np.abs(np.triu(one, 1)) <= scale * 1.0001).all()
            assert np.abs(np.triu(one, 1)).max() > 0
    assert np.array_equal(moments.of("blk.1.ffn_gate.weight"), moments.of("blk.1.ffn_up.weight"))
    assert not np.array_equal(moments.of("blk.1.ffn_gate.weight"), moments.of("blk.1.attn_q.weight"))


@pytest.mark.parametrize("type_name", TYPES)
def test_products_lose_less(calibrated, type_name):
    """Of tensors of one run a row and of three: what the calibration's inputs see of the error falls."""
    importance, moments = calibrated
    feedback = ErrorFeedback(moments)
    overrides = Overrides.parse(tensor_types=[f".={type_name}"])
    source = open_gguf(DEMO)
    plan = plan_quantization(source, find_recipe("Q4_K_M"), overrides, calibrated=True)
    ratios = []
    with InputFiles(source.files, source.file_sizes) as files:
        for tensor in plan.tensors:
            if tensor.source.name not in {
                "blk.2.attn_q.weight",
                "blk.2.ffn_down.weight",
                "blk.4.ffn_up.weight",
            }:
                continue
            x = weights_of(tensor.source.name)
            lost = []
            for used in (None, feedback):
                (chunk,) = chunks_of(tensor, CHUNK_ELEMENTS)
                data = tensor.source.read(files, chunk.first, chunk.n_elements)
                out = encode_chunk(chunk, data, 2, importance, used)
                y = dequantize(type_name, np.asarray(out), x.size).reshape(x.shape)
                lost.append(moments.loss(tensor.source.name, x - y))
            ratios.append(lost[1] / lost[0])
    assert len(ratios) == 3
    assert max(ratios) < 0.75, ratios


def test_loss_is_that_of_the_products(calibrated):
    _, moments = calibrated
    rng = np.random.default_rng(1)
    errors = rng.standard_normal((3, 768)).astype(np.float32)
    total = 0.0
    for at, sums in enumerate(moments.of("blk.0.ffn_down.weight")):
        part = errors[:, at * 256 : at * 256 + 256].astype(np.float64)
        both = np.triu(sums).astype(np.float64) + np.triu(sums, 1).T.astype(np.float64)
        total += float(np.einsum("ij,jk,ik->", part, both, part))
    assert moments.loss("blk.0.ffn_down.weight", errors) == pytest.approx(total, rel=1e-6)


def test_kinds_of_blocks():
    named = {
        type_traits(one)[0] for one in (2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 20, 23, 30, 39) if has_levels(one)
    }
    assert named == {*TYPES, "Q4_1", "Q5_0"}
    assert not has_levels(1 << 20)


def test_wrong_shapes_are_refused():
    moments = np.zeros((2, 256, 256), np.float32)
    with pytest.raises(ValueError, match="take moments"):
        FeedbackFactors(moments, 256, 10, 1)
    with pytest.raises(ValueError, match="multiple of 32"):
        FeedbackFactors(moments, 510, 10, 1)
    factors = FeedbackFactors(moments, 512, 10, 1)
    source, out = np.zeros(512 * 4, np.uint8), np.zeros(2 * 144, np.uint8)
    feed_back(source, 0, 1, 12, out, factors, 1)
    for n_rows, type_id, blocks in (
        (2, 12, out),
        (1, 12, out[:-1].copy()),
        (1, 8, np.zeros(16 * 34, np.uint8)),
    ):
        with pytest.raises(ValueError, match=r"rows|levels"):
            feed_back(source, 0, n_rows, type_id, blocks, factors, 1)


def test_same_bytes_for_every_number_of_threads_and_closer_to_the_original(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(CALIBRATION, encoding="utf-8")
    made = {}
    for name, extra in (
        ("one", ["--threads", "1"]),
        ("three", ["--threads", "3"]),
        ("without", ["--no-error-feedback"]),
    ):
        output = tmp_path / f"{name}.gguf"
        assert run(["quantize", str(DEMO), str(output), f"--calibrate={text}", *extra]) == 0
        made[name] = output
    assert made["one"].read_bytes() == made["three"].read_bytes()
    manifest = json.loads((tmp_path / "one.gguf.manifest.json").read_text(encoding="utf-8"))
    assert "importance=text.txt:" in manifest["options"]
    assert "error-feedback=" in manifest["options"]
    assert "error-feedback=" not in (tmp_path / "without.gguf.manifest.json").read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir() if ".gguf" not in path.name} == {"text.txt"}
    divergence = {name: _divergence(made[name]) for name in ("one", "without")}
    assert divergence["one"] < 0.8 * divergence["without"], divergence


def _divergence(quantized: Path) -> float:
    settings = RuntimeSettings(sessions=1, context_tokens=512, max_step_rows=256)
    models = [load_model(path, settings) for path in (DEMO, quantized)]
    try:
        return compare(*models, MEASURED, chunks=8).kl_mean
    finally:
        for model in models:
            model.close()


def test_no_room_for_the_moments(tmp_path, capsys, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert run(["quantize", str(DEMO), str(tmp_path / "out.gguf"), "--calibrate"]) != 0
    assert "--no-error-feedback" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_resumed_and_finished_runs_need_the_same_moments(calibrated, tmp_path):
    importance, moments = calibrated
    output = tmp_path / "out.gguf"
    feedback = ErrorFeedback(moments)
    first = Quantizer(DEMO, output, importance=importance, feedback=feedback).run()
    again = Quantizer(DEMO, output, importance=importance, feedback=feedback).run()
    assert not first.was_done
    assert again.was_done
    without = Quantizer(DEMO, output, importance=importance, force=True).run()
    assert without.data_sha256 != first.data_sha256
