"""Hostile folders: whatever stands in the JSON files, the answer is a named refusal or a model, never a crash."""

from __future__ import annotations

import copy
import json

import pytest

from quant.convert import open_folder
from quant.plan import plan_quantization
from quant.recipes import find_recipe
from quant.served import check_served
from runtime.errors import QuantdError
from tests.quant import hugging_face as hf

VALUES = [None, True, -1, 2**70, 1e308, "x", [], [[1]], {}, {"type": 3}]


def places(value, path=()):
    """Every place of a JSON value, of lists and large objects only the first two entries."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in list(items)[
        : 2 if path[-1:] in (("vocab",), ("merges",)) or isinstance(value, list) else None
    ]:
        yield (*path, key)
        yield from places(one, (*path, key))


def changed(value, path, new):
    value = copy.deepcopy(value)
    at = value
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = new
    return value


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
def test_any_json(tmp_path, name):
    config = hf.LLAMA | {
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}
    }
    folder = hf.write_folder(tmp_path / "model", config, hf.decoder_weights(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [262, 263]}))
    original = json.loads((folder / name).read_text())
    refused = served = 0
    for path in places(original):
        for new in VALUES if name != "tokenizer.json" else VALUES[::3]:
            (folder / name).write_text(json.dumps(changed(original, path, new)))
            try:
                check_served(plan_quantization(open_folder(folder), find_recipe("Q8_0")), "folder")
                served += 1
            except QuantdError as error:
                assert error.message
                refused += 1
    assert served
    assert refused or name not in {"config.json", "tokenizer.json"}


@pytest.mark.parametrize("raw", [b"", b"[]", b"3", b"nul", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_no_json(tmp_path, name, raw):
    folder = hf.write_folder(tmp_path / "model", hf.LLAMA, hf.decoder_weights(hf.LLAMA))
    (folder / name).write_bytes(raw)
    with pytest.raises(QuantdError):
        open_folder(folder)
