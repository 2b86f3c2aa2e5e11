"""Engines that failed: whose failure it is, and how often a model may come back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from daemon.errors import ApiError
from daemon.services.folder import ModelEntry
from daemon.services.slot import Slot, WeightsKey, weights_key

# A model whose engine failed so often is not loaded for requests any more; its failures say nothing of other models.
MAX_FAILURES = 3
RETRY_S = 60.0
MAX_COUNTED = 256
# Requests that are being prepared for a failed engine get so long to notice.
LET_GO_S, LET_GO_CHECK_S = 30.0, 0.05


class Failures:
    """Counts failures by model file."""

    def __init__(self, *, exit_always: bool) -> None:
        """`exit_always`: every failure is that of the whole daemon."""
        self._exit_always = exit_always
        self._counts: dict[WeightsKey, int] = {}

    def leave_others(self, failed: Slot, slots: Iterable[Slot]) -> bool:
        """Whether the daemon goes on without a model: another one serves beside it.

        Where none does, a new process has the best chance, and nobody loses anything by it.
        """
        others = (slot.served for slot in slots if slot is not failed)
        return not self._exit_always and any(one is not None and one.engine.healthy() for one in others)

    def count(self, entry: ModelEntry) -> None:
        """One more failure of this file."""
        key = weights_key(entry)
        if len(self._counts) >= MAX_COUNTED and key not in self._counts:
            del self._counts[next(iter(self._counts))]
        self._counts[key] = self._counts.get(key, 0) + 1

    def forgive(self, entry: ModelEntry) -> None:
        """The operator wants the model whatever it did."""
        self._counts.pop(weights_key(entry), None)

    def require_sound(self, entry: ModelEntry) -> None:
        """Refuses a model whose engine failed again and again."""
        failures = self._counts.get(weights_key(entry), 0)
        if failures >= MAX_FAILURES:
            raise ApiError(
                "UNAVAILABLE",
                f"The engine of the model {entry.name!r} failed {failures} times; it is not loaded again before it is"
                " loaded by hand (LoadModel), its file changes, or the daemon is restarted.",
                retry_after_s=RETRY_S,
            )


async def let_go(slot: Slot) -> bool:
    """Waits until nobody prepares a request for a model any more; False: somebody still does after LET_GO_S."""
    end_s = time.monotonic() + LET_GO_S
    while slot.num_requests and time.monotonic() < end_s:  # noqa: ASYNC110 - a slot tells its host only
        await asyncio.sleep(LET_GO_CHECK_S)
    return not slot.num_requests
