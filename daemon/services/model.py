"""ModelService: what models there are, which are in memory, and what serving one would take."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from daemon.errors import ApiError, to_api_error
from daemon.keep_alive import FOREVER, from_ms
from daemon.log import get_logger
from daemon.services.call import Call
from daemon.services.folder import ModelEntry
from daemon.services.host import ModelHost, Served, not_found
from daemon.services.options import MAX_CONTEXT_TOKENS, MIN_CONTEXT_TOKENS, invalid
from quant.recipes import recipe_of
from quantd.v1 import model_pb2 as pb
from quantd.v1 import model_service_pb2 as rpc
from runtime.errors import QuantdError
from runtime.gguf import ModelFile
from runtime.memory import KV_TYPES, RuntimeSettings
from runtime.models import architecture as built
from runtime.models import architecture_names

log = get_logger("quantd.models")

MAX_CACHED = 256  # descriptions kept; one is about 200 bytes
MAX_SESSIONS = 256


class ModelService:
    """The models of this daemon."""

    def __init__(self, host: ModelHost) -> None:
        self._host = host
        self._described: dict[ModelEntry, pb.Model] = {}

    async def list_models(self, request: rpc.ListModelsRequest, call: Call) -> rpc.ListModelsResponse:
        """Every readable model, those in memory first, then by name."""
        del request, call
        entries = {entry.name: entry for entry in await asyncio.to_thread(self._host.folder.entries)}
        if self._host.default is not None:
            entries[self._host.default.name] = self._host.default
        models = []
        for _, entry in sorted(entries.items()):
            served = self._host.loaded(entry)
            model = (
                self._describe_served(served)
                if served is not None
                else await asyncio.to_thread(self._describe_or_skip, entry)
            )
            if model is not None:
                models.append(model)
        models.sort(key=lambda model: (not model.loaded, model.name))
        return rpc.ListModelsResponse(models=models)

    async def get_model(self, request: rpc.GetModelRequest, call: Call) -> rpc.GetModelResponse:
        """One model; an empty name asks for the default model."""
        del call
        entry = self._find_or_default(request.name)
        served = self._host.loaded(entry)
        if served is not None:
            return rpc.GetModelResponse(model=self._describe_served(served))
        with without_paths(entry):
            return rpc.GetModelResponse(model=await asyncio.to_thread(self._describe, entry))

    async def load_model(self, request: rpc.LoadModelRequest, call: Call) -> rpc.LoadModelResponse:
        """Brings a model into memory; a key that may only use models has it loaded by asking it something."""
        call.caller.require_manage()
        if not request.name:
            raise invalid("name", "must be given")
        entry = self._find(request.name)
        keep_alive_s = from_ms(request.keep_alive_ms) if request.HasField("keep_alive_ms") else None
        with without_paths(entry):
            served = await self._host.load(entry, keep_alive_s=keep_alive_s)
        return rpc.LoadModelResponse(
            model=self._describe_served(served), plan=plan_message(served.model.plan)
        )

    async def unload_model(self, request: rpc.UnloadModelRequest, call: Call) -> rpc.UnloadModelResponse:
        """Takes the named model out of memory."""
        call.caller.require_manage()
        entry = self._find(request.name)
        unload = self._host.unload(entry, when_idle=request.when_idle)
        # A client that goes away must not leave a model half unloaded.
        gone = await asyncio.shield(asyncio.ensure_future(unload))
        return rpc.UnloadModelResponse(pending=not gone)

    async def list_running(self, request: rpc.ListRunningRequest, call: Call) -> rpc.ListRunningResponse:
        """Every model in memory, the one used last first."""
        del request, call
        response = rpc.ListRunningResponse()
        now_ms = time.time_ns() // 1_000_000
        for slot in self._host.slots:
            if slot.served is None:
                continue
            expires_in_s = slot.expires_in_s
            response.models.add(
                model=self._describe_served(slot.served),
                memory_bytes=max(0, slot.plan.model_bytes),
                kv_arena_bytes=slot.plan.kv_arena_bytes,
                num_requests=slot.num_requests,
                loaded_unix_ms=slot.loaded_unix_ms,
                expires_unix_ms=0 if expires_in_s == FOREVER else now_ms + round(1e3 * expires_in_s),
            )
        return response

    async def plan_memory(self, request: rpc.PlanMemoryRequest, call: Call) -> rpc.PlanMemoryResponse:
        """What serving a model would take, without loading it."""
        del call
        settings = _plan_settings(request, self._host.settings)
        entry = self._find_or_default(request.name)
        with without_paths(entry):
            leaving = [slot.plan for slot in self._host.slots if slot.served is not None]
            plan = await asyncio.to_thread(self._host.parts.plan, entry.path, settings, leaving=leaving)
        return rpc.PlanMemoryResponse(plan=plan_message(plan))

    def _find_or_default(self, name: str) -> ModelEntry:
        if not name and self._host.default is not None:
            return self._host.default
        return self._find(name)

    def _find(self, name: str) -> ModelEntry:
        entry = self._host.find(name) if name else None
        if entry is None:
            raise not_found(name, "name")
        return entry

    def _describe_served(self, served: Served) -> pb.Model:
        model = pb.Model()
        model.CopyFrom(self._describe(served.entry, served.model.file))
        model.loaded = True
        model.session_context_tokens = served.model.context_tokens
        model.has_chat_template = model.has_chat_template and served.template is not None
        model.gives_embeddings = not served.model.generates
        model.warnings.extend(served.warnings)
        return model

    def _describe_or_skip(self, entry: ModelEntry) -> pb.Model | None:
        try:
            return self._describe(entry)
        except (QuantdError, OSError) as failure:
            log.warning("model_unreadable", model=entry.name, error=str(failure))
            return None

    def _describe(self, entry: ModelEntry, file: ModelFile | None = None) -> pb.Model:
        """Facts of a file, read once for each version of it."""
        known = self._described.get(entry)
        if known is None:
            known = describe(entry, file or ModelFile.open(entry.path))
            if len(self._described) >= MAX_CACHED:
                self._described.clear()
            self._described[entry] = known
        return known


@contextlib.contextmanager
def without_paths(entry: ModelEntry) -> Iterator[None]:
    """Errors of the runtime name the file by its path, which is right at a terminal and nothing for clients."""
    try:
        yield
    except QuantdError as failure:
        error = to_api_error(failure)
        message = error.message.replace(f"{entry.path.parent}/", "")
        raise ApiError(error.reason, message, field=error.field, details=error.details) from failure


def describe(entry: ModelEntry, file: ModelFile) -> pb.Model:
    """The facts of a model file that clients see."""
    architecture = file.architecture
    elements: Counter[str] = Counter()
    for tensor in file.tensors.values():
        elements[tensor.type_name] += tensor.n_elements
    file_type = file.get("general.file_type")
    return pb.Model(
        name=entry.name,
        architecture=architecture,
        quantization=elements.most_common(1)[0][0] if elements else "",
        num_parameters=sum(elements.values()),
        size_bytes=file.size_bytes,
        context_length=file.integer(f"{architecture}.context_length", 0, minimum=0, maximum=2**31 - 1),
        vocab_size=file.length("tokenizer.ggml.tokens"),
        has_chat_template=bool(
            file.get("tokenizer.chat_template", "") or (entry.overrides and entry.overrides.template)
        ),
        modified_unix_ms=(entry.changed_ns or entry.modified_ns) // 1_000_000,
        gives_embeddings=architecture in architecture_names() and built(architecture).encoder,
        recipe=recipe_of(file_type) if isinstance(file_type, int) else "",
        digest="" if entry.overrides is None else f"sha256:{entry.overrides.manifest.digest}",
    )


def plan_message(plan: Any) -> pb.MemoryPlan:
    """A runtime.memory.MemoryPlan as its message."""
    names = [field.name for field in pb.MemoryPlan.DESCRIPTOR.fields]
    assert all(hasattr(plan, name) for name in names)
    return pb.MemoryPlan(**{name: getattr(plan, name) for name in names})


def _plan_settings(request: rpc.PlanMemoryRequest, settings: RuntimeSettings) -> RuntimeSettings:
    changes: dict[str, Any] = {}
    if request.HasField("sessions"):
        changes["sessions"] = _within("sessions", request.sessions, 1, MAX_SESSIONS)
    if request.HasField("session_context_tokens"):
        changes["context_tokens"] = _within(
            "session_context_tokens", request.session_context_tokens, MIN_CONTEXT_TOKENS, MAX_CONTEXT_TOKENS
        )
    if request.HasField("kv_budget_bytes"):
        changes["kv_budget_bytes"] = _within("kv_budget_bytes", request.kv_budget_bytes, 2**16, 2**50)
    if request.HasField("kv_type"):
        if request.kv_type not in KV_TYPES:
            raise invalid("kv_type", f"must be one of {', '.join(KV_TYPES)}, not {request.kv_type[:40]!r}")
        changes["kv_type"] = request.kv_type
    return dataclasses.replace(settings, **changes)


def _within(field: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise invalid(field, f"must be {low} to {high}, not {value}")
    return value
