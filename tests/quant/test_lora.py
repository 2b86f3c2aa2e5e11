"""LoRA adapters: merging gives the same as adding them to the weights beforehand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from quant.convert import open_folder
from quant.convert.lora import Adapter
from quant.quantizer import Quantizer
from runtime.errors import ModelFormatError, RequestError, UnsupportedModelError
from runtime.gguf import ModelFile
from tests.quant import hugging_face as hf

RANK = 4
MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "lm_head")


def write_adapter(folder, weights, modules=MODULES, dtype=np.float32, **changes):
    folder.mkdir()
    rng = np.random.default_rng(3)
    tensors = {}
    for module in modules:
        rows, cols = weights[f"{module}.weight"].shape
        for part, shape in (("A", (RANK, cols)), ("B", (rows, RANK))):
            x = (rng.standard_normal(shape) * 0.2).astype(dtype)
            tensors[f"base_model.model.{module}.lora_{part}.weight"] = x
    hf.write_safetensors(folder / "adapter_model.safetensors", tensors)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "bias": "none", "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    return tensors


def merged(weights, tensors, scale):
    """In the order in which the sum is defined: one rank after the other."""
    result = dict(weights)
    for module in {name.split(".lora_")[0] for name in tensors}:
        name = module.removeprefix("base_model.model.") + ".weight"
        total = weights[name].astype(np.float32)
        a = tensors[f"{module}.lora_A.weight"].astype(np.float32)
        b = tensors[f"{module}.lora_B.weight"].astype(np.float32) * np.float32(scale)
        for k in range(len(a)):
            total = total + np.outer(b[:, k], a[k])
        result[name] = total
    return result


@pytest.fixture
def world(tmp_path):
    weights = {n: x.astype(np.float16) for n, x in hf.decoder_weights(hf.LLAMA).items()}
    return hf.write_folder(tmp_path / "model", hf.LLAMA, weights), weights


@pytest.mark.parametrize(
    ("changes", "factor"), [({}, 2.0), ({"use_rslora": True}, 4.0), ({"lora_alpha": 1}, 0.25)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_merging_is_adding(world, tmp_path, monkeypatch, changes, factor, dtype):  # noqa: PLR0917 - fixtures
    folder, weights = world
    tensors = write_adapter(tmp_path / "adapter", weights, dtype=dtype, **changes)
    monkeypatch.setattr("quant.convert.views._BLOCK_ELEMENTS", 640)
    job = Quantizer(folder, tmp_path / "out.gguf", "Q8_0", adapters=[Adapter(tmp_path / "adapter", 0.5)])
    job.run()
    beforehand = hf.write_folder(tmp_path / "merged", hf.LLAMA, merged(weights, tensors, 0.5 * factor))
    Quantizer(beforehand, tmp_path / "expected.gguf", "Q8_0").run()
    found, expected = ModelFile.open(tmp_path / "out.gguf"), ModelFile.open(tmp_path / "expected.gguf")
    assert found.get("quantd.data_sha256") == expected.get("quantd.data_sha256")
    assert found.get("quantd.options") == "lora=adapter:0.5"
    assert {"adapter_model.safetensors", "adapter_config.json"} <= set(found.get("quantd.inputs"))


def test_two_adapters_add_up(world, tmp_path):
    folder, weights = world
    first = write_adapter(tmp_path / "first", weights)
    second = write_adapter(tmp_path / "second", weights, modules=MODULES[:1])
    both = [Adapter(tmp_path / "first"), Adapter(tmp_path / "second", -1.0)]
    Quantizer(folder, tmp_path / "out.gguf", "Q8_0", adapters=both).run()
    expected = merged(merged(weights, first, 2.0), second, -2.0)
    Quantizer(
        hf.write_folder(tmp_path / "merged", hf.LLAMA, expected), tmp_path / "expected.gguf", "Q8_0"
    ).run()
    found = [
        ModelFile.open(tmp_path / name).get("quantd.data_sha256") for name in ("out.gguf", "expected.gguf")
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"peft_type": "LOHA"}, UnsupportedModelError, "LORA is merged"),
        ({"use_dora": True}, UnsupportedModelError, "use_dora is set"),
        ({"bias": "all"}, UnsupportedModelError, "adapters of biases"),
        ({"modules_to_save": ["lm_head"]}, UnsupportedModelError, "modules_to_save is set"),
        ({"r": 0}, ModelFormatError, "r is 0"),
        ({"r": 5}, ModelFormatError, "do not fit model.layers.0.self_attn.q_proj.weight|do not fit lm_head.weight"),
    ],
)  # fmt: skip
def test_other_adapters_are_refused(world, tmp_path, changes, kind, said):
    folder, weights = world
    write_adapter(tmp_path / "adapter", weights, **changes)
    with pytest.raises(kind, match=said):
        open_folder(folder, [Adapter(tmp_path / "adapter")])


def test_adapters_of_other_models_are_refused(world, tmp_path):
    folder, weights = world
    other = {"model.layers.7.mlp.up_proj.weight": weights["lm_head.weight"]}
    write_adapter(tmp_path / "adapter", other, modules=["model.layers.7.mlp.up_proj"])
    with pytest.raises(ModelFormatError, match=r"there is no matrix model\.layers\.7\.mlp\.up_proj\.weight"):
        open_folder(folder, [Adapter(tmp_path / "adapter")])


def test_an_adapter_needs_a_folder_and_a_sound_scale(tmp_path):
    assert Adapter.parse("some/where") == Adapter(tmp_path.__class__("some/where"))
    assert Adapter.parse("some/where:-0.5").scale == -0.5
    for text in ("a:b", "a:nan", "a:1e9"):
        with pytest.raises(RequestError, match="must be a number"):
            Adapter.parse(text)
    with pytest.raises(RequestError, match="is a file"):
        Quantizer(tmp_path / "model.gguf", tmp_path / "out.gguf", adapters=[Adapter(tmp_path)])
