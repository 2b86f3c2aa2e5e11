"""The model host: which models are in memory, who may use them, and which one goes when another needs its place.

    admit(name) -> the slot of the model's file    in memory: use it
                                                   being loaded: wait for it, within the deadline
                                                   neither: load it, once for all who ask

A slot in use (requests being prepared or running) is never unloaded.  An idle one goes when its keep_alive ends, or
earlier when another model needs the memory: the one that was used least recently first.  Everything that changes the
set of models happens under one lock, one change at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from daemon.errors import ApiError
from daemon.log import get_logger
from daemon.metrics import Metrics, Snapshot
from daemon.services.catalog import Catalog
from daemon.services.failures import Failures, let_go
from daemon.services.folder import ModelEntry, entry_of
from daemon.services.gauges import snapshot
from daemon.services.room import next_step
from daemon.services.served import Parts, Served, bring_up, runtime_parts, take_down
from daemon.services.slot import Slot, WeightsKey, weights_key
from daemon.services.states import HostLimits, State
from runtime.machine_memory import available_memory_bytes, return_free_memory
from runtime.memory import MemoryPlan, RuntimeSettings

__all__ = ["HostLimits", "ModelHost", "Parts", "Served", "State", "not_found", "runtime_parts"]

log = get_logger("quantd.host")

# Threads for templates and tokenizers: text work never runs in the event loop, and never takes more than two cores.
TEXT_THREADS = 2
# The engine's heart beats before every step, and a step is planned to take a quarter of a second.  Without a beat for the
# first time, callers are better sent elsewhere; for the second, the process is better replaced (a slow disk can make a
# step slow, so that takes longer).
UNRESPONSIVE_S = 10.0
HANG_S = 60.0
# After the engine stopped, its last events only have to come through the event loop.
LAST_EVENTS_S = 1.0


class ModelHost:
    """Owns the models in memory.  All methods belong to one event loop, except `snapshots`."""

    def __init__(
        self, folder: Catalog, settings: RuntimeSettings, parts: Parts, limits: HostLimits | None = None
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.parts = parts
        self.limits = limits or HostLimits()
        self.metrics = Metrics(self.snapshots)
        self.text_workers = ThreadPoolExecutor(TEXT_THREADS, thread_name_prefix="quantd-text")
        self.on_change: list[Callable[[State], None]] = []
        self._default: ModelEntry | None = None
        self._slots: dict[WeightsKey, Slot] = {}
        self._state = State.EMPTY
        self._failures = Failures(exit_always=self.limits.exit_on_failure)
        self._swap = asyncio.Lock()
        self._released = (
            asyncio.Event()
        )  # set when a model may have become idle: wakes a load that waits for room
        self._background: set[asyncio.Task[None]] = set()
        self.busy = asyncio.Event()  # set while requests are under way: lets watchers sleep while idle

    # Reading.

    @property
    def state(self) -> State:
        return self._state

    @property
    def default(self) -> ModelEntry | None:
        """The model of requests that name none: the one that the operator chose, or else the first one loaded by hand."""
        return self._default

    @property
    def served(self) -> Served | None:
        """The default model where it is in memory, otherwise the model used last; also while draining."""
        slots = [slot for slot in self._slots.values() if slot.served is not None]
        if self._default is not None:
            chosen = self._slots.get(weights_key(self._default))
            if chosen is not None and chosen.served is not None:
                return chosen.served
        return max(slots, key=lambda slot: slot.last_used_s).served if slots else None

    @property
    def slots(self) -> Sequence[Slot]:
        """Every model in memory or on its way there, the one used last first."""
        return sorted(self._slots.values(), key=lambda slot: -slot.last_used_s)

    @property
    def num_requests(self) -> int:
        """Requests that were admitted and have not ended."""
        return sum(slot.num_requests for slot in self._slots.values())

    @property
    def loading(self) -> bool:
        """True while a model is being loaded or unloaded, in a thread that cannot be interrupted."""
        return self._swap.locked()

    def find(self, name: str) -> ModelEntry | None:
        """The model of that name, in memory or not."""
        if self._default is not None and name == self._default.name:
            return self._default
        return self.folder.find(name)

    def loaded(self, entry: ModelEntry) -> Served | None:
        """The model of `entry` where it is in memory."""
        slot = self._slots.get(weights_key(entry))
        return None if slot is None or slot.served is None else slot.view(entry)

    def healthy(self, silence_s: float = HANG_S) -> bool:
        """False: an engine failed, or was silent for `silence_s`, and the process should be replaced."""
        if self._state is State.FAILED:
            return False
        now_s = time.monotonic()
        for slot in self._slots.values():
            if slot.served is None:
                continue
            if not slot.served.engine.healthy():
                if not self._failures.leave_others(slot, self._slots.values()) and not (
                    self._state is State.DRAINING and self.num_requests == 0
                ):
                    return False
            elif now_s - slot.served.engine.stats().heartbeat_s >= silence_s:
                return False
        return True

    def ready(self) -> bool:
        """True: a request would be taken, and its model loaded if need be."""
        return self._state is State.READY and self.healthy(UNRESPONSIVE_S)

    def snapshots(self) -> list[Snapshot]:
        """For the gauges, one of each model in memory; any thread."""
        available_bytes = available_memory_bytes()
        slots = [(slot.served, slot.num_preparing) for slot in list(self._slots.values())]
        shown = [
            snapshot(served, num_preparing, available_bytes)
            for served, num_preparing in slots
            if served is not None
        ]
        return shown or [Snapshot(memory_available_bytes=available_bytes)]

    # Using.

    @contextlib.asynccontextmanager
    async def admit(
        self,
        name: str,
        *,
        deadline: float | None = None,
        keep_alive_s: float | None = None,
        field: str = "model",
    ) -> AsyncIterator[Served]:
        """The model `name` (empty: the default) with room for one more request while that is being prepared.

        Loads it first where it is not in memory, and waits for that until `deadline` (time.monotonic() seconds; None: the
        load timeout).  QUEUE_FULL before any work is done.  `keep_alive_s` holds for the model from now on.
        """
        entry = self._entry(name, field)
        slot = self._slot(entry)
        limit = self.settings.sessions + self.limits.max_waiting
        if slot.num_requests >= limit:
            raise ApiError(
                "QUEUE_FULL", f"{limit} requests are under way; try again later.", retry_after_s=1.0
            )
        with slot.use():
            self.busy.set()
            if slot.served is None:
                await self._wait_loaded(slot, deadline)
            if keep_alive_s is not None:
                slot.keep_alive_s = keep_alive_s
            await slot.prepare(entry)
            yield slot.view(entry)

    async def _wait_loaded(self, slot: Slot, deadline: float | None) -> None:
        until_s = time.monotonic() + self.limits.load_timeout_s if deadline is None else deadline
        task = self._start_loading(slot)
        done, _ = await asyncio.wait([task], timeout=max(0.0, until_s - time.monotonic()))
        if done:
            task.result()
            return
        if deadline is None:
            raise ApiError("UNAVAILABLE", f"The model {slot.entry.name!r} could not be loaded in time.")
        raise ApiError("DEADLINE_EXCEEDED", "The time for this request ran out while its model was loaded.")

    def _entry(self, name: str, field: str) -> ModelEntry:
        self._require_open()
        if not name and self._default is None:
            raise ApiError(
                "MODEL_NOT_FOUND", "Name a model: this daemon serves none by default.", field=field
            )
        entry = self._default if not name else self.find(name)
        if entry is None:
            raise not_found(name, field)
        return entry

    def _slot(self, entry: ModelEntry) -> Slot:
        """The slot of the entry's file, made where there is none; files that were replaced since are kept no longer."""
        key = weights_key(entry)
        slot = self._slots.get(key)
        if slot is None:
            for other in self._slots.values():
                if other.entry.path == entry.path:
                    other.keep_alive_s = 0.0
                    other.touch()
            slot = Slot(entry, self.limits.keep_alive_s, self._idle)
            self._slots[key] = slot
        return slot

    # Loading.

    async def load_path(self, path: Path) -> Served:
        """Serves the file that the operator named."""
        return await self.load(entry_of(path))

    async def load(self, entry: ModelEntry, *, keep_alive_s: float | None = None) -> Served:
        """Brings `entry` into memory, for ever unless told otherwise; where there is no default model, it becomes that.

        Models that are idle make room where it is needed.  Raises MemoryPlanError where the plan does not fit even then.
        """
        self._require_open()
        is_first = self._default is None
        if is_first:
            self._default = entry
        if self._state is State.EMPTY:
            self._become(State.LOADING)
        slot = self._slot(entry)
        self._failures.forgive(entry)
        with slot.use():
            try:
                if slot.served is None:
                    await self._wait_loaded(slot, None)
            except BaseException:
                if self._state is State.LOADING:
                    self._become(State.EMPTY)
                if is_first:
                    self._default = None
                raise
            slot.keep_alive_s = float("inf") if keep_alive_s is None else keep_alive_s
            self.open()
            return slot.view(entry)

    def open(self) -> None:
        """Takes requests from now on; models are loaded when they are first asked for."""
        self._become(State.READY)

    def _start_loading(self, slot: Slot) -> asyncio.Task[None]:
        if slot.loading is None:
            slot.loading = asyncio.get_running_loop().create_task(self._load(slot))
            slot.loading.add_done_callback(_take_exception)
        return slot.loading

    async def _load(self, slot: Slot) -> None:
        """The one load of a slot; a slot that cannot be loaded is forgotten, so that the next request tries again."""
        started_s = time.monotonic()
        try:
            async with self._swap:
                self._require_open()
                self._failures.require_sound(slot.entry)
                others = await self._make_room(slot)
                served = await bring_up(
                    slot.entry,
                    self.parts,
                    self.settings,
                    max_waiting=self.limits.max_waiting,
                    others=others,
                )
                if self._state in (State.DRAINING, State.FAILED):
                    await take_down(served)
                    self._require_open()
                slot.begin(served)
        except BaseException:
            self.metrics.model_load_failed()
            self._forget(slot)
            raise
        self.metrics.model_loaded(time.monotonic() - started_s)
        slot.touch()  # whoever asked for it may be gone

    async def _make_room(self, slot: Slot) -> list[MemoryPlan]:
        """Takes idle models down until `slot` fits, and waits for busy ones; returns the plans of those that stay."""
        while True:
            self._require_open()
            if not slot.num_requests:
                raise ApiError("CANCELLED", "Nobody waits for this model any more.")
            self._released.clear()
            loaded = [other for other in self._slots.values() if other.served is not None]
            step = await next_step(loaded, self.limits.max_models, functools.partial(self._plan, slot))
            if isinstance(step, list):
                return step
            if step is None:
                await self._wait_released(slot)
            elif step.is_idle:  # a request may have come while the plan was made
                self.metrics.model_evicted()
                log.info("model_makes_room", model=step.entry.name, wanted_for=slot.entry.name)
                await self._remove(step)

    async def _wait_released(self, slot: Slot) -> None:
        """Until some request has ended; others may change the set of models meanwhile."""
        log.info("load_waits_for_room", model=slot.entry.name)
        self._swap.release()
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._released.wait(), self.limits.load_timeout_s)
        finally:
            await self._swap.acquire()

    async def _plan(self, slot: Slot, *, stay: Sequence[Slot], leave: Sequence[Slot]) -> MemoryPlan:
        """The plan of `slot` beside those that stay, once the others have left."""
        return await asyncio.to_thread(
            self.parts.plan,
            slot.entry.path,
            self.settings,
            others=[one.plan for one in stay],
            leaving=[one.plan for one in leave],
        )

    # Unloading.

    async def unload(self, entry: ModelEntry, *, when_idle: bool = False) -> bool:
        """Takes a model out of memory; False: it will go when its requests have ended.

        MODEL_BUSY while requests run, unless `when_idle`; MODEL_NOT_FOUND where it is not in memory.
        """
        slot = self._slots.get(weights_key(entry))
        if slot is None or slot.served is None:
            raise ApiError("MODEL_NOT_FOUND", f"The model {entry.name[:200]!r} is not loaded.", field="name")
        if self._state is State.DRAINING:
            self._require_open()
        if slot.num_requests:
            if not when_idle:
                raise ApiError(
                    "MODEL_BUSY", f"{slot.num_requests} requests are under way on the loaded model."
                )
            slot.keep_alive_s = 0.0
            return False
        slot.keep_alive_s = 0.0
        async with self._swap:
            if slot.served is not None and slot.is_idle:
                await self._remove(slot)
        return True

    def _idle(self, slot: Slot) -> None:
        """Told by a slot that nobody uses it any more, and again when its keep_alive is over."""
        self._released.set()
        if slot.served is None:
            if not slot.num_requests and slot.loading is None:
                self._forget(slot)
            return
        if slot.is_expired and self._state not in (State.DRAINING, State.FAILED):
            self._spawn(self._expire(slot))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _expire(self, slot: Slot) -> None:
        async with self._swap:
            if slot.served is not None and slot.is_expired:
                await self._remove(slot)

    async def _remove(self, slot: Slot) -> None:
        """Takes down an idle slot; from here on a request for it makes a new one."""
        served = slot.served
        assert served is not None
        self._forget(slot)
        slot.end()
        await take_down(served)
        del served  # the last one who knew it
        await asyncio.to_thread(return_free_memory)

    def _forget(self, slot: Slot) -> None:
        slot.end_timer()
        for key, known in list(self._slots.items()):
            if known is slot:
                del self._slots[key]

    # Failing.

    def drop_failed(self) -> Served | None:
        """Takes models whose engine failed out of memory; returns the first whose failure is that of the whole daemon.

        The requests of a failed engine have been told by the engine itself.
        """
        for slot in list(self._slots.values()):
            served = slot.served
            if served is None or served.engine.healthy():
                continue
            log.error("engine_failed", model=served.name, error=served.engine.stats().failed)
            self.metrics.engine_failed(served.name)
            if not self._failures.leave_others(slot, self._slots.values()):
                return served
            self._failures.count(slot.entry)
            self._forget(slot)
            slot.end()
            self._spawn(self._bury(slot, served))
        return None

    async def _bury(self, slot: Slot, served: Served) -> None:
        """Unmaps a model whose engine failed, once nobody prepares a request for it any more."""
        if not await let_go(slot):
            log.error("model_not_unmapped", model=served.name, requests=slot.num_requests)
            return  # its memory is lost until the process ends: better than a reader of unmapped weights
        async with self._swap:
            await take_down(served)
        self._released.set()

    # Ending.

    def drain(self) -> None:
        """No new requests from now on; running ones go on."""
        if self._state is not State.FAILED:
            self._become(State.DRAINING)
        self._released.set()

    def fail(self) -> None:
        """An engine is beyond repair."""
        self._become(State.FAILED)

    async def stop(self, drain_s: float) -> None:
        """Lets running requests end within `drain_s`, ends the rest, frees everything."""
        served = [slot.served for slot in self._slots.values() if slot.served is not None]
        await asyncio.gather(*(asyncio.to_thread(one.engine.stop, drain_s) for one in served))
        await asyncio.gather(*(one.bridge.wait_empty(LAST_EVENTS_S) for one in served))
        self.text_workers.shutdown(wait=False, cancel_futures=True)

    async def close_model(self) -> None:
        """Unmaps the models; after `stop`, when no answer is under way any more."""
        slots = [slot for slot in self._slots.values() if slot.served is not None]
        for slot in slots:
            served = slot.served
            assert served is not None
            self._forget(slot)
            slot.end()
            served.bridge.detach()
            await asyncio.to_thread(served.model.close)

    def _require_open(self) -> None:
        if self._state in (State.DRAINING, State.FAILED):
            raise ApiError("UNAVAILABLE", f"Not ready: {self._state.value}.")

    def _become(self, state: State) -> None:
        """Enters a state and tells; what drains or failed never becomes ready again."""
        if self._state in (State.DRAINING, State.FAILED) and state not in (State.DRAINING, State.FAILED):
            return
        self._state = state
        for tell in self.on_change:
            tell(state)


def not_found(name: str, field: str) -> ApiError:
    """The same answer for a model that is absent, forbidden or not a name at all."""
    return ApiError("MODEL_NOT_FOUND", f"There is no model {name[:200]!r}.", field=field)


def _take_exception(task: asyncio.Task[None]) -> None:
    """A load that failed when nobody waited any more must not be reported as lost."""
    if not task.cancelled():
        task.exception()
