"""Importance: what a model's inputs look like, and the files that carry it."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from quant.calibration_text import TEXT
from quant.importance import (
    Importance,
    TensorImportance,
    collect,
    read_imatrix,
    write_imatrix,
)
from runtime.errors import ModelFormatError, RequestError
from runtime.gguf import ModelFile
from runtime.memory import RuntimeSettings
from runtime.model import load_model

DEMO = Path(__file__).resolve().parents[2] / "ops/demo/quantd-demo-f16.gguf"


@pytest.fixture(scope="module")
def importance():
    return collect(DEMO, TEXT, max_tokens=256, ctx=128, threads=1)


def test_every_matrix_is_covered(importance):
    file = ModelFile.open(DEMO)
    matrices = {info.name: info.shape[0] for info in file.tensors.values() if len(info.shape) > 1}
    assert set(importance.tensors) == set(matrices)
    assert importance.n_tokens == 256
    assert importance.n_chunks == 2
    for name, n_in in matrices.items():
        means = importance.tensors[name].of_matrix(0)
        assert means.shape == (n_in,)
        assert (means >= 0).all()
        assert means.any()
    # query, key and value read the same input
    assert np.array_equal(
        importance.of("blk.0.attn_q.weight", 256), importance.of("blk.0.attn_v.weight", 256)
    )


def test_normalized_inputs_have_the_mean_square_of_their_weights(importance):
    """The input of the first layer's query matrix is an RMS-normalized row times the norm's weight."""
    file = ModelFile.open(DEMO)
    gain = file.data("blk.0.attn_norm.weight").view(np.float32)
    means = importance.of("blk.0.attn_q.weight", 256)
    assert np.mean(means / gain**2) == pytest.approx(1, rel=1e-3)


def test_short_text_and_steps_before_collecting_are_refused():
    with pytest.raises(RequestError, match="at least 64"):
        collect(DEMO, "too short", threads=1)
    model = load_model(DEMO, RuntimeSettings(sessions=1, context_tokens=64, threads=1, max_step_rows=8))
    with pytest.raises(ValueError, match="not being collected"):
        model.input_statistics()
    model.close()


def test_built_in_text_is_long_enough():
    assert len(TEXT.encode()) > 6000  # some 1,500 tokens and more, whatever the vocabulary


@pytest.mark.parametrize("name", ["imatrix.gguf", "imatrix.dat"])
def test_files_come_back(importance, tmp_path, name):
    write_imatrix(tmp_path / name, importance)
    back = read_imatrix(tmp_path / name)
    assert set(back.tensors) == set(importance.tensors)
    assert back.datasets == ("built-in",)
    assert back.n_chunks == 2
    for tensor, one in importance.tensors.items():
        np.testing.assert_allclose(back.tensors[tensor].mean_squares, one.mean_squares, rtol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_gguf_file_is_what_llama_quantize_expects(importance, tmp_path):
    write_imatrix(tmp_path / "i.gguf", importance)
    reader = gguf.GGUFReader(tmp_path / "i.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.chunk_size"].contents() == 128
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    sums, counts = tensors["blk.1.ffn_down.weight.in_sum2"], tensors["blk.1.ffn_down.weight.counts"]
    assert sums.dtype == counts.dtype == np.float32
    expected = importance.of("blk.1.ffn_down.weight", 768)
    np.testing.assert_allclose(sums.reshape(-1) / counts.reshape(-1), expected, rtol=1e-5)


def test_experts_have_their_own_and_an_unused_one_that_of_all(tmp_path):
    means = np.array([[1, 2], [3, 4], [0, 0]], np.float32)
    counts = np.array([10, 30, 0], np.float32)
    made = Importance({"blk.0.ffn_up_exps.weight": TensorImportance(means, counts)}, ("text",), 1)
    write_imatrix(tmp_path / "i.gguf", made)
    back = read_imatrix(tmp_path / "i.gguf")
    assert back.of("blk.0.ffn_up_exps.weight", 2, 1).tolist() == [3, 4]
    assert back.of("blk.0.ffn_up_exps.weight", 2, 2).tolist() == [2.5, 3.5]
    assert back.of("blk.0.attn_q.weight", 2) is None
    with pytest.raises(RequestError, match="another model"):
        back.of("blk.0.ffn_up_exps.weight", 3)


def test_old_file_of_another_program(tmp_path):
    """Entry by entry as llama-imatrix writes them: sums over calls, number of calls first."""
    name = b"blk.0.attn_q.weight"
    raw = struct.pack("<i", 1) + struct.pack("<i", len(name)) + name
    raw += struct.pack("<ii", 4, 2) + struct.pack("<2f", 8.0, 2.0)
    (tmp_path / "i.dat").write_bytes(raw)
    assert read_imatrix(tmp_path / "i.dat").of("blk.0.attn_q.weight", 2).tolist() == [2.0, 0.5]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x01\x00\x00\x00",
        b"no imatrix at all",
        struct.pack("<iii", 1, 1, 1) + b"x",
        struct.pack("<ii", 1, -5),
        struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, -1),
        struct.pack("<ii", 1, 1) + b"a" + struct.pack("<iif", 1, 1, float("nan")),
    ],
)
def test_damaged_files_are_refused(tmp_path, raw):
    (tmp_path / "bad").write_bytes(raw)
    with pytest.raises(ModelFormatError):
        read_imatrix(tmp_path / "bad")


def test_model_file_is_no_imatrix():
    with pytest.raises(ModelFormatError, match="no imatrix file"):
        read_imatrix(DEMO)
