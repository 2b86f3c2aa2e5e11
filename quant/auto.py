"""`--recipe auto`: the best recipe whose output can be served within some memory, by the runtime's own memory plan."""

from __future__ import annotations

from dataclasses import dataclass

from quant.gguf_header import align
from quant.plan import plan_quantization, tensor_bytes
from quant.policy import Overrides, TensorShape, plan_types
from quant.recipes import RECIPES
from quant.served import planned_file
from quant.source import ModelSource
from runtime.errors import MemoryPlanError
from runtime.machine_memory import Available, available_memory
from runtime.memory import MemoryPlan, RuntimeSettings, format_bytes, plan_memory
from runtime.models.config import read_config

# From what loses least to what is smallest, by the divergences that llama.cpp publishes (tools/quantize).
BEST_FIRST = (
    *("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "IQ4_XS"),
    *("Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K", "Q2_K_S"),
)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which recipe was chosen, and why."""

    recipe: str
    plan: MemoryPlan
    explanation: str  # plain lines


@dataclass(frozen=True, slots=True)
class _File:
    size_bytes: int


def choose_recipe(source: ModelSource, overrides: Overrides, memory_bytes: int | None) -> Choice:
    """Return the first recipe of BEST_FIRST that fits; memory None: what this machine has now.

    Raises MemoryPlanError where none fits, and what reading the planned file raises for a model that is not served.
    """
    names = [name for name in BEST_FIRST if name in RECIPES]
    available = available_memory() if memory_bytes is None else Available(memory_bytes, "asked for")
    first = plan_quantization(source, RECIPES[names[0]], overrides)
    with planned_file(first, str(source.path)) as file:
        config = read_config(file)
    lines, plan = [], None
    for name in names:
        size_bytes = len(first.header) + _data_bytes(source, name, overrides)
        plan = plan_memory(_File(size_bytes), config, RuntimeSettings(), available=available)
        verdict = "fits" if plan.fits else f"{format_bytes(plan.total_bytes - available.n_bytes)} too much"
        lines.append(
            f"{name:8} {format_bytes(size_bytes):>10} of weights, {format_bytes(plan.total_bytes):>10} in all to serve "
            f"{plan.sessions} sessions of {plan.session_context_tokens} tokens: {verdict}"
        )
        if plan.fits:
            lines.append(f"{name} is the best recipe that fits {format_bytes(available.n_bytes)}.")
            return Choice(name, plan, "\n".join(lines))
    lines.append(
        f"No recipe fits {format_bytes(available.n_bytes)}; take a smaller model, or give more with --memory."
    )
    raise MemoryPlanError("\n".join(lines), plan)


def _data_bytes(source: ModelSource, recipe: str, overrides: Overrides) -> int:
    shapes = [TensorShape(tensor.name, tensor.type_id, tensor.shape) for tensor in source.tensors.values()]
    types = plan_types(RECIPES[recipe], source.facts, shapes, overrides)
    return sum(
        align(tensor_bytes(source.tensors[name].shape, type_id), source.alignment)
        for name, type_id in types.items()
    )
