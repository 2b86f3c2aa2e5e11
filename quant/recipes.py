"""The recipes: named mixtures of types, as tables of llama-quantize's rules.

A recipe has a default type and exceptions for the tensors that suffer most.  quant/policy.py applies them to a model.
A recipe is offered once every type that it can need has an encoder in the native core.
Source: the quantizer of llama.cpp (src/llama-quant.cpp); checked against llama-quantize's own answers in tests/quant.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterator
from dataclasses import dataclass

from runtime._native import new_buffer, quantize_rows, type_traits
from runtime.errors import RequestError

F32, F16, BF16 = 0, 1, 30
Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 = 2, 3, 6, 7, 8
Q2_K, Q3_K, Q4_K, Q5_K, Q6_K = 10, 11, 12, 13, 14
IQ4_NL, IQ4_XS, MXFP4 = 20, 23, 39

TARGET_TYPES = {
    type_traits(type_id)[0]: type_id
    for type_id in (
        *(F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1),
        *(Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4),
    )
}
FLOATS = frozenset({F32, F16, BF16})

# What a type becomes when the row length is not a multiple of its block; types of 32 become F16.
FALLBACKS = {Q2_K: Q4_0, Q3_K: Q4_0, Q4_K: Q5_0, Q5_K: Q5_1, Q6_K: Q8_0, IQ4_XS: IQ4_NL}


class UnsupportedRecipeError(RequestError):
    """The recipe's name is not known here."""

    reason = "UNSUPPORTED_RECIPE"


class When(enum.Enum):
    """Which tensors of a kind get an exception; i counts them, n is how many there are."""

    ALWAYS = "all"
    MORE_BITS = "first and last eighth of the layers, and every third between"
    FIRST_EIGHTH = "i < n / 8"
    FIRST_EIGHTH_UNCALIBRATED = "i < n / 8, without calibration"
    FIRST_EIGHTH_CALIBRATED = "i < n / 8, with calibration"
    FIRST_SIXTEENTH = "i < n / 16"
    FIRST_TWO = "i < 2"
    FIRST_FOUR = "i < 4"
    WIDE_GROUPS = "at least 4 query heads on each key and value head"


Rules = tuple[tuple[When, int], ...]  # the first that holds decides; none: the default type


@dataclass(frozen=True, slots=True)
class Recipe:
    """One named mixture of types."""

    name: str
    file_type: int  # general.file_type
    default_type: int
    output_type: int = Q6_K  # of output.weight, or of the embedding that stands in for it
    values: Rules = ()  # attention values, alone or fused with others
    attention_output: Rules = ()
    ffn_down: Rules = ()
    eight_experts_output: int | None = None  # attn_output of models with exactly 8 experts; None: the default
    falcon_ffn_down: Rules | None = None  # Falcon's own exceptions; None: as for others
    falcon_attention_output: Rules = ()
    expert_type: int | None = None  # of stacked experts; None: by the other rules

    def types(self) -> Iterator[int]:
        """Every type that a model may get by this recipe, whatever its shape."""
        rules = (self.values, self.attention_output, self.ffn_down, self.falcon_ffn_down or ())
        chosen = {self.default_type, self.output_type, self.eight_experts_output, self.expert_type}
        chosen.update(type_id for rule in (*rules, self.falcon_attention_output) for _, type_id in rule)
        chosen.discard(None)
        for type_id in chosen:
            assert type_id is not None
            yield type_id
            if type_id in FALLBACKS:
                yield FALLBACKS[type_id]
        if self.default_type not in FLOATS:
            yield from (F16, Q8_0)  # rows of no block; the output of odd rows and of 8 experts


_ALL = When.ALWAYS
_RECIPES = (
    Recipe("Q8_0", 7, Q8_0, Q8_0),
    Recipe("Q6_K", 18, Q6_K),
    Recipe("Q5_K_M", 17, Q5_K, values=((When.MORE_BITS, Q6_K),), ffn_down=((When.MORE_BITS, Q6_K),)),
    Recipe("Q5_K_S", 16, Q5_K),
    Recipe("Q5_1", 9, Q5_1),
    Recipe("Q5_0", 8, Q5_0, ffn_down=((When.FIRST_EIGHTH_CALIBRATED, Q5_1),)),
    Recipe(
        "Q4_K_M",
        15,
        Q4_K,
        values=((When.MORE_BITS, Q6_K),),
        ffn_down=((When.MORE_BITS, Q6_K),),
        eight_experts_output=Q5_K,
        falcon_ffn_down=((When.FIRST_SIXTEENTH, Q6_K), (When.MORE_BITS, Q5_K)),
    ),
    Recipe(
        "Q4_K_S",
        14,
        Q4_K,
        values=((When.FIRST_FOUR, Q5_K),),
        ffn_down=((When.FIRST_EIGHTH, Q5_K),),
        eight_experts_output=Q5_K,
        falcon_ffn_down=(),
    ),
    Recipe("Q4_1", 3, Q4_1),
    Recipe("Q4_0", 2, Q4_0, ffn_down=((When.FIRST_EIGHTH_CALIBRATED, Q4_1),)),
    *(
        Recipe(
            name,
            file_type,
            type_id,
            values=((When.WIDE_GROUPS, Q5_K),),
            ffn_down=((When.FIRST_EIGHTH_UNCALIBRATED, Q5_K),),
            eight_experts_output=Q5_K,
        )
        for name, file_type, type_id in (("IQ4_NL", 25, IQ4_NL), ("IQ4_XS", 30, IQ4_XS))
    ),
    Recipe(
        "Q3_K_L",
        13,
        Q3_K,
        values=((_ALL, Q5_K),),
        attention_output=((_ALL, Q5_K),),
        ffn_down=((_ALL, Q5_K),),
        falcon_ffn_down=((_ALL, Q4_K),),
        falcon_attention_output=((_ALL, Q4_K),),
    ),
    Recipe(
        "Q3_K_M",
        12,
        Q3_K,
        values=((When.FIRST_TWO, Q5_K), (_ALL, Q4_K)),
        attention_output=((_ALL, Q4_K),),
        ffn_down=((When.FIRST_SIXTEENTH, Q5_K), (_ALL, Q4_K)),
        eight_experts_output=Q5_K,
        falcon_ffn_down=((When.FIRST_SIXTEENTH, Q5_K), (When.MORE_BITS, Q4_K)),
    ),
    Recipe("Q3_K_S", 11, Q3_K, eight_experts_output=Q5_K),
    Recipe(
        "Q2_K",
        10,
        Q2_K,
        values=((When.WIDE_GROUPS, Q4_K), (_ALL, Q3_K)),
        attention_output=((_ALL, Q3_K),),
        ffn_down=((_ALL, Q3_K),),
        eight_experts_output=Q5_K,
    ),
    Recipe(
        "Q2_K_S",
        21,
        Q2_K,
        values=((When.WIDE_GROUPS, Q4_K),),
        ffn_down=((When.FIRST_EIGHTH, Q4_K),),
    ),
    Recipe("MXFP4_MOE", 38, Q8_0, Q8_0, expert_type=MXFP4),
    Recipe("F16", 1, F16, F16),
    Recipe("BF16", 32, BF16, BF16),
)
_ALIASES = {"MXFP4": "MXFP4_MOE"}


@functools.cache
def has_encoder(type_id: int) -> bool:
    """Say whether the native core can write this type."""
    nothing = new_buffer(0)
    try:
        quantize_rows(nothing, F32, 0, type_traits(type_id)[1], type_id, nothing, 1)
    except ValueError:
        return False
    return True


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for recipe in _RECIPES if all(map(has_encoder, recipe.types()))
}
DEFAULT_RECIPE = "Q4_K_M"
AUTO = "auto"  # the best one that fits a memory (quant.auto)
BEST = "best-"  # before a recipe's name: its bytes where this model needs them (quant.allocation)


def find_recipe(name: str) -> Recipe:
    """Return the recipe of this name in any case; UnsupportedRecipeError names those that there are."""
    upper = name.upper()
    recipe = RECIPES.get(_ALIASES.get(upper, upper))
    if recipe is None:
        known = ", ".join(RECIPES)
        raise UnsupportedRecipeError("recipe", f"recipe {name!r} is not supported; supported are {known}")
    return recipe


def base_of(recipe: str) -> Recipe | None:
    """Return the recipe whose bytes best-NAME has, None where the name does not begin like that."""
    return find_recipe(recipe[len(BEST) :]) if recipe.lower().startswith(BEST) else None


def recipe_of(file_type: int) -> str:
    """Return the name of the recipe that a file of this general.file_type says it was made by; "" for others."""
    return next((name for name, recipe in RECIPES.items() if recipe.file_type == file_type), "")


def find_type(name: str, field: str) -> int:
    """Return the id of a type that can be written, by its name in any case; RequestError names those that there are."""
    type_id = TARGET_TYPES.get(name.upper())
    if type_id is None or not (type_id in FLOATS or has_encoder(type_id)):
        known = ", ".join(known for known, one in TARGET_TYPES.items() if one in FLOATS or has_encoder(one))
        raise RequestError(field, f"{field}: type {name[:64]!r} cannot be written; types are {known}")
    return type_id
