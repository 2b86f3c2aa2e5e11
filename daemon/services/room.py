"""Making room: which idle model leaves so that another one fits, and when there is nothing to do but wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from daemon.services.slot import Slot
from runtime.memory import MemoryPlan


class PlanBeside(Protocol):
    """The plan of the model that is to come, beside those that stay, once the others have left."""

    async def __call__(self, *, stay: Sequence[Slot], leave: Sequence[Slot]) -> MemoryPlan: ...


async def next_step(
    loaded: Sequence[Slot], max_models: int, plan: PlanBeside
) -> list[MemoryPlan] | Slot | None:
    """What brings a model nearer to memory in which `loaded` are.

    The plans of all that stay: it fits now.  A slot: this one goes, the idle one that was used longest ago.  None: wait until
    one that is busy is released.  Raises MemoryPlanError where it would not fit though all others left.
    """
    if not loaded:
        return []  # load_model plans and refuses by itself
    idle = sorted((one for one in loaded if one.is_idle), key=lambda one: one.last_used_s)
    busy = [one for one in loaded if one not in idle]
    reachable = await plan(stay=busy, leave=idle)
    if not reachable.fits:
        if busy:
            reachable = await plan(stay=[], leave=loaded)
        reachable.ensure_fits()
        return None
    if len(loaded) < max_models:
        now = await plan(stay=loaded, leave=[])
        # Not at the price of a smaller context, while what stands in the way is not in use.
        if now.fits and now.session_context_tokens >= reachable.session_context_tokens:
            return [one.plan for one in loaded if one.served is not None]
    return idle[0] if idle else None
