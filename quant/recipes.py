"""Which tensor gets which type: the rules of llama-quantize (without calibration data), as tables.

A recipe has a default type, the type of the output matrix, and exceptions for the tensors that suffer most.  The rules
count tensors in the order in which llama-quantize visits them, so the plan of a whole model is made at once.
Source: research/quantization.md section 1, checked against files that llama-quantize wrote.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from runtime._native import type_traits
from runtime.errors import RequestError

F32, F16, BF16 = 0, 1, 30
Q5_0, Q5_1, Q8_0 = 6, 7, 8
Q4_K, Q5_K, Q6_K = 12, 13, 14


class UnsupportedRecipeError(RequestError):
    """The recipe's name is not known here."""

    reason = "UNSUPPORTED_RECIPE"


class Role(enum.Enum):
    """What a tensor does in the model, as far as the rules care."""

    OUTPUT = "output"
    TOKEN_EMBEDDING = "token embedding"  # noqa: S105 - no password
    ATTENTION_VALUE = "attention value"
    ATTENTION_KEY = "attention key"
    ATTENTION_OUTPUT = "attention output"
    FFN_DOWN = "ffn down"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Recipe:
    """One named mixture of types.

    `more_bits_type` goes to attention values and ffn_down in the layers that `more_bits` picks, None: no exceptions.
    `eight_experts_output_type` is the type of attn_output in models with exactly 8 experts, None: the default.
    """

    name: str
    file_type: int  # general.file_type
    default_type: int
    output_type: int
    more_bits_type: int | None = None
    eight_experts_output_type: int | None = None


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("Q4_K_M", 15, Q4_K, Q6_K, more_bits_type=Q6_K, eight_experts_output_type=Q5_K),
        Recipe("Q5_K_S", 16, Q5_K, Q6_K),
        Recipe("Q8_0", 7, Q8_0, Q8_0),
    )
}
DEFAULT_RECIPE = "Q4_K_M"

# What a type becomes when the row length is not a multiple of its block.
FALLBACKS = {Q4_K: Q5_0, Q5_K: Q5_1, Q6_K: Q8_0, Q8_0: F16}

# First match decides.  "Value-like" tensors hold the values, alone or fused with others.
_ROLES: tuple[tuple[str, Role], ...] = (
    ("attn_qkv.weight", Role.ATTENTION_VALUE),
    ("attn_kv_b.weight", Role.ATTENTION_VALUE),
    ("attn_v.weight", Role.ATTENTION_VALUE),
    ("attn_k.weight", Role.ATTENTION_KEY),
    ("attn_q.weight", Role.OTHER),
    ("attn_output.weight", Role.ATTENTION_OUTPUT),
    ("ffn_up", Role.OTHER),
    ("ffn_gate", Role.OTHER),
    ("ffn_down", Role.FFN_DOWN),
)

# Tensors with any of these in their name stay as they are: small, or not a matrix of a matmul.
_KEPT_PARTS = (
    "_norm.weight",
    "ffn_gate_inp.weight",  # the router of experts
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
    *(f"time_mix_{part}.weight" for part in ("first", "decay_w1", "decay_w2", "lerp_fused")),
    *(
        f"time_mix_{part}.weight"
        for part in ("w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2")
    ),
)
_KEPT_NAMES = frozenset({"position_embd.weight", "token_types.weight"})

_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the rules ask of a model beside its tensors."""

    architecture: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    n_experts: int

    @property
    def shares_values_widely(self) -> bool:
        """True for the 70B class: 80 layers, several query heads on each value head, so values are cheap to keep."""
        if self.n_layers != 80:
            return False
        if self.architecture == "llama":
            return self.n_heads != self.n_kv_heads
        return self.architecture in {"qwen2", "deci", "olmo"}


@dataclass(frozen=True, slots=True)
class TensorShape:
    """Name, type and shape (row length first) of a source tensor."""

    name: str
    type_id: int
    shape: tuple[int, ...]


def find_recipe(name: str) -> Recipe:
    """Return the recipe of this name in any case; UnsupportedRecipeError names those that there are."""
    recipe = RECIPES.get(name.upper())
    if recipe is None:
        known = ", ".join(RECIPES)
        raise UnsupportedRecipeError("recipe", f"recipe {name!r} is not supported; supported are {known}")
    return recipe


def layer_of(name: str) -> int:
    """Return N of `blk.N.…`, -1 for tensors outside the layers."""
    match = _LAYER.match(name)
    return int(match[1]) if match else -1


def visiting_order(names: Sequence[str]) -> list[str]:
    """Return the names as llama-quantize visits and writes them: by layer (-1 first), then by the name's bytes."""
    return sorted(names, key=lambda name: (layer_of(name), name.encode("utf-8", "surrogateescape")))


def role_of(name: str) -> Role:
    """Classify a tensor by its name."""
    if name == "output.weight":
        return Role.OUTPUT
    if name in {"token_embd.weight", "per_layer_token_embd.weight"}:
        return Role.TOKEN_EMBEDDING
    return next((role for part, role in _ROLES if part in name), Role.OTHER)


def is_quantized(tensor: TensorShape) -> bool:
    """Say whether the recipes touch this tensor at all."""
    dimensions = max((i + 1 for i, size in enumerate(tensor.shape) if size != 1), default=1)
    return (
        dimensions >= 2
        and tensor.name.endswith("weight")
        and tensor.name not in _KEPT_NAMES
        and not any(part in tensor.name for part in _KEPT_PARTS)
    )


def more_bits(index: int, count: int) -> bool:
    """Pick the first and last eighth of the layers and every third between."""
    eighth = count // 8
    # math.fmod keeps the sign of the dividend, as C's % does
    return index < eighth or index >= 7 * count // 8 or math.fmod(index - eighth, 3) == 2


def fits(type_id: int, row_length: int) -> bool:
    """Say whether rows of this length are whole blocks of the type."""
    return row_length % type_traits(type_id)[1] == 0


def fallback(type_id: int, row_length: int) -> int:
    """Return the type itself, or what it becomes for rows that are not whole blocks of it."""
    if fits(type_id, row_length):
        return type_id
    replacement = FALLBACKS[type_id]
    return replacement if fits(replacement, row_length) else F16


def plan_types(recipe: Recipe, facts: ModelFacts, tensors: Sequence[TensorShape]) -> dict[str, int]:
    """Return the target type of every tensor, in the order of visiting.

    Kept tensors have their own type.  Raises RequestError where a model with experts names an ffn_down that lies in
    no layer.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    policy = _Policy(recipe, facts, by_name)
    return {name: policy.type_of(by_name[name]) for name in visiting_order(list(by_name))}


class _Policy:
    """The rules with their running counts; type_of must be called in the order of visiting."""

    def __init__(self, recipe: Recipe, facts: ModelFacts, tensors: dict[str, TensorShape]) -> None:
        self._recipe = recipe
        self._facts = facts
        self._tied = "output.weight" not in tensors
        self._n_values = sum(role_of(name) is Role.ATTENTION_VALUE for name in tensors)
        self._values_seen = 0
        self._ffn_down_seen = 0

    def type_of(self, tensor: TensorShape) -> int:
        if not is_quantized(tensor):
            return tensor.type_id
        return fallback(self._choose(tensor), tensor.shape[0])

    def _choose(self, tensor: TensorShape) -> int:
        recipe = self._recipe
        role = role_of(tensor.name)
        eight_experts = self._facts.n_experts == 8
        if role is Role.OUTPUT or (self._tied and role is Role.TOKEN_EMBEDDING):
            odd_rows = not fits(recipe.default_type, tensor.shape[0])
            return Q8_0 if odd_rows or self._facts.architecture == "falcon" else recipe.output_type
        if role is Role.ATTENTION_VALUE:
            return self._value_type(eight_experts)
        if role is Role.ATTENTION_KEY and eight_experts:
            return Q8_0
        if role is Role.FFN_DOWN:
            return self._ffn_down_type(tensor.name)
        if (
            role is Role.ATTENTION_OUTPUT
            and eight_experts
            and self._facts.architecture != "falcon"
            and recipe.eight_experts_output_type is not None
        ):
            return recipe.eight_experts_output_type
        return recipe.default_type

    def _value_type(self, eight_experts: bool) -> int:
        recipe = self._recipe
        chosen = recipe.default_type
        if recipe.more_bits_type is not None and more_bits(self._values_seen, self._n_values):
            chosen = recipe.more_bits_type
        self._values_seen += 1
        if eight_experts:
            return Q8_0
        if self._facts.shares_values_widely and chosen == Q4_K:
            return Q5_K
        return chosen

    def _ffn_down_type(self, name: str) -> int:
        recipe, n_layers = self._recipe, self._facts.n_layers
        layer = self._ffn_down_seen
        self._ffn_down_seen += 1
        if self._facts.n_experts > 1:  # experts may lie out of order: the name counts
            layer = layer_of(name)
            if not 0 <= layer < n_layers:
                raise RequestError("source", f"tensor {name} lies outside the model's {n_layers} layers")
        if recipe.more_bits_type is None:
            return recipe.default_type
        if self._facts.architecture == "falcon":
            if layer < n_layers // 16:
                return Q6_K
            return Q5_K if more_bits(layer, n_layers) else Q4_K
        return recipe.more_bits_type if more_bits(layer, n_layers) else recipe.default_type
