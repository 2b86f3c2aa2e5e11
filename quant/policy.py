"""Which tensor gets which type: llama-quantize's rules, applied to a whole model at once.

The rules count tensors in the order in which llama-quantize visits them, so the plan of a whole model is made at once.
Source: the quantizer of llama.cpp (src/llama-quant.cpp).
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from quant.recipes import (
    F16,
    FALLBACKS,
    FLOATS,
    Q3_K,
    Q4_K,
    Q5_K,
    Q8_0,
    Recipe,
    Rules,
    When,
    find_type,
)
from runtime._native import type_traits
from runtime.errors import RequestError

MAX_OVERRIDES = 64
MAX_PATTERN_CHARS = 256


class Role(enum.Enum):
    """What a tensor does in the model, as far as the rules care."""

    OUTPUT = "output"
    TOKEN_EMBEDDING = "token embedding"  # noqa: S105 - no password
    ATTENTION_VALUE = "attention value"
    ATTENTION_KEY = "attention key"
    ATTENTION_QUERY = "attention query"
    ATTENTION_OUTPUT = "attention output"
    FFN_DOWN = "ffn down"
    OTHER = "other"


# First match decides.  "Value-like" tensors hold the values, alone or fused with others.
_ROLES: tuple[tuple[str, Role], ...] = (
    ("attn_qkv.weight", Role.ATTENTION_VALUE),
    ("attn_kv_b.weight", Role.ATTENTION_VALUE),
    ("attn_v.weight", Role.ATTENTION_VALUE),
    ("attn_k.weight", Role.ATTENTION_KEY),
    ("attn_q.weight", Role.ATTENTION_QUERY),
    ("attn_output.weight", Role.ATTENTION_OUTPUT),
    ("ffn_up", Role.OTHER),
    ("ffn_gate", Role.OTHER),
    ("ffn_down", Role.FFN_DOWN),
)
_ATTENTION = frozenset(
    {Role.ATTENTION_VALUE, Role.ATTENTION_KEY, Role.ATTENTION_QUERY, Role.ATTENTION_OUTPUT}
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

    @property
    def heads_per_group(self) -> int:
        """Query heads on each key and value head."""
        return self.n_heads // self.n_kv_heads if self.n_kv_heads else 0


@dataclass(frozen=True, slots=True)
class TensorShape:
    """Name, type and shape (row length first) of a source tensor."""

    name: str
    type_id: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the user fixes beside the recipe; types are ids, None: by the recipe."""

    pure: bool = False  # the default type for every matrix
    output_type: int | None = None
    embedding_type: int | None = None
    attention_type: int | None = None  # query, key, value and output matrices
    tensor_types: tuple[
        tuple[str, int], ...
    ] = ()  # (regular expression, type), the first that is found in the name
    exact: Mapping[str, int] = field(default_factory=dict)  # of the tensors named, before all else

    @classmethod
    def parse(
        cls,
        *,
        pure: bool = False,
        output_type: str | None = None,
        embedding_type: str | None = None,
        attention_type: str | None = None,
        tensor_types: Sequence[str] = (),
    ) -> Overrides:
        """Read names of types and REGEX=TYPE; RequestError names the field that is wrong."""
        return cls(
            pure=pure,
            output_type=find_type(output_type, "output_type") if output_type else None,
            embedding_type=find_type(embedding_type, "embedding_type") if embedding_type else None,
            attention_type=find_type(attention_type, "attention_type") if attention_type else None,
            tensor_types=_parse_tensor_types(tensor_types),
        )

    def is_fixed(self, name: str) -> bool:
        """Say whether the type of this tensor is not the recipe's to choose."""
        role = role_of(name)
        return (
            self.pure
            or name in self.exact
            or (role is Role.OUTPUT and self.output_type is not None)
            or (
                role is Role.TOKEN_EMBEDDING
                and (self.embedding_type is not None or self.output_type is not None)
            )
            or (role in _ATTENTION and self.attention_type is not None)
            or any(re.search(pattern, name) for pattern, _ in self.tensor_types)
        )

    def describe(self) -> str:
        """Return the options as one would write them, "" where there are none; what `exact` says is not among them."""
        options = ["pure"] if self.pure else []
        for name, type_id in (
            ("output", self.output_type),
            ("embedding", self.embedding_type),
            ("attention", self.attention_type),
        ):
            if type_id is not None:
                options.append(f"{name}-type={type_traits(type_id)[0]}")
        options += [f"{pattern}={type_traits(type_id)[0]}" for pattern, type_id in self.tensor_types]
        return " ".join(options)


NO_OVERRIDES = Overrides()


def _parse_tensor_types(rules: Sequence[str]) -> tuple[tuple[str, int], ...]:
    if len(rules) > MAX_OVERRIDES:
        raise RequestError("tensor_type", f"tensor_type: {len(rules)} rules; at most {MAX_OVERRIDES}")
    parsed = []
    for rule in rules:
        pattern, separator, name = rule.rpartition("=")
        if not separator or not pattern or len(pattern) > MAX_PATTERN_CHARS:
            raise RequestError(
                "tensor_type", f"tensor_type: {rule[:80]!r} is not REGEX=TYPE, such as ffn_down=Q6_K"
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise RequestError(
                "tensor_type", f"tensor_type: {pattern!r} is no regular expression: {error}"
            ) from None
        parsed.append((pattern, find_type(name, "tensor_type")))
    return tuple(parsed)


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


def expert_rows(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (matrices, rows of each) of a tensor of this shape, row length first: (n_in, n_out[, n_experts])."""
    n_rows = 1
    for size in shape[1:]:
        n_rows *= size
    n_matrices = shape[2] if len(shape) > 2 else 1
    return n_matrices, n_rows // max(n_matrices, 1)


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
    replacement = FALLBACKS.get(type_id, type_id)
    return replacement if fits(replacement, row_length) else F16


def plan_types(
    recipe: Recipe,
    facts: ModelFacts,
    tensors: Sequence[TensorShape],
    overrides: Overrides = NO_OVERRIDES,
    *,
    calibrated: bool = False,
) -> dict[str, int]:
    """Return the target type of every tensor, in the order of visiting.

    Kept tensors have their own type.  `calibrated` says that importance data is used, which a few rules ask.  Raises
    RequestError where a model with experts names an ffn_down that lies in no layer, and for a rule of `overrides` that
    matches no tensor.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    policy = _Policy(recipe, facts, by_name, overrides, calibrated=calibrated)
    types = {name: policy.type_of(by_name[name]) for name in visiting_order(list(by_name))}
    policy.require_used_rules()
    return types


class _Policy:
    """The rules with their running counts; type_of must be called in the order of visiting."""

    def __init__(
        self,
        recipe: Recipe,
        facts: ModelFacts,
        tensors: Mapping[str, TensorShape],
        overrides: Overrides,
        *,
        calibrated: bool,
    ) -> None:
        self._recipe = recipe
        self._facts = facts
        self._overrides = overrides
        self._patterns = [(re.compile(pattern), type_id) for pattern, type_id in overrides.tensor_types]
        self._unused = {pattern for pattern, _ in overrides.tensor_types}
        self._calibrated = calibrated
        self._tied = "output.weight" not in tensors
        self._n_values = sum(role_of(name) is Role.ATTENTION_VALUE for name in tensors)
        self._values_seen = 0
        self._ffn_down_seen = 0

    def type_of(self, tensor: TensorShape) -> int:
        if not is_quantized(tensor):
            return tensor.type_id
        chosen = self._override(tensor.name)
        if chosen is None:
            chosen = self._recipe.default_type if self._overrides.pure else self._choose(tensor)
        return fallback(chosen, tensor.shape[0])

    def require_used_rules(self) -> None:
        if self._unused:
            raise RequestError(
                "tensor_type",
                f"tensor_type: no tensor that is quantized has a name with {min(self._unused)!r}; quantd quantize --dry-run "
                "lists the names",
            )

    def _override(self, name: str) -> int | None:
        """Return the type that the user fixed; such a tensor does not count in the recipe's rules."""
        fixed, role = self._overrides, role_of(name)
        if name in fixed.exact:
            return fixed.exact[name]
        found = None
        for pattern, type_id in reversed(self._patterns):
            if pattern.search(name):
                self._unused.discard(pattern.pattern)
                found = type_id
        if role is Role.TOKEN_EMBEDDING and fixed.embedding_type is not None:
            return found if found is not None and name != "token_embd.weight" else fixed.embedding_type
        if role is Role.OUTPUT and fixed.output_type is not None:
            return fixed.output_type
        if found is not None:
            return found
        if self._tied and role is Role.TOKEN_EMBEDDING:
            return fixed.output_type
        return fixed.attention_type if role in _ATTENTION else None

    def _choose(self, tensor: TensorShape) -> int:
        recipe = self._recipe
        if recipe.default_type in FLOATS:
            return recipe.default_type
        role = role_of(tensor.name)
        if role is Role.OUTPUT or (self._tied and role is Role.TOKEN_EMBEDDING):
            odd_rows = not fits(recipe.default_type, tensor.shape[0])
            return Q8_0 if odd_rows or self._facts.architecture == "falcon" else recipe.output_type
        if recipe.expert_type is not None:
            is_stacked = len(tensor.shape) > 2 and tensor.shape[2] > 1
            return recipe.expert_type if is_stacked else recipe.default_type
        if role is Role.ATTENTION_VALUE:
            return self._value_type()
        if role is Role.ATTENTION_KEY and self._facts.n_experts == 8:
            return Q8_0
        if role is Role.FFN_DOWN:
            return self._ffn_down_type(tensor.name)
        if role is Role.ATTENTION_OUTPUT:
            return self._attention_output_type()
        return recipe.default_type

    def _value_type(self) -> int:
        chosen = self._apply(self._recipe.values, self._values_seen, self._n_values)
        self._values_seen += 1
        if self._facts.n_experts == 8:
            return Q8_0
        if self._facts.shares_values_widely and chosen in {Q3_K, Q4_K}:
            return Q5_K
        return chosen

    def _attention_output_type(self) -> int:
        recipe = self._recipe
        if self._facts.architecture == "falcon":
            return self._apply(recipe.falcon_attention_output, 0, 1)
        if self._facts.n_experts == 8:
            return recipe.eight_experts_output or recipe.default_type
        return self._apply(recipe.attention_output, 0, 1)

    def _ffn_down_type(self, name: str) -> int:
        recipe, n_layers = self._recipe, self._facts.n_layers
        layer = self._ffn_down_seen
        self._ffn_down_seen += 1
        if self._facts.n_experts > 1:  # experts may lie out of order: the name counts
            layer = layer_of(name)
            if not 0 <= layer < n_layers:
                raise RequestError("source", f"tensor {name} lies outside the model's {n_layers} layers")
        rules = recipe.ffn_down
        if self._facts.architecture == "falcon" and recipe.falcon_ffn_down is not None:
            rules = recipe.falcon_ffn_down
        return self._apply(rules, layer, n_layers)

    def _apply(self, rules: Rules, index: int, count: int) -> int:
        """Return the type of the first rule that holds for tensor `index` of `count`."""
        holds = {
            When.ALWAYS: True,
            When.MORE_BITS: more_bits(index, count),
            When.FIRST_EIGHTH: index < count // 8,
            When.FIRST_EIGHTH_UNCALIBRATED: index < count // 8 and not self._calibrated,
            When.FIRST_EIGHTH_CALIBRATED: index < count // 8 and self._calibrated,
            When.FIRST_SIXTEENTH: index < count // 16,
            When.FIRST_TWO: index < 2,
            When.FIRST_FOUR: index < 4,
            When.WIDE_GROUPS: self._facts.heads_per_group >= 4,
        }
        return next((type_id for when, type_id in rules if holds[when]), self._recipe.default_type)
