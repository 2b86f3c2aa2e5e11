"""One model in memory: its file, engine, bridge and template, and how it is brought up and taken down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from daemon.bridge import Bridge
from daemon.errors import ApiError
from daemon.log import get_logger
from daemon.services.folder import ModelEntry
from daemon.text.template import ChatTemplate
from runtime.memory import MemoryPlan, RuntimeSettings
from runtime.request import Event, FinishEvent, FinishReason, Request
from runtime.sampling import SamplingParams

log = get_logger("quantd.host")

WARM_UP_ID = "warm-up"


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
    """A model that can answer.  `model` is a runtime.model.LoadedModel."""

    entry: ModelEntry
    model: Any
    engine: EngineHandle
    bridge: Bridge
    template: ChatTemplate | None

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def warnings(self) -> list[str]:
        """What whoever uses this model should know, in sentences."""
        found = list(self.model.tokenizer.warnings)
        if self.template is not None and self.template.is_fallback:
            found.append(
                "the file brings no chat template: conversations are written as ChatML, which may not be the model's form"
            )
        elif self.template is None and self.model.chat_template:
            found.append("the file's chat template cannot be used: the model serves without chat")
        return found


class LoadModel(Protocol):
    """runtime.model.load_model."""

    def __call__(self, path: Path, settings: RuntimeSettings, *, others: Sequence[MemoryPlan]) -> Any: ...


class PlanModel(Protocol):
    """The memory plan of a file beside `others`, once `leaving` are gone."""

    def __call__(
        self,
        path: Path,
        settings: RuntimeSettings,
        *,
        others: Sequence[MemoryPlan] = (),
        leaving: Sequence[MemoryPlan] = (),
    ) -> MemoryPlan: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """How the host makes its parts; tests put fakes in their place."""

    load_model: LoadModel
    make_engine: Callable[[Any, int, Callable[[list[Event]], None]], EngineHandle]
    make_template: Callable[[Any], ChatTemplate | None]
    plan: PlanModel


async def bring_up(
    entry: ModelEntry,
    parts: Parts,
    settings: RuntimeSettings,
    *,
    max_waiting: int,
    others: Sequence[MemoryPlan] = (),
) -> Served:
    """Loads a model beside `others` and starts its engine; where no step of it was computed yet, runs a short request."""
    started_s = time.monotonic()
    model = await asyncio.to_thread(parts.load_model, entry.path, settings, others=others)
    try:
        template = await asyncio.to_thread(parts.make_template, model)
        bridge = Bridge(asyncio.get_running_loop())
        try:
            engine = parts.make_engine(model, max_waiting, bridge.sink)
            bridge.attach(engine)
            engine.start()
            try:
                if not model.is_warm:
                    await _warm_up(model, bridge)
            except BaseException:
                await asyncio.to_thread(engine.stop, 0.0)
                raise
        except BaseException:
            bridge.detach()
            raise
    except BaseException:
        await asyncio.to_thread(model.close)
        raise
    log.info("model_loaded", model=entry.name, seconds=round(time.monotonic() - started_s, 3))
    return Served(entry, model, engine, bridge, template)


async def take_down(served: Served) -> None:
    """Ends the engine and gives the memory back."""
    await asyncio.to_thread(served.engine.stop, 0.0)
    served.bridge.detach()
    await asyncio.to_thread(served.model.close)
    log.info("model_unloaded", model=served.name)


async def _warm_up(model: Any, bridge: Bridge) -> None:
    """One short request: touches every weight once, so that the first caller does not wait for the disk."""
    if not model.generates:
        await asyncio.to_thread(model.warm_up)
        return
    bos_id = model.tokenizer.bos_id
    request = Request(
        id=WARM_UP_ID,
        prompt_ids=(0 if bos_id is None else bos_id,),
        max_tokens=1,
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
    from runtime.model import load_model, read_config, settings_for  # noqa: PLC0415

    def plan(
        path: Path,
        settings: RuntimeSettings,
        *,
        others: Sequence[MemoryPlan] = (),
        leaving: Sequence[MemoryPlan] = (),
    ) -> MemoryPlan:
        file = ModelFile.open(path)
        config = read_config(file)
        settings = settings_for(config, settings)
        return plan_memory(file, config, settings, others=others, leaving=leaving)

    def make_engine(model: Any, max_waiting: int, sink: Callable[[list[Event]], None]) -> EngineHandle:
        engine: EngineHandle = Engine(model, max_waiting=max_waiting, sink=sink)
        return engine

    return Parts(load_model, make_engine, make_template, plan)


def make_template(model: Any) -> ChatTemplate | None:
    """The model's chat template, ChatML if it brings none; None for an encoder, or one that cannot be used."""
    if not model.generates:
        return None
    try:
        template = ChatTemplate.of_model(model.file, model.tokenizer)
        if template is None:
            log.warning("chat_template_missing", model=model.name, used="ChatML")
            template = ChatTemplate.fallback()
        return template
    except ApiError as failure:
        log.warning("chat_template_unusable", model=model.name, error=failure.message)
        return None


def override_template(source: str, tokenizer: Any, name: str) -> ChatTemplate | None:
    """The chat template that a name of the store brings; None for one that cannot be used."""
    try:
        return ChatTemplate(
            source,
            bos_token="" if tokenizer.bos_id is None else tokenizer.token_text(tokenizer.bos_id),
            eos_token="" if tokenizer.eos_id is None else tokenizer.token_text(tokenizer.eos_id),
        )
    except ApiError as failure:
        log.warning("chat_template_unusable", model=name, error=failure.message)
        return None
