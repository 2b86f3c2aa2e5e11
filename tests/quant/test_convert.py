"""Hugging Face folders: what they become, and that the model answers as the original does."""

from __future__ import annotations

import json
import struct

import gguf
import numpy as np
import pytest

from quant.convert import convertible, open_folder
from quant.quantizer import Quantizer
from runtime.errors import ModelFormatError, UnsupportedModelError
from runtime.gguf import ModelFile
from runtime.tokenizer.build import build_tokenizer
from tests.models.support import Runner
from tests.quant import hugging_face as hf

QWEN2 = hf.LLAMA | {"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True}
QWEN3 = hf.LLAMA | {"architectures": ["Qwen3ForCausalLM"], "head_dim": 32}
TOKENS = [5, 17, 260, 99, 3, 3, 200, 41, 7, 150, 31, 90]


def converted(folder, tmp_path, recipe="BF16"):
    output = tmp_path / f"{recipe}.gguf"
    Quantizer(folder, output, recipe).run()
    return output


def check_answers(path, expected, tolerance):
    expected = expected - expected.max(-1, keepdims=True)
    expected -= np.log(np.exp(expected).sum(-1, keepdims=True))
    for row, best in enumerate(Runner(path, kv_type="f32").top_logprobs(TOKENS)):
        for token, value in best.items():
            assert abs(value - expected[row, token]) < tolerance, (row, token)


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (hf.LLAMA, {}),
        (hf.LLAMA, {"biases": True}),
        (hf.LLAMA | {"head_dim": None, "tie_word_embeddings": True}, {}),
        (QWEN2, {"biases": True}),
        (QWEN3, {"head_norms": True}),
    ],
    ids=["llama", "llama with biases", "llama tied", "qwen2", "qwen3"],
)
@pytest.mark.parametrize("n_shards", [1, 3])
def test_answers_are_the_original_ones(tmp_path, config, parts, n_shards):
    config = {key: value for key, value in config.items() if value is not None}
    weights = {n: x.astype(np.float16) for n, x in hf.decoder_weights(config, **parts).items()}
    folder = hf.write_folder(tmp_path / "model", config, weights, n_shards=n_shards)
    path = converted(folder, tmp_path, "F16")
    check_answers(path, hf.logits(config, weights, TOKENS), 2e-4)


def test_llama_3_scaling(tmp_path):
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = hf.LLAMA | {"rope_scaling": scaling, "rope_theta": 500000.0, "head_dim": 128}
    folder = hf.write_folder(tmp_path / "model", config, hf.decoder_weights(config))
    factors = ModelFile.open(converted(folder, tmp_path, "Q8_0")).data("rope_freqs.weight").view(np.float32)
    # waves of up to 8192 / 4 tokens are unscaled, those of more than 8192 divided by 8, rising between
    wavelengths = 2 * np.pi * 500000.0 ** (np.arange(64) / 64)
    assert (factors[wavelengths < 2048] == 1).all()
    assert (factors[wavelengths > 8192] == 8).all()
    between = factors[(wavelengths >= 2048) & (wavelengths <= 8192)]
    assert len(between) == 6
    assert (np.diff([1, *between, 8]) > 0).all()


def test_metadata_and_tokenizer(tmp_path):
    folder = hf.write_folder(tmp_path / "model", hf.LLAMA, hf.decoder_weights(hf.LLAMA))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [262, 263]}))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    file = ModelFile.open(converted(folder, tmp_path, "Q4_K_M"))
    wanted = {
        "general.architecture": "llama",
        "general.name": "model",
        "general.file_type": 15,
        "llama.block_count": 2,
        "llama.attention.head_count_kv": 2,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": 272,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.bos_token_id": 261,
        "tokenizer.ggml.eos_token_id": 262,
        "tokenizer.ggml.eot_token_id": 263,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": "{{ messages[0].content }}",
    }
    assert {key: file.get(key) for key in wanted} == wanted
    types = file.integers("tokenizer.ggml.token_type")
    assert types[261:265] == [3, 3, 4, 5]
    tokenizer = build_tokenizer(file)
    assert tokenizer.decode(tokenizer.encode("hello world 12345")) == "hello world 12345"
    assert tokenizer.encode("hello")[:2] == [261, file.strings("tokenizer.ggml.tokens").index("hello")]
    assert {info.type_name for info in file.tensors.values()} >= {"F32", "Q5_0", "Q8_0"}


def test_names_are_those_of_the_format(tmp_path):
    """Against gguf's own table of names."""
    for config, parts in ((hf.LLAMA, {}), (QWEN2, {"biases": True}), (QWEN3, {"head_norms": True})):
        weights = hf.decoder_weights(config, **parts)
        folder = hf.write_folder(tmp_path / config["architectures"][0], config, weights)
        source = open_folder(folder)
        arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == source.facts.architecture)
        names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
        wanted = {names.get_name(name, try_suffixes=(".weight", ".bias")) for name in weights}
        assert set(source.tensors) == wanted


def test_same_bytes_however_the_weights_are_cut(tmp_path, monkeypatch):
    weights = {n: hf.to_bf16(x) for n, x in hf.decoder_weights(hf.LLAMA).items()}
    whole = hf.write_folder(tmp_path / "model", hf.LLAMA, weights)
    wanted = ModelFile.open(converted(whole, tmp_path, "Q5_K_M")).get("quantd.data_sha256")
    (tmp_path / "other").mkdir()
    shards = hf.write_folder(tmp_path / "other" / "model", hf.LLAMA, weights, n_shards=4)
    monkeypatch.setattr("quant.quantizer.CHUNK_ELEMENTS", 1024)
    found = ModelFile.open(converted(shards, tmp_path / "other", "Q5_K_M"))
    assert found.get("quantd.data_sha256") == wanted


def refusal(kind, folder, match):
    with pytest.raises(kind, match=match) as caught:
        open_folder(folder)
    return caught.value


def test_wrong_folders_are_refused_by_name(tmp_path):
    weights = hf.decoder_weights(hf.LLAMA)
    folder = hf.write_folder(tmp_path / "model", hf.LLAMA, weights, n_shards=2)

    def configure(**changes):
        (folder / "config.json").write_text(json.dumps(hf.LLAMA | changes))

    configure(architectures=["MambaForCausalLM"])
    refusal(UnsupportedModelError, folder, r"'MambaForCausalLM' is not converted; .*LlamaForCausalLM")
    configure(architectures=None)
    refusal(UnsupportedModelError, folder, "is not converted")
    configure(hidden_size="64")
    refusal(ModelFormatError, folder, r"config\.json: hidden_size is 64; it must be an integer")
    configure(num_hidden_layers=3)
    refusal(ModelFormatError, folder, r"model\.layers\.2\.input_layernorm\.weight is missing; it must be 64")
    configure(num_hidden_layers=1)
    refusal(UnsupportedModelError, folder, r"no use for 9 tensors: model\.layers\.1")
    configure(intermediate_size=97)
    refusal(ModelFormatError, folder, r"gate_proj\.weight is 96 x 64; config\.json makes it 97 x 64")
    configure(rope_scaling={"type": "dynamic", "factor": 2.0})
    refusal(UnsupportedModelError, folder, "rope scaling 'dynamic' is not converted")
    configure()
    open_folder(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    error = refusal(ModelFormatError, folder, r"1 of 2 shards are missing: model-00002-of-00002\.safetensors")
    assert error.code == "MISSING_SHARD"


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", ".hidden.safetensors", "model.bin"]
)
def test_an_index_cannot_leave_the_folder(tmp_path, name):
    folder = hf.write_folder(tmp_path / "model", hf.LLAMA, hf.decoder_weights(hf.LLAMA), n_shards=2)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    refusal(ModelFormatError, folder, "no name of a file in the folder")


def test_folders_without_safetensors(tmp_path):
    folder = hf.write_folder(tmp_path / "model", hf.LLAMA, {})
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refusal(UnsupportedModelError, folder, r"pytorch_model\.bin is a pickle")


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_bad_weights_are_refused_by_name(tmp_path, name):
    weights = hf.decoder_weights(hf.LLAMA)
    weights[name].reshape(-1)[7] = np.nan
    folder = hf.write_folder(tmp_path / "model", hf.LLAMA, weights)
    with pytest.raises(ModelFormatError, match=rf"\({name}\), row 0, column 7: nan is not finite") as caught:
        converted(folder, tmp_path, "Q8_0")
    assert caught.value.code == "NOT_FINITE"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def spoiled_tables():
    good = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
    yield "a gap", good | {"b": {"dtype": "F32", "shape": [1], "data_offsets": [20, 24]}}, "leaves a gap"
    yield "an overlap", good | {"b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}, "overlaps"
    yield "beyond", {"a": {"dtype": "F32", "shape": [2, 8], "data_offsets": [0, 64]}}, "lie outside"
    yield "other size", {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 16]}}, "24 are needed"
    yield "negative", {"a": {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}}, "lie outside"
    yield "huge", {"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 16]}}, "are needed"
    yield "backwards", {"a": {"dtype": "F32", "shape": [0], "data_offsets": [16, 0]}}, "lie outside"
    yield "no numbers", {"a": {"dtype": "F32", "shape": ["2"], "data_offsets": [0, 16]}}, "malformed"
    yield "booleans", {"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, "malformed"
    yield "no entry", {"a": 3}, "malformed"
    yield "cut", {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "the tensors end at"


@pytest.mark.parametrize(
    ("table", "said"), [one[1:] for one in spoiled_tables()], ids=[one[0] for one in spoiled_tables()]
)
def test_malformed_safetensors_are_refused(tmp_path, table, said):
    folder = hf.write_folder(tmp_path / "model", hf.LLAMA, {})
    raw = json.dumps(table).encode()
    (folder / "model.safetensors").write_bytes(
        struct.pack("<Q", len(raw)) + raw + bytes(24 if "gap" in said else 16)
    )
    assert refusal(ModelFormatError, folder, said).code == "BAD_SAFETENSORS"


@pytest.mark.parametrize(
    "front", [b"", b"\x05\0\0\0\0\0\0\0{}", struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 4) + b"nope"]
)
def test_no_safetensors_at_all(tmp_path, front):
    folder = hf.write_folder(tmp_path / "model", hf.LLAMA, {})
    (folder / "model.safetensors").write_bytes(front)
    assert refusal(ModelFormatError, folder, r"model\.safetensors").code == "BAD_SAFETENSORS"


def test_quantized_checkpoints_are_refused(tmp_path):
    weights = hf.decoder_weights(hf.LLAMA)
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = np.zeros((96, 64), np.uint8)
    folder = hf.write_folder(tmp_path / "model", hf.LLAMA, weights)
    hf.write_safetensors(folder / "model.safetensors", weights, dtype={name: "F8_E4M3"})
    refusal(UnsupportedModelError, folder, f"{name} is of dtype F8_E4M3; convert from the original weights")


def test_only_served_architectures_are_offered():
    assert {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"} <= set(
        convertible()
    )
