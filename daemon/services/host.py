"""The model host: one model with its engine, loaded, swapped and unloaded; who may use it, and when."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from daemon.bridge import Bridge
from daemon.errors import ApiError
from daemon.log import get_logger
from daemon.metrics import Metrics, Snapshot
from daemon.services.folder import ModelEntry, ModelFolder, entry_of
from daemon.text.template import ChatTemplate
from runtime.errors import QuantdError
from runtime.machine_memory import available_memory_bytes
from runtime.memory import RuntimeSettings
from runtime.request import Event, FinishEvent, FinishReason, Request
from runtime.sampling import SamplingParams

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


WARM_UP_ID = "warm-up"


class State(enum.Enum):
    """What the host can do now."""

    EMPTY = "no model is loaded"
    LOADING = "the model is being loaded"
    READY = "ready"
    DRAINING = "the daemon is shutting down"
    FAILED = "the engine failed"


class EngineHandle(Protocol):
    """What the host needs of runtime.engine.Engine."""

    def start(self) -> None: ...
    def submit(self, request: Request) -> None: ...
    def cancel(self, request_id: str) -> None: ...
    def stats(self) -> Any: ...
    def healthy(self) -> bool: ...
    def stop(self, drain_s: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Served:
    """The model being served.  `model` is a runtime.model.LoadedModel."""

    entry: ModelEntry
    model: Any
    engine: EngineHandle
    bridge: Bridge
    template: ChatTemplate | None

    @property
    def name(self) -> str:
        return self.entry.name


@dataclass(frozen=True, slots=True)
class Parts:
    """How the host makes its parts; tests put fakes in their place."""

    load_model: Callable[[Path, RuntimeSettings], Any]
    make_engine: Callable[[Any, int, Callable[[list[Event]], None]], EngineHandle]
    make_template: Callable[[Any], ChatTemplate | None]
    plan: Callable[[Path, RuntimeSettings], Any]


class ModelHost:
    """Owns the served model.  All methods belong to one event loop, except `snapshot`."""

    def __init__(
        self, folder: ModelFolder, settings: RuntimeSettings, parts: Parts, *, max_waiting: int = 64
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.parts = parts
        self.metrics = Metrics(self.snapshot)
        self.text_workers = ThreadPoolExecutor(TEXT_THREADS, thread_name_prefix="quantd-text")
        self.on_change: list[Callable[[State], None]] = []
        self._max_waiting = max_waiting
        self._served: Served | None = None
        self._state = State.EMPTY
        self._num_preparing = 0  # admitted requests that the engine does not have yet
        self._swap = asyncio.Lock()
        self.busy = asyncio.Event()  # set while requests are under way: lets watchers sleep while idle

    # Reading.

    @property
    def state(self) -> State:
        return self._state

    @property
    def served(self) -> Served | None:
        """The model being served, also while it drains."""
        return self._served

    @property
    def num_requests(self) -> int:
        """Requests that were admitted and have not ended."""
        return self._num_preparing + (self._served.bridge.num_open if self._served else 0)

    def require(self, name: str, field: str = "model") -> Served:
        """The served model if `name` asks for it (empty: whichever it is); otherwise says why not."""
        if self._state is not State.READY or self._served is None:
            if self._state is State.EMPTY and name and self.folder.find(name) is None:
                raise not_found(name, field)
            raise ApiError("UNAVAILABLE", f"Not ready: {self._state.value}.")
        if name and name != self._served.name:
            if self.folder.find(name) is not None:
                raise ApiError("MODEL_NOT_FOUND", f"The model {name[:200]!r} is not loaded.", field=field)
            raise not_found(name, field)
        return self._served

    @contextlib.contextmanager
    def admit(self, name: str) -> Iterator[Served]:
        """Room for one more request while it is being prepared; QUEUE_FULL before any work is done for it."""
        served = self.require(name)
        limit = self.settings.sessions + self._max_waiting
        if self.num_requests >= limit:
            raise ApiError(
                "QUEUE_FULL", f"{limit} requests are under way; try again later.", retry_after_s=1.0
            )
        self._num_preparing += 1
        self.busy.set()
        try:
            yield served
        finally:
            self._num_preparing -= 1

    def healthy(self, silence_s: float = HANG_S) -> bool:
        """False: the engine failed, or was silent for `silence_s`, and the process should be replaced."""
        served = self._served
        if self._state is State.FAILED:
            return False
        if served is None:
            return True
        if not served.engine.healthy():
            return self._state is State.DRAINING and self.num_requests == 0
        return bool(time.monotonic() - served.engine.stats().heartbeat_s < silence_s)

    @property
    def loading(self) -> bool:
        """True while a model is being loaded or unloaded, in a thread that cannot be interrupted."""
        return self._swap.locked()

    def ready(self) -> bool:
        """True: a request would be taken."""
        return self._state is State.READY and self.healthy(UNRESPONSIVE_S)

    def snapshot(self) -> Snapshot:
        """For the gauges; any thread."""
        served = self._served
        if served is None:
            return Snapshot(memory_available_bytes=available_memory_bytes())
        stats, plan = served.engine.stats(), served.model.plan
        file = served.model.file
        return Snapshot(
            model_name=served.name,
            requests_running=stats.running,
            requests_waiting=stats.waiting + self._num_preparing,
            pages_total=stats.pages_total,
            pages_used=stats.pages_used,
            pages_reserved=stats.pages_reserved,
            pages_cached=stats.pages_cached,
            page_bytes=plan.kv_arena_bytes // max(1, plan.n_pages),
            prompt_tokens_total=stats.prompt_tokens_total,
            generation_tokens_total=stats.generation_tokens_total,
            cache_queried_tokens_total=stats.cache_queried_tokens_total,
            cache_hit_tokens_total=stats.cache_hit_tokens_total,
            prompt_tokens_per_s=stats.prompt_tokens_per_s,
            generation_tokens_per_s=stats.generation_tokens_per_s,
            model_mapped_bytes=file.size_bytes,
            model_resident_bytes=file.resident_bytes(),
            memory_budget_bytes=plan.total_bytes,
            memory_available_bytes=available_memory_bytes(),
        )

    # Changing.

    async def load_path(self, path: Path) -> Served:
        """Serves the file that the operator named."""
        return await self.load(entry_of(path))

    async def load(self, entry: ModelEntry) -> Served:
        """Serves `entry` in the place of what is served; refused while requests run and when the plan does not fit.

        If the new model cannot be loaded after all, the old one is served again.
        """
        async with self._swap:
            self._require_idle()
            old = self._served
            if old is not None:
                await asyncio.to_thread(self._require_plan, entry, old)
                self._require_idle()  # a request may have come while the plan was made
            self._served = None
            self._become(State.LOADING)
            if old is not None:
                await self._take_down(old)
            try:
                served = await self._bring_up(entry)
            except BaseException:
                await self._restore(old)
                raise
            if self._state is not State.LOADING:
                await self._take_down(served)
                raise ApiError("UNAVAILABLE", f"Not ready: {self._state.value}.")
            self._served = served
            self._become(State.READY)
            return served

    async def unload(self) -> None:
        """Serves nothing from now on; refused while requests run."""
        async with self._swap:
            self._require_idle()
            if self._served is not None:
                old, self._served = self._served, None
                self._become(State.EMPTY)
                await self._take_down(old)

    def drain(self) -> None:
        """No new requests from now on; running ones go on."""
        if self._state is not State.FAILED:
            self._become(State.DRAINING)

    def fail(self) -> None:
        """The engine is beyond repair."""
        self._become(State.FAILED)

    async def stop(self, drain_s: float) -> None:
        """Lets running requests end within `drain_s`, ends the rest, frees everything."""
        served = self._served
        if served is not None:
            await asyncio.to_thread(served.engine.stop, drain_s)
            await served.bridge.wait_empty(LAST_EVENTS_S)
        self.text_workers.shutdown(wait=False, cancel_futures=True)

    async def close_model(self) -> None:
        """Unmaps the model; after `stop`, when no answer is under way any more."""
        if self._served is not None:
            served, self._served = self._served, None
            await asyncio.to_thread(served.model.close)

    # Parts.

    async def _bring_up(self, entry: ModelEntry) -> Served:
        started_s = time.monotonic()
        model = await asyncio.to_thread(self.parts.load_model, entry.path, self.settings)
        try:
            template = await asyncio.to_thread(self.parts.make_template, model)
            bridge = Bridge(asyncio.get_running_loop())
            engine = self.parts.make_engine(model, self._max_waiting, bridge.sink)
            bridge.attach(engine)
            engine.start()
            try:
                await _warm_up(model, bridge)
            except BaseException:
                await asyncio.to_thread(engine.stop, 0.0)
                raise
        except BaseException:
            await asyncio.to_thread(model.close)
            raise
        log.info("model_loaded", model=entry.name, seconds=round(time.monotonic() - started_s, 3))
        return Served(entry, model, engine, bridge, template)

    async def _take_down(self, served: Served) -> None:
        await asyncio.to_thread(served.engine.stop, 0.0)
        await asyncio.to_thread(served.model.close)
        log.info("model_unloaded", model=served.name)

    async def _restore(self, old: Served | None) -> None:
        """After a failed swap: the old model again, or nothing."""
        if old is not None and self._state is State.LOADING:
            with contextlib.suppress(QuantdError, OSError):
                self._served = await self._bring_up(old.entry)
        self._become(State.READY if self._served is not None else State.EMPTY)

    def _require_plan(self, entry: ModelEntry, old: Served) -> None:
        """Refuses a model that would not fit once the old one is gone, while the old one still serves."""
        plan = self.parts.plan(entry.path, self.settings)
        freed_bytes = old.model.plan.kv_arena_bytes + old.model.plan.scratch_bytes
        if plan.total_bytes > plan.available_bytes + freed_bytes:
            plan.ensure_fits()

    def _require_idle(self) -> None:
        if self._state is State.DRAINING:
            raise ApiError("UNAVAILABLE", f"Not ready: {self._state.value}.")
        if self.num_requests:
            raise ApiError("MODEL_BUSY", f"{self.num_requests} requests are under way on the loaded model.")

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


async def _warm_up(model: Any, bridge: Bridge) -> None:
    """One short request: touches every weight once, so that the first caller does not wait for the disk."""
    bos_id = model.tokenizer.bos_id
    request = Request(
        id=WARM_UP_ID,
        prompt_ids=(0 if bos_id is None else bos_id,),
        max_tokens=2,
        sampling=SamplingParams(temperature=0.0),
    )
    stream = bridge.submit(request)
    while True:
        event = await stream.next()
        if isinstance(event, FinishEvent):
            if event.reason is FinishReason.FAILED:
                raise ApiError("UNSUPPORTED_MODEL", f"The model cannot compute: {event.error}.")
            return


def runtime_parts() -> Parts:
    """The real parts.  Imported here: the runtime takes a while to import, and tests of services need none of it."""
    from runtime.engine import Engine  # noqa: PLC0415
    from runtime.gguf import ModelFile  # noqa: PLC0415
    from runtime.memory import plan_memory  # noqa: PLC0415
    from runtime.model import load_model, read_config  # noqa: PLC0415

    def plan(path: Path, settings: RuntimeSettings) -> Any:
        file = ModelFile.open(path)
        return plan_memory(file, read_config(file), settings)

    def make_engine(model: Any, max_waiting: int, sink: Callable[[list[Event]], None]) -> EngineHandle:
        engine: EngineHandle = Engine(model, max_waiting=max_waiting, sink=sink)
        return engine

    return Parts(load_model, make_engine, make_template, plan)


def make_template(model: Any) -> ChatTemplate | None:
    """The model's chat template; None if it brings none, or one that cannot be used: then it serves without chat."""
    try:
        return ChatTemplate.of_model(model.file, model.tokenizer)
    except ApiError as failure:
        log.warning("chat_template_unusable", model=model.name, error=failure.message)
        return None
