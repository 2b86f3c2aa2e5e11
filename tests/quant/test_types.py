"""The type of every tensor of fourteen published models, against llama-quantize's own answers (record_types.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quant import recipes
from quant.policy import plan_types
from runtime._native import type_traits
from tests.quant.model_shapes import MODELS
from tests.quant.record_types import compact

TABLE = json.loads((Path(__file__).parent / "llama_quantize_types.json").read_text(encoding="utf-8"))
BY_NAME = {recipe.name: recipe for recipe in recipes._RECIPES}


@pytest.mark.parametrize("model", sorted(TABLE))
def test_types_are_those_of_llama_quantize(model):
    facts, tensors = MODELS[model]
    assert len(TABLE[model]) == 25
    for row, expected in TABLE[model].items():
        name, _, calibrated = row.partition(" ")
        types = plan_types(BY_NAME[name], facts, tensors, calibrated=bool(calibrated))
        assert compact({tensor: type_traits(one)[0] for tensor, one in types.items()}) == expected, row


def test_every_recipe_was_asked_for():
    assert {row.partition(" ")[0] for row in TABLE["llama-2-7b"]} == set(BY_NAME)
