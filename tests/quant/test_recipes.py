"""The type of every tensor, against tables worked out by hand from llama-quantize's rules and its own files."""

from __future__ import annotations

import re

import gguf
import pytest

from quant import policy, recipes
from quant.policy import ModelFacts, Overrides, TensorShape, plan_types
from quant.recipes import F16, F32, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, RECIPES, find_recipe, recipe_of
from runtime.errors import RequestError
from tests.quant.model_shapes import MODELS

MORE_BITS_OF_32 = {0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31}
MORE_BITS_OF_28 = {0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27}
MORE_BITS_OF_16 = {0, 1, 4, 7, 10, 13, 14, 15}
MORE_BITS_OF_24 = {0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23}
MORE_BITS_OF_80 = set(range(10)) | set(range(12, 70, 3)) | set(range(70, 80))


def types_of(name: str, recipe: str) -> dict[str, int]:
    return plan_types(find_recipe(recipe), *MODELS[name])


def layers_with(types: dict[str, int], tensor: str, type_id: int) -> set[int]:
    return {
        policy.layer_of(name)
        for name, chosen in types.items()
        if name.endswith(f".{tensor}.weight") and chosen == type_id
    }


def counts(types: dict[str, int]) -> dict[int, int]:
    return {type_id: list(types.values()).count(type_id) for type_id in sorted(set(types.values()))}


@pytest.mark.parametrize(
    ("name", "more", "n_layers", "top"),
    [
        ("llama-3.2-1b", MORE_BITS_OF_16, 16, "token_embd.weight"),
        ("llama-3.1-8b", MORE_BITS_OF_32, 32, "output.weight"),
        ("llama-2-7b", MORE_BITS_OF_32, 32, "output.weight"),
        ("llama-65b", MORE_BITS_OF_80, 80, "output.weight"),
        ("qwen3-0.6b", MORE_BITS_OF_28, 28, "token_embd.weight"),
    ],
)
def test_q4_k_m_of_dense_models(name, more, n_layers, top):
    types = types_of(name, "Q4_K_M")
    everywhere = set(range(n_layers))
    for tensor in ("attn_v", "ffn_down"):
        assert layers_with(types, tensor, Q6_K) == more
        assert layers_with(types, tensor, Q4_K) == everywhere - more
    for tensor in ("attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"):
        assert layers_with(types, tensor, Q4_K) == everywhere
    assert types[top] == Q6_K
    assert types["token_embd.weight"] == (Q6_K if top == "token_embd.weight" else Q4_K)
    kept = {n: t for n, t in types.items() if "norm" in n or n.endswith(".bias") or n == "rope_freqs.weight"}
    assert set(kept.values()) == {F32}


def test_q4_k_m_of_llama_3_1_8b_as_published():
    """The counts that every published Llama 3.1 8B Q4_K_M file shows (biases are this table's own addition)."""
    types = {n: t for n, t in types_of("llama-3.1-8b", "Q4_K_M").items() if not n.endswith(".bias")}
    assert counts(types) == {F32: 66, Q4_K: 193, Q6_K: 33}


@pytest.mark.parametrize("name", ["llama-3.1-70b", "qwen2.5-72b"])
def test_70b_class_gets_q5_k_values(name):
    types = types_of(name, "Q4_K_M")
    assert layers_with(types, "attn_v", Q6_K) == MORE_BITS_OF_80
    assert layers_with(types, "attn_v", Q5_K) == set(range(80)) - MORE_BITS_OF_80
    assert layers_with(types, "ffn_down", Q4_K) == (
        set(range(80)) - MORE_BITS_OF_80 if name == "llama-3.1-70b" else set()
    )


def test_narrow_rows_fall_back():
    """Rows of 896 are no multiple of 256: Q4_K -> Q5_0, Q6_K -> Q8_0; ffn_down has rows of 4864 = 19 * 256."""
    types = types_of("qwen2.5-0.5b", "Q4_K_M")
    everywhere = set(range(24))
    assert types["token_embd.weight"] == Q8_0
    assert layers_with(types, "attn_v", Q8_0) == MORE_BITS_OF_24
    assert layers_with(types, "attn_v", Q5_0) == everywhere - MORE_BITS_OF_24
    assert layers_with(types, "ffn_down", Q6_K) == MORE_BITS_OF_24
    assert layers_with(types, "ffn_down", Q4_K) == everywhere - MORE_BITS_OF_24
    for tensor in ("attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"):
        assert layers_with(types, tensor, Q5_0) == everywhere
    five = types_of("qwen2.5-0.5b", "Q5_K_S")
    assert layers_with(five, "attn_q", Q5_1) == layers_with(five, "ffn_down", Q5_K) == everywhere
    assert five["token_embd.weight"] == Q8_0


def test_rows_that_fit_no_block_stay_f16():
    facts, _ = MODELS["llama-2-7b"]
    odd = [
        TensorShape("blk.0.attn_q.weight", recipes.BF16, (100, 64)),
        TensorShape("output.weight", F16, (100, 64)),
    ]
    for name in recipes.RECIPES:
        recipe = find_recipe(name)
        expected = recipe.default_type if recipe.default_type in recipes.FLOATS else F16
        assert set(plan_types(recipe, facts, odd).values()) == {expected}


@pytest.mark.parametrize("recipe", ["Q4_K_M", "Q5_K_S"])
def test_mixtral(recipe):
    types = types_of("mixtral-8x7b", recipe)
    default = find_recipe(recipe).default_type
    everywhere = set(range(32))
    assert layers_with(types, "attn_v", Q8_0) == layers_with(types, "attn_k", Q8_0) == everywhere
    assert layers_with(types, "attn_q", default) == everywhere
    assert layers_with(types, "attn_output", Q5_K) == everywhere
    assert layers_with(types, "ffn_gate_inp", F16) == everywhere
    assert layers_with(types, "ffn_up_exps", default) == everywhere
    assert layers_with(types, "ffn_down_exps", Q6_K) == (MORE_BITS_OF_32 if recipe == "Q4_K_M" else set())


def test_fused_qkv_counts_as_values():
    types = types_of("phi-3-mini", "Q4_K_M")
    assert layers_with(types, "attn_qkv", Q6_K) == MORE_BITS_OF_32


@pytest.mark.parametrize("name", sorted(MODELS))
def test_q5_k_s_and_q8_0_are_uniform(name):
    for recipe, inner, top in (("Q5_K_S", {Q5_K, Q5_1, Q8_0}, {Q6_K, Q8_0}), ("Q8_0", {Q8_0}, {Q8_0})):
        types = types_of(name, recipe)
        tied = "output.weight" not in types
        assert types["token_embd.weight" if tied else "output.weight"] in top
        rest = {t for n, t in types.items() if n.startswith("blk.") and "ffn_gate_inp" not in n} - {F32}
        assert rest <= inner


def test_order_is_by_layer_then_by_bytes():
    names = [
        "output.weight",
        "blk.10.a.weight",
        "blk.2.b.weight",
        "blk.2.a.weight",
        "token_embd.weight",
        "output_norm.weight",
    ]
    assert policy.visiting_order(names) == [
        "output.weight", "output_norm.weight", "token_embd.weight", "blk.2.a.weight", "blk.2.b.weight", "blk.10.a.weight",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blk.0.attn_q.weight", (256, 256), True),
        ("blk.0.attn_q.weight", (256, 1), False),
        ("blk.0.attn_q.bias", (256, 2), False),
        ("blk.0.attn_norm.weight", (256, 2), False),
        ("blk.0.attn_q_norm.weight", (128,), False),
        ("blk.0.ffn_gate_inp.weight", (256, 8), False),
        ("blk.0.ffn_gate_inp_shexp.weight", (256, 8), True),
        ("position_embd.weight", (256, 512), False),
        ("token_types.weight", (256, 2), False),
        ("blk.0.ssm_conv1d.weight", (4, 1024), False),
        ("v.patch_embd.weight", (14, 14, 3, 1024), False),
        ("blk.0.ffn_down_exps.weight", (256, 256, 8), True),
        ("output.weight", (256, 32000), True),
    ],
)
def test_which_tensors_are_touched(name, shape, expected):
    assert policy.is_quantized(TensorShape(name, F16, shape)) is expected


def test_unknown_recipes_are_refused_by_name():
    for name in ("IQ2_XXS", "", "best"):
        with pytest.raises(recipes.UnsupportedRecipeError, match=r"Q5_K_S.*Q4_K_M") as caught:
            find_recipe(name)
        assert caught.value.reason == "UNSUPPORTED_RECIPE"
        assert repr(name) in caught.value.message
    assert find_recipe("q4_k_m") is recipes.RECIPES["Q4_K_M"]


def test_overrides():
    facts, tensors = MODELS["llama-3.1-8b"]
    recipe = find_recipe("Q4_K_M")

    def types(**options):
        return plan_types(recipe, facts, tensors, Overrides.parse(**options))

    plain = types()
    pure = types(pure=True)
    assert {t for n, t in pure.items() if n.endswith("weight") and "norm" not in n and "rope" not in n} == {
        Q4_K
    }
    chosen = types(output_type="q8_0", embedding_type="F16", attention_type="Q5_0")
    assert (chosen["output.weight"], chosen["token_embd.weight"]) == (Q8_0, F16)
    assert layers_with(chosen, "attn_v", Q5_0) == layers_with(chosen, "attn_q", Q5_0) == set(range(32))
    assert layers_with(chosen, "ffn_down", Q6_K) == MORE_BITS_OF_32
    # the first rule that is found in the name decides; what is fixed does not count in the recipe's own rules
    fixed = types(tensor_types=[r"blk\.0\.attn_v=Q8_0", "attn_v=Q5_K", "ffn_(up|gate)=Q6_K"])
    assert (fixed["blk.0.attn_v.weight"], fixed["blk.1.attn_v.weight"]) == (Q8_0, Q5_K)
    assert layers_with(fixed, "ffn_up", Q6_K) == layers_with(fixed, "ffn_gate", Q6_K) == set(range(32))
    assert {n: t for n, t in fixed.items() if "attn_v" not in n and "ffn_" not in n} == {
        n: t for n, t in plain.items() if "attn_v" not in n and "ffn_" not in n
    }


def test_output_type_reaches_a_tied_embedding():
    facts, tensors = MODELS["llama-3.2-1b"]
    types = plan_types(find_recipe("Q4_K_M"), facts, tensors, Overrides.parse(output_type="Q8_0"))
    assert types["token_embd.weight"] == Q8_0


@pytest.mark.parametrize(
    ("options", "field", "said"),
    [
        ({"output_type": "Q9"}, "output_type", "Q4_K"),
        ({"embedding_type": "IQ2_XXS"}, "embedding_type", "Q4_K"),
        ({"tensor_types": ["attn_v"]}, "tensor_type", "REGEX=TYPE"),
        ({"tensor_types": ["=Q8_0"]}, "tensor_type", "REGEX=TYPE"),
        ({"tensor_types": ["(=Q8_0"]}, "tensor_type", "regular expression"),
        ({"tensor_types": ["attn_v=Q9"]}, "tensor_type", "Q9"),
        ({"tensor_types": ["a=Q8_0"] * 65}, "tensor_type", "at most 64"),
        ({"tensor_types": ["no_such_name=Q8_0"]}, "tensor_type", "no_such_name"),
    ],
)
def test_bad_overrides_are_refused(options, field, said):
    facts, tensors = MODELS["llama-2-7b"]
    with pytest.raises(RequestError, match=re.escape(said)) as caught:
        plan_types(find_recipe("Q4_K_M"), facts, tensors, Overrides.parse(**options))
    assert caught.value.field == field


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K"])
def test_types_and_order_of_llama_quantize(shared_dir, name):
    source = gguf.GGUFReader(shared_dir / "models" / "tiny256-f16.gguf")
    theirs = gguf.GGUFReader(shared_dir / "models" / f"tiny256-{name}.gguf")
    tensors = [
        TensorShape(t.name, int(t.tensor_type), tuple(int(n) for n in t.shape)) for t in source.tensors
    ]
    types = plan_types(find_recipe(name), ModelFacts("llama", 4, 4, 2, 0), tensors)
    assert list(types.items()) == [(t.name, int(t.tensor_type)) for t in theirs.tensors]


def test_a_recipe_is_known_by_its_file_type():
    assert [recipe_of(recipe.file_type) for recipe in RECIPES.values()] == list(RECIPES)
    assert recipe_of(15) == "Q4_K_M"
    assert recipe_of(1000) == ""
