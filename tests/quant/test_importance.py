"""Importance: what a model's inputs look like, and the files that carry it."""

from __future__ import annotations

import struct
from pathlib import Path
from types import SimpleNamespace

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
from tests.models.support import N_VOCAB, Tiny, write_tiny

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


@pytest.fixture
def experts_importance(tmp_path, monkeypatch):
    """What a small random model of four experts sees; it has no tokenizer, so its tokens are random as well."""
    tokens = np.random.default_rng(5).integers(0, N_VOCAB, 128).tolist()
    tokenizer = SimpleNamespace(eog_ids=(), add_bos=False, bos_id=None, encode=lambda *_, **__: tokens)
    monkeypatch.setattr("runtime.model.build_tokenizer", lambda _: tokenizer)

    def collected(n_used: int) -> Importance:
        tiny = Tiny(n_experts=4, n_embd=64, n_ff=96, keys={"expert_used_count": n_used})
        return collect(write_tiny(tmp_path / f"moe{n_used}.gguf", tiny), "", ctx=64, threads=2)

    return collected


@pytest.mark.parametrize("n_used", [1, 2, 4])
def test_each_expert_counts_the_rows_that_it_was_given(experts_importance, n_used):
    found = experts_importance(n_used)
    router = found.tensors["blk.0.ffn_gate_inp.weight"]
    gate, up, down = (found.tensors[f"blk.0.ffn_{kind}_exps.weight"] for kind in ("gate", "up", "down"))
    assert gate.mean_squares.shape == (4, 64)
    assert down.mean_squares.shape == (4, 96)
    assert gate.counts.sum() == n_used * found.n_tokens
    assert np.array_equal(gate.counts, up.counts)
    assert np.array_equal(gate.counts, down.counts)
    assert np.array_equal(gate.mean_squares, up.mean_squares)
    # every row went to n_used experts, so the experts together saw the router's input n_used times
    np.testing.assert_allclose(
        (gate.mean_squares * gate.counts[:, None]).sum(0),
        n_used * router.mean_squares[0] * router.counts[0],
        rtol=1e-4,
    )
    if n_used == 4:
        np.testing.assert_allclose(gate.mean_squares, np.tile(router.mean_squares, (4, 1)), rtol=1e-5)


@pytest.mark.parametrize("name", ["imatrix.gguf", "imatrix.dat"])
def test_files_keep_experts_apart(experts_importance, tmp_path, name):
    found = experts_importance(1)
    write_imatrix(tmp_path / name, found)
    back = read_imatrix(tmp_path / name)
    for kind, n_in in (("gate", 64), ("down", 96)):
        tensor = f"blk.0.ffn_{kind}_exps.weight"
        for expert in range(4):
            np.testing.assert_allclose(
                back.of(tensor, n_in, expert), found.of(tensor, n_in, expert), rtol=1e-5
            )
        if name.endswith("gguf"):
            assert np.array_equal(back.tensors[tensor].counts, found.tensors[tensor].counts)
