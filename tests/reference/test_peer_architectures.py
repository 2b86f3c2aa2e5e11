"""Perplexity of each decoder against llama.cpp's own, on one random model file of the architecture.

llama.cpp comes with the wheel `xllamacpp` (`make test-peers` installs it); without it our figures are compared with those
that it gave when they were recorded.  QUANTD_RECORD_FIGURES=1 records them anew.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest

from runtime.models import architecture_names
from tests.conftest import REPOSITORY
from tests.models.support import Runner, write_tiny
from tests.reference.architectures import CASES, N_VOCAB, ROWS, figures, record, table

PEER = Path(__file__).with_name("peer_perplexity.py")
# Of log-perplexity: llama.cpp's GELU goes through a table of half floats, and its sums are in another order.
TOLERANCE = 2e-3
# Ours against what it was when the figures were recorded: the CPU's level moves the last digits.
OWN_TOLERANCE = 1e-4
RECORD = bool(os.environ.get("QUANTD_RECORD_FIGURES"))


def with_vocabulary(source: Path, path: Path) -> Path:
    """The same model with a SentencePiece vocabulary, which llama.cpp wants."""
    reader = gguf.GGUFReader(source)
    arch = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(path, arch)
    for key, field in reader.fields.items():
        if key.startswith(arch + "."):
            sub_type = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=sub_type)
    pieces = [f"▁{i}" for i in range(N_VOCAB - 259)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces])
    writer.add_token_scores([0.0] * N_VOCAB)
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(pieces))
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def measured(tmp_path: Path, name: str) -> tuple[Path, list[int], float]:
    """The model file of a case, the token ids, and our perplexity of them."""
    path = with_vocabulary(
        write_tiny(tmp_path / "a.gguf", CASES[name].but(n_vocab=N_VOCAB)), tmp_path / "m.gguf"
    )
    tokens = [1, *np.random.default_rng(5).integers(259, N_VOCAB, 31).tolist()]
    result = Runner(path, kv_type="f32").step([(0, 0, tokens)], range(31), targets=tokens[1:])
    return path, tokens, float(np.exp(-result.target_logprobs.mean()))


@pytest.mark.parametrize("name", CASES)
def test_perplexity_is_that_of_llama_cpp_as_recorded(tmp_path, name):
    _, _, own = measured(tmp_path, name)
    before, peer = figures()[name]
    assert abs(np.log(own) - np.log(before)) < OWN_TOLERANCE, (own, before)
    assert abs(np.log(own) - np.log(peer)) < TOLERANCE, (own, peer)


@pytest.mark.skipif(find_spec("xllamacpp") is None, reason="xllamacpp is not installed (make test-peers)")
@pytest.mark.parametrize("name", CASES)
def test_perplexity_is_that_of_llama_cpp(tmp_path, name):
    path, tokens, own = measured(tmp_path, name)
    run = subprocess.run(
        [sys.executable, str(PEER), str(path), *map(str, tokens)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-800:]
    peer = float(run.stdout.split()[-1])
    if RECORD:
        record(name, own, peer)
    assert abs(np.log(own) - np.log(peer)) < TOLERANCE, (own, peer)


def test_every_architecture_has_a_row():
    assert {row.architecture.split()[0] for row in ROWS} == set(architecture_names())
    assert {row.case for row in ROWS} >= set(CASES)


def test_the_readme_has_this_table():
    assert table() in (REPOSITORY / "README.md").read_text(encoding="utf-8"), (
        "run: python ops/architectures.py"
    )
