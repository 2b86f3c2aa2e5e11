"""Perplexity of each decoder against llama.cpp's own, on one random model file of the architecture.

llama.cpp comes with the wheel `xllamacpp` (the extra "bench"); without it the test says so and is skipped.  Set
QUANTD_PEER_TABLE to a file to have the figures appended to it, as a row for the README's table.
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

from tests.models.support import Runner, Tiny, write_tiny
from tests.models.test_architectures import GRANITE, LONGROPE, MODELS, YARN

N_VOCAB = 320
PEER = Path(__file__).with_name("peer_perplexity.py")
# Of log-perplexity: llama.cpp's GELU goes through a table of half floats, and its sums are in another order.
TOLERANCE = 2e-3

# Small, so that tied logits stay small.
EMBEDDING = (np.random.default_rng(3).standard_normal((N_VOCAB, 64)) * 0.03).astype(np.float32)

CASES = {
    "llama": MODELS["llama 3 with rope_freqs"],
    "llama, Mixtral": MODELS["mixtral"],
    "llama, yarn": Tiny(keys=YARN),
    "qwen2": Tiny(arch="qwen2"),
    "qwen3": Tiny(arch="qwen3", head_dim=32),
    "qwen3moe": Tiny(arch="qwen3moe", head_dim=32),
    "granite": Tiny(arch="granite", keys=GRANITE),
    "olmo2": Tiny(arch="olmo2"),
    "smollm3": Tiny(arch="smollm3", n_layers=4),
    "phi3": Tiny(arch="phi3"),
    "phi3, longrope": Tiny(
        arch="phi3", longrope=True, keys=LONGROPE | {"rope.scaling.original_context_length": 512}
    ),
    "gemma2": Tiny(
        arch="gemma2",
        tied=True,
        head_dim=32,
        keys={"attention.sliding_window": 10},
        tensors={"token_embd.weight": EMBEDDING},
    ),
    "gemma3": Tiny(
        arch="gemma3",
        n_layers=7,
        tied=True,
        head_dim=32,
        keys={"attention.sliding_window": 10, "rope.freq_base": 1e6},
        tensors={"token_embd.weight": EMBEDDING},
    ),
}


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


@pytest.mark.skipif(
    find_spec("xllamacpp") is None, reason="xllamacpp is not installed (pip install '.[bench]')"
)
@pytest.mark.parametrize("name", CASES)
def test_perplexity_of_random_models(tmp_path, name):
    path = with_vocabulary(
        write_tiny(tmp_path / "a.gguf", CASES[name].but(n_vocab=N_VOCAB)), tmp_path / "m.gguf"
    )
    tokens = [1, *np.random.default_rng(5).integers(259, N_VOCAB, 31).tolist()]
    run = subprocess.run(
        [sys.executable, str(PEER), str(path), *map(str, tokens)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-800:]
    peer = float(run.stdout.split()[-1])
    result = Runner(path, kv_type="f32").step([(0, 0, tokens)], range(31), targets=tokens[1:])
    own = float(np.exp(-result.target_logprobs.mean()))
    table = os.environ.get("QUANTD_PEER_TABLE")
    if table:
        with open(table, "a", encoding="utf-8") as file:
            file.write(f"| {name} | {own:.4f} | {peer:.4f} |\n")
    assert abs(np.log(own) - np.log(peer)) < TOLERANCE, (own, peer)
