"""The library: showing, copying, deleting, making and fetching models of the store.  Methods of ModelService on the wire."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from daemon.errors import ApiError
from daemon.log import get_logger
from daemon.services.call import Call
from daemon.services.catalog import Catalog
from daemon.services.creating import CONFIG, NO_FILES, LocalFiles, ModelMaker
from daemon.services.folder import ModelEntry
from daemon.services.host import ModelHost, not_found
from daemon.services.model import ModelService, without_paths
from daemon.services.options import invalid
from daemon.services.quantize import QuantizeService
from daemon.store.blobs import parse_digest
from daemon.store.manifest import Manifest
from daemon.store.models import ModelStore
from daemon.store.names import ModelName
from daemon.store.places import Places
from quantd.v1 import generate_pb2 as pb
from quantd.v1 import model_service_pb2 as rpc
from runtime.gguf import ModelFile

log = get_logger("quantd.library")

MAX_SHOWN_TENSORS = 4096
MAX_CHUNK_BYTES = 2 << 20
MAX_PULLS = 4


class LibraryService:
    """The store, as clients see it."""

    def __init__(
        self,
        host: ModelHost,
        models: ModelService,
        places: Places | None = None,
        quantize: QuantizeService | None = None,
    ) -> None:
        self._host = host
        self._models = models
        self._quantize = quantize or QuantizeService(host.folder)
        self._places = places or Places()
        self._num_pulls = 0

    @property
    def _catalog(self) -> Catalog:
        return self._host.folder

    @property
    def _store(self) -> ModelStore:
        if self._catalog.store is None:
            raise ApiError("PERMISSION_DENIED", "This daemon has no model store (store_dir).")
        return self._catalog.store

    @property
    def _maker(self) -> ModelMaker:
        return ModelMaker(self._host, self._store, self._quantize)

    def collect_stale(self) -> int:
        """Removes what crashes and abandoned downloads left in the store; returns how many files.  Any thread."""
        return self._catalog.store.collect_stale() if self._catalog.store is not None else 0

    async def show_model(self, request: rpc.ShowModelRequest, call: Call) -> rpc.ShowModelResponse:
        """Everything about one model."""
        entry = self._host.default if not request.name else self._host.find(request.name)
        if entry is None:
            raise not_found(request.name, "name")
        found = await self._models.get_model(rpc.GetModelRequest(name=entry.name), call)
        with without_paths(entry):
            return await asyncio.to_thread(self._show, entry, found, verbose=request.verbose)

    def _show(
        self, entry: ModelEntry, found: rpc.GetModelResponse, *, verbose: bool
    ) -> rpc.ShowModelResponse:
        file = ModelFile.open(entry.path)
        response = rpc.ShowModelResponse(
            model=found.model, metadata_json=metadata_json(file, verbose=verbose)
        )
        if file.kind("tokenizer.chat_template") == "string":
            response.template = file.string("tokenizer.chat_template")
        if verbose:
            for tensor in list(file.tensors.values())[:MAX_SHOWN_TENSORS]:
                response.tensors.add(name=tensor.name, type=tensor.type_name, shape=tensor.shape)
        overrides = entry.overrides
        if overrides is None:
            return response
        manifest = overrides.manifest
        response.parameters.CopyFrom(overrides.defaults)
        response.system = overrides.system
        response.source = manifest.source
        response.stored_bytes = manifest.size_bytes
        if overrides.template is not None:
            response.template, response.template_is_override = overrides.template, True
        if manifest.go_template is not None:
            response.go_template = self._store.blobs.read_text(manifest.go_template.digest)
        response.messages.extend(
            pb.ChatMessage(role=role, content=content) for role, content in overrides.messages
        )
        response.licenses.extend(self._store.blobs.read_text(blob.digest) for blob in manifest.licenses)
        return response

    async def copy_model(self, request: rpc.CopyModelRequest, call: Call) -> rpc.CopyModelResponse:
        """A second name."""
        call.caller.require_manage()
        name = self._new_name(request.destination, "destination")
        entry = self._host.find(request.source)
        if entry is None:
            raise not_found(request.source, "source")
        manifest = await asyncio.to_thread(self._manifest, entry)
        await asyncio.to_thread(self._store.put, name, dataclasses.replace(manifest, created_unix_ms=0))
        return rpc.CopyModelResponse()

    async def delete_model(self, request: rpc.DeleteModelRequest, call: Call) -> rpc.DeleteModelResponse:
        """Forgets a name; a model in memory that has no name left goes when its requests have ended."""
        call.caller.require_manage()
        entry = self._host.find(request.name)
        if entry is None:
            raise not_found(request.name, "name")
        if entry.overrides is None:
            raise ApiError(
                "PERMISSION_DENIED",
                f"{entry.name!r} is a file that the operator put there, not a model of the store; remove the file itself.",
                field="name",
            )
        freed_bytes = await asyncio.to_thread(self._store.remove, ModelName.parse(entry.name))
        if not entry.path.exists() and self._host.loaded(entry) is not None:
            await self._host.unload(entry, when_idle=True)
        log.info("model_deleted", model=entry.name, freed_bytes=freed_bytes)
        return rpc.DeleteModelResponse(freed_bytes=freed_bytes)

    def has_source(self, name: str) -> bool:
        """Whether a model can be made from that name: a model, or a Hugging Face folder of the model folder."""
        return self._host.find(name) is not None or self._catalog.find_folder(name, CONFIG) is not None

    async def create_model(
        self, request: rpc.CreateModelRequest, call: Call, local: LocalFiles = NO_FILES
    ) -> AsyncGenerator[rpc.CreateModelResponse, None]:
        """Progress, then the model.  Closing the iterator stops the work and leaves nothing of it."""
        call.caller.require_manage()
        name = self._new_name(request.name, "name")
        async with aclosing(self._maker.make(request, call, local)) as events:
            async for event in events:
                if isinstance(event, rpc.CreateProgress):
                    yield rpc.CreateModelResponse(progress=event)
                    continue
                await asyncio.to_thread(self._store.put, name, event)
        log.info("model_created", model=str(name))
        found = await self._models.get_model(rpc.GetModelRequest(name=str(name)), call)
        yield rpc.CreateModelResponse(model=found.model)

    async def pull_model(
        self, request: rpc.PullModelRequest, call: Call
    ) -> AsyncGenerator[rpc.PullModelResponse, None]:
        """Progress, then the model.  Closing the iterator stops the download and keeps what came."""
        call.caller.require_manage()
        as_name = self._new_name(request.as_name, "as_name") if request.as_name else None
        self._new_name(request.name, "name")
        if self._num_pulls >= MAX_PULLS:
            raise ApiError("QUEUE_FULL", f"{MAX_PULLS} downloads are under way.", retry_after_s=30.0)
        self._num_pulls += 1
        from daemon.services.pulling import pull_events  # noqa: PLC0415  brings an HTTP client along

        events = pull_events(
            self._store,
            request.name,
            as_name,
            places=self._places,
            settings=None if request.ignore_memory else self._host.settings,
            leaving=tuple(slot.plan for slot in self._host.slots if slot.served is not None),
        )
        try:
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, rpc.PullProgress):
                        yield rpc.PullModelResponse(progress=event)
                        continue
                    log.info("model_pulled", model=str(event))
                    found = await self._models.get_model(rpc.GetModelRequest(name=str(event)), call)
                    yield rpc.PullModelResponse(model=found.model)
        finally:
            self._num_pulls -= 1

    async def has_blob(self, request: rpc.HasBlobRequest, call: Call) -> rpc.HasBlobResponse:
        """Whether a blob is there."""
        del call
        size = self._store.blobs.size(parse_digest(request.digest))
        return rpc.HasBlobResponse(exists=size is not None, size_bytes=size or 0)

    async def upload_blob(
        self, parts: AsyncIterator[rpc.UploadBlobRequest], call: Call
    ) -> rpc.UploadBlobResponse:
        """Stores a blob; DIGEST_MISMATCH, and nothing stays, where it is not what its digest says."""
        call.caller.require_manage()
        first = await anext(parts, None)
        if first is None:
            raise invalid("digest", "must be in the first message")
        blobs, digest = self._store.blobs, parse_digest(first.digest)
        size = blobs.size(digest)
        if size is not None:
            return rpc.UploadBlobResponse(size_bytes=size)
        with blobs.partial(digest) as partial:
            partial.restart()
            part: rpc.UploadBlobRequest | None = first
            try:
                while part is not None:
                    if len(part.data) > MAX_CHUNK_BYTES:
                        raise invalid("data", f"at most {MAX_CHUNK_BYTES} bytes, not {len(part.data)}")
                    await asyncio.to_thread(blobs.require_room, len(part.data))
                    await asyncio.to_thread(partial.write, part.data)
                    part = await anext(parts, None)
            except BaseException:
                partial.discard()  # an upload has no second part of its own: it begins anew
                raise
            await asyncio.to_thread(partial.commit)
            return rpc.UploadBlobResponse(size_bytes=partial.size)

    def _new_name(self, text: str, field: str) -> ModelName:
        name = ModelName.parse(text, field)
        if self._catalog.folder.find(text) is not None or self._catalog.folder.find(str(name)) is not None:
            raise ApiError("OUTPUT_EXISTS", f"{field}: {text!r} is a file of the model folder", field=field)
        return name

    def _manifest(self, entry: ModelEntry) -> Manifest:
        """What a model is made of; a plain file becomes blobs of the store first."""
        if entry.overrides is not None:
            return entry.overrides.manifest
        return self._maker.add_file(entry.path, entry.name)


def metadata_json(file: ModelFile, *, verbose: bool) -> dict[str, str]:
    """A file's metadata as JSON values; arrays are null unless `verbose`, and numbers that JSON has no word for are too."""
    shown: dict[str, str] = {}
    for key in file.keys():  # noqa: SIM118 - no dictionary
        is_array = (file.kind(key) or "").startswith("array")
        value = None if is_array and not verbose else file.get(key)
        if isinstance(value, float) and not math.isfinite(value):
            value = None
        shown[key] = json.dumps(value)
    return shown
