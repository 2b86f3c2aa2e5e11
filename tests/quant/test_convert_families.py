"""Each family's names against the format's own table, the values of what is changed, and what the runtime says of it."""

from __future__ import annotations

import json
import re

import gguf
import numpy as np
import pytest

import runtime.models
from quant.convert import open_folder
from quant.input_files import InputFiles
from quant.quantizer import Quantizer
from runtime.errors import ModelFormatError, UnsupportedModelError
from runtime.gguf import ModelFile
from runtime.models import architecture_names
from tests.quant import families
from tests.quant import hugging_face as hf

ARCHITECTURES = {"mixtral": "llama"}


@pytest.fixture
def everything_served(monkeypatch):
    """Mappings are looked at whether or not the runtime serves the architecture yet."""
    names = tuple(gguf.MODEL_ARCH_NAMES.values())
    monkeypatch.setattr("quant.convert.architecture_names", lambda: names)


def write(tmp_path, name, config=None, weights=None):
    folder = tmp_path / "model"
    hf.write_folder(
        folder, config or families.CONFIGS[name], families.weights_of(name) if weights is None else weights
    )
    if name in {"bert", "nomic-bert"}:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folder / file).unlink()
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(200))]
        (folder / "vocab.txt").write_text("\n".join(words))
    return folder


def read(source, name):
    """Values (rows of the file order) of one output tensor in F32."""
    tensor = source.tensors[name]
    with InputFiles(source.files, source.file_sizes) as files:
        raw = tensor.read(files, 0, tensor.n_elements)
    return np.frombuffer(raw, np.float32).reshape(tuple(reversed(tensor.shape)))


@pytest.mark.parametrize("name", families.CONFIGS)
def test_names_are_those_of_the_format(tmp_path, everything_served, name):
    weights = families.weights_of(name)
    source = open_folder(write(tmp_path, name))
    architecture = ARCHITECTURES.get(name, name)
    assert source.facts.architecture == architecture
    arch = next(a for a, known in gguf.MODEL_ARCH_NAMES.items() if known == architecture)
    names = gguf.get_tensor_name_map(arch, 2)
    wanted = set()
    for theirs in weights:
        stacked = re.sub(r"(experts)\.\d+\.", r"\1.", theirs)
        mapped = names.get_name(stacked, try_suffixes=(".weight", ".bias"))
        if "pooler" not in theirs:
            assert mapped is not None, theirs
            wanted.add(mapped)
    assert set(source.tensors) == wanted


@pytest.mark.parametrize("name", families.CONFIGS)
def test_the_runtime_takes_it(tmp_path, name):
    if ARCHITECTURES.get(name, name) not in architecture_names():
        pytest.skip(f"{name} is not served yet")
    if name == "mixtral" and not hasattr(runtime.models, "architecture"):
        pytest.skip("mixtures of experts are not served yet")
    output = tmp_path / "out.gguf"
    Quantizer(write(tmp_path, name), output, "Q8_0").run()
    assert ModelFile.open(output).architecture == ARCHITECTURES.get(name, name)


def test_gemma_norms_are_stored_less_one(tmp_path, everything_served):
    weights = families.weights_of("gemma3")
    source = open_folder(write(tmp_path, "gemma3"))
    for ours, theirs in (
        ("output_norm", "model.norm"),
        ("blk.1.attn_norm", "model.layers.1.input_layernorm"),
        ("blk.1.post_attention_norm", "model.layers.1.post_attention_layernorm"),
        ("blk.1.ffn_norm", "model.layers.1.pre_feedforward_layernorm"),
        ("blk.1.post_ffw_norm", "model.layers.1.post_feedforward_layernorm"),
        ("blk.1.attn_q_norm", "model.layers.1.self_attn.q_norm"),
    ):
        assert np.array_equal(read(source, f"{ours}.weight"), weights[f"{theirs}.weight"] + np.float32(1))


def test_gemma_3_with_images_gives_its_text_half(tmp_path, everything_served):
    """Nested configuration and names, the tower left out, and rows behind the last token dropped."""
    weights = families.weights_of("gemma3")
    text = {key: value for key, value in families.CONFIGS["gemma3"].items() if key != "architectures"}
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text, "vision_config": {}}
    nested = {f"language_model.{name}": x for name, x in weights.items()}
    nested["vision_tower.patch.weight"] = np.ones((4, 4), np.float32)
    source = open_folder(write(tmp_path, "gemma3", config, nested))
    assert not [name for name in source.tensors if "vision" in name]
    n_tokens = 264  # of the small tokenizer
    table = read(source, "token_embd.weight")
    assert np.array_equal(table, weights["model.embed_tokens.weight"][:n_tokens])
    assert {e.key: e.value for e in source.metadata}["gemma3.vocab_size"] == n_tokens


def test_experts_are_stacked_in_order(tmp_path, everything_served):
    weights = families.weights_of("qwen3moe")
    source = open_folder(write(tmp_path, "qwen3moe"))
    for part in ("gate", "up", "down"):
        name = f"model.layers.1.mlp.experts.{{}}.{part}_proj.weight"
        expected = np.stack([weights[name.format(i)] for i in range(4)])
        assert np.array_equal(read(source, f"blk.1.ffn_{part}_exps.weight"), expected)
    router = source.tensors["blk.1.ffn_gate_inp.weight"]
    assert (router.type_name, router.shape) == ("F32", (64, 4))
    # the newer way to store them gives the same
    joined = {name: x for name, x in weights.items() if ".experts." not in name}
    for layer in range(2):
        at = f"model.layers.{layer}.mlp.experts."
        stacks = {
            p: np.stack([weights[f"{at}{i}.{p}_proj.weight"] for i in range(4)])
            for p in ("gate", "up", "down")
        }
        joined[f"{at}gate_up_proj"] = np.concatenate([stacks["gate"], stacks["up"]], 1)
        joined[f"{at}down_proj"] = stacks["down"]
    (tmp_path / "joined").mkdir()
    other = open_folder(write(tmp_path / "joined", "qwen3moe", None, joined))
    for name in source.tensors:
        assert np.array_equal(read(source, name), read(other, name)), name


def test_mixtral_experts(tmp_path, everything_served):
    weights = families.weights_of("mixtral")
    source = open_folder(write(tmp_path, "mixtral"))
    for part, name in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
        stored = f"model.layers.0.block_sparse_moe.experts.{{}}.{name}.weight"
        expected = np.stack([weights[stored.format(i)] for i in range(4)])
        assert np.array_equal(read(source, f"blk.0.ffn_{part}_exps.weight"), expected)
    values = {e.key: e.value for e in source.metadata}
    assert (values["llama.expert_count"], values["llama.expert_used_count"]) == (4, 2)


def test_phi_3_long_contexts(tmp_path, everything_served):
    config = families.CONFIGS["phi3"] | {
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "sliding_window": 2047,
        "rope_scaling": {"type": "longrope", "long_factor": [2.0] * 8, "short_factor": [1.0] * 8},
    }
    source = open_folder(write(tmp_path, "phi3", config))
    values = {e.key: e.value for e in source.metadata}
    assert values["phi3.rope.scaling.attn_factor"] == pytest.approx(1.1902380714238083)  # sqrt(1 + 5/12)
    assert values["phi3.rope.scaling.original_context_length"] == 4096
    assert values["phi3.attention.sliding_window"] == 2047
    assert read(source, "rope_factors_long.weight").tolist() == [2.0] * 8


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("gemma2", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar must be 16"),
        ("gemma3", {"sliding_window_pattern": 4}, "sliding_window_pattern must be 6"),
        ("gemma3", {"layer_types": ["full_attention", "full_attention"]}, "layer_types must have"),
        ("smollm3", {"no_rope_layers": [0, 1]}, "no_rope_layers must leave out"),
        ("qwen3moe", {"norm_topk_prob": False}, "norm_topk_prob is false"),
        ("qwen3moe", {"mlp_only_layers": [0]}, "mlp_only_layers must be empty"),
        (
            "phi3",
            {"rope_scaling": {"type": "longrope", "long_factor": [1.0]}},
            "long_factor has 1 entries; 8 are",
        ),
        ("bert", {"hidden_act": "relu"}, "hidden_act must be gelu"),
        ("nomic-bert", {"prenorm": True}, "prenorm must be false"),
    ],
)
def test_variants_that_the_format_cannot_say_are_refused(tmp_path, everything_served, name, change, said):
    folder = write(tmp_path, name, families.CONFIGS[name] | change)
    with pytest.raises(ModelFormatError, match=said):
        open_folder(folder)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, 2),
        ({"pooling_mode_mean_tokens": True}, 1),
        ({"pooling_mode": "lasttoken"}, 3),
    ],
)
def test_pooling(tmp_path, everything_served, values, expected):
    folder = write(tmp_path, "bert")
    modules = [{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(values))
    assert {e.key: e.value for e in open_folder(folder).metadata}["bert.pooling_type"] == expected
    both = {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(both))
    with pytest.raises(UnsupportedModelError, match="is not served"):
        open_folder(folder)
    (folder / "modules.json").write_text(json.dumps([{"type": "x.Pooling", "path": "../1_Pooling"}]))
    with pytest.raises(ModelFormatError, match="leaves the folder"):
        open_folder(folder)
