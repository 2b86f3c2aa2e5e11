"""ModelService: what models there are, which one serves, and what serving one would take."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

import structlog

from daemon.errors import ApiError, to_api_error
from daemon.services.call import Call
from daemon.services.folder import ModelEntry
from daemon.services.host import ModelHost, Served, not_found
from daemon.services.options import invalid
from quantd.v1 import model_pb2 as pb
from quantd.v1 import model_service_pb2 as rpc
from runtime.errors import QuantdError
from runtime.gguf import ModelFile
from runtime.memory import KV_TYPES, RuntimeSettings

log = structlog.stdlib.get_logger("quantd.models")

MAX_CACHED = 256  # descriptions kept; one is about 200 bytes
MAX_SESSIONS = 256
MIN_CONTEXT_TOKENS = 16
MAX_CONTEXT_TOKENS = 2**24


class ModelService:
    """The models of the folder, and the one being served."""

    def __init__(self, host: ModelHost) -> None:
        self._host = host
        self._described: dict[ModelEntry, pb.Model] = {}

    async def list_models(self, request: rpc.ListModelsRequest, call: Call) -> rpc.ListModelsResponse:
        """Every readable model, the served one first, then by name."""
        del request, call
        served = self._host.served
        entries = await asyncio.to_thread(self._host.folder.entries)
        models = [self._describe_served(served)] if served else []
        for entry in entries:
            if served is None or entry.name != served.name:
                model = await asyncio.to_thread(self._describe_or_skip, entry)
                if model is not None:
                    models.append(model)
        return rpc.ListModelsResponse(models=models)

    async def get_model(self, request: rpc.GetModelRequest, call: Call) -> rpc.GetModelResponse:
        """One model; an empty name asks for the served one."""
        del call
        served = self._host.served
        if served is not None and request.name in ("", served.name):
            return rpc.GetModelResponse(model=self._describe_served(served))
        entry = self._find(request.name)
        with _without_paths(entry):
            return rpc.GetModelResponse(model=await asyncio.to_thread(self._describe, entry))

    async def load_model(self, request: rpc.LoadModelRequest, call: Call) -> rpc.LoadModelResponse:
        """Serves a model of the folder in the place of the one being served."""
        del call
        served = self._host.served
        if not request.name:
            raise invalid("name", "must be given")
        if served is None or served.name != request.name:
            entry = self._find(request.name)
            # A client that goes away must not leave the host between two models: the swap goes on without it.
            with _without_paths(entry):
                served = await asyncio.shield(asyncio.ensure_future(self._host.load(entry)))
        return rpc.LoadModelResponse(
            model=self._describe_served(served), plan=plan_message(served.model.plan)
        )

    async def unload_model(self, request: rpc.UnloadModelRequest, call: Call) -> rpc.UnloadModelResponse:
        """Stops serving the named model."""
        del call
        served = self._host.served
        if served is None or request.name != served.name:
            raise ApiError(
                "MODEL_NOT_FOUND", f"The model {request.name[:200]!r} is not loaded.", field="name"
            )
        await asyncio.shield(asyncio.ensure_future(self._host.unload()))
        return rpc.UnloadModelResponse()

    async def plan_memory(self, request: rpc.PlanMemoryRequest, call: Call) -> rpc.PlanMemoryResponse:
        """What serving a model would take, without loading it."""
        del call
        settings = _plan_settings(request, self._host.settings)
        served = self._host.served
        entry = served.entry if served and request.name in ("", served.name) else self._find(request.name)
        with _without_paths(entry):
            plan = await asyncio.to_thread(self._host.parts.plan, entry.path, settings)
        return rpc.PlanMemoryResponse(plan=plan_message(plan))

    def _find(self, name: str) -> ModelEntry:
        entry = self._host.folder.find(name) if name else None
        if entry is None:
            raise not_found(name, "name")
        return entry

    def _describe_served(self, served: Served) -> pb.Model:
        model = pb.Model()
        model.CopyFrom(self._describe(served.entry, served.model.file))
        model.loaded = True
        model.session_context_tokens = served.model.context_tokens
        model.has_chat_template = served.template is not None
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
def _without_paths(entry: ModelEntry) -> Iterator[None]:
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
    tokens: Any = file.get("tokenizer.ggml.tokens", [])
    return pb.Model(
        name=entry.name,
        architecture=architecture,
        quantization=elements.most_common(1)[0][0] if elements else "",
        num_parameters=sum(elements.values()),
        size_bytes=file.size_bytes,
        context_length=file.integer(f"{architecture}.context_length", 0, minimum=0, maximum=2**31 - 1),
        vocab_size=len(tokens),
        has_chat_template=bool(file.get("tokenizer.chat_template", "")),
        modified_unix_ms=entry.modified_ns // 1_000_000,
    )


def plan_message(plan: Any) -> pb.MemoryPlan:
    """A runtime.memory.MemoryPlan as its message."""
    names = [field.name for field in pb.MemoryPlan.DESCRIPTOR.fields]
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
