"""Making a model of the store: from another one, from blobs or from files, converted and quantized where that is wanted."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import shutil
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.errors import ApiError
from daemon.services.call import Call
from daemon.services.defaults import merge
from daemon.services.folder import ModelEntry
from daemon.services.host import ModelHost, not_found
from daemon.services.model import without_paths
from daemon.services.options import MAX_CONTEXT_TOKENS, invalid, read_options
from daemon.services.quantize import QuantizeService
from daemon.store.blobs import MAX_TEXT_BYTES, parse_digest
from daemon.store.go_template import is_go_template
from daemon.store.manifest import (
    MAX_LICENSES,
    MAX_MESSAGES,
    MAX_WEIGHTS,
    Blob,
    Manifest,
    is_plain_file,
    messages_json,
    parameters_json,
)
from daemon.store.modelfile import MESSAGE_ROLES
from daemon.store.models import ModelStore
from daemon.text.template import ChatTemplate
from quantd.v1 import generate_pb2 as pb
from quantd.v1 import model_service_pb2 as rpc
from quantd.v1 import quantize_service_pb2
from runtime.gguf import ModelFile

CONFIG = "config.json"
ADAPTER_FILES = frozenset({"adapter_config.json", "adapter_model.safetensors"})
MAX_ADAPTERS = 8
MAX_CONFIG_BYTES = 4 << 20

Events = AsyncGenerator[rpc.CreateProgress | Manifest, None]


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """Files of this machine that the operator named at the command line.  No request can name any."""

    weights: Path | None = None  # a GGUF file or a Hugging Face folder, instead of `from` and `files`
    adapters: tuple[Path, ...] = ()  # folders


NO_FILES = LocalFiles()


@dataclass(frozen=True, slots=True)
class _Base:
    """What a model is made from: weights of the store, or a file or folder somewhere."""

    label: str  # what messages call it
    path: Path
    manifest: Manifest | None = None

    @property
    def is_folder(self) -> bool:
        """True: a Hugging Face folder, which is converted."""
        return self.path.is_dir()


class ModelMaker:
    """Makes manifests; giving them a name is the caller's part."""

    def __init__(self, host: ModelHost, store: ModelStore, quantize: QuantizeService) -> None:
        self._host = host
        self._store = store
        self._quantize = quantize

    async def make(self, request: rpc.CreateModelRequest, call: Call, local: LocalFiles) -> Events:
        """Progress, then the manifest.  What can be refused is refused before weights are read; closing the iterator stops a
        conversion and leaves nothing of it.
        """
        _check(request, local)
        folders = _Folders(self._store)
        try:
            base = await asyncio.to_thread(self._base, request, local, folders)
            adapters = list(local.adapters)
            if request.adapter_files:
                adapters.append(await asyncio.to_thread(folders.link, request.adapter_files, "adapter_files"))
            if adapters and not base.is_folder:
                raise ApiError(
                    "UNSUPPORTED_MODEL",
                    "An adapter is merged into the weights of a Hugging Face folder while it is converted;"
                    f" {base.label} is a GGUF file.",
                    field="adapter_files",
                )
            if request.quantize or base.is_folder:
                recipe = request.quantize or await asyncio.to_thread(_stored_type, base.path)
                async with aclosing(self._convert(base, recipe, adapters, call)) as events:
                    async for event in events:
                        if isinstance(event, rpc.CreateProgress):
                            yield event
                        else:
                            base = dataclasses.replace(base, manifest=event)
        finally:
            folders.close()
        manifest = base.manifest
        if manifest is None:
            yield rpc.CreateProgress(status="copying the file into the store")
            manifest = await asyncio.to_thread(self.add_file, base.path, base.label)
        yield rpc.CreateProgress(status="writing the manifest")
        yield await asyncio.to_thread(self._with_texts, manifest, request)

    # The weights.

    def _base(self, request: rpc.CreateModelRequest, local: LocalFiles, folders: _Folders) -> _Base:
        source: str = getattr(request, "from")
        if local.weights is not None:
            if not local.weights.is_dir():
                ModelFile.open(local.weights)  # refuses what is no model, by name
            return _Base(local.weights.name or str(local.weights), local.weights)
        if request.files:
            names = {one.file for one in request.files}
            if CONFIG in names:
                return _Base("the uploaded files", folders.link(request.files, "files"))
            manifest = self._of_files(request.files)
            if len(manifest.weights) > 1:
                path = folders.link(request.files, "files") / manifest.weights[0].file
            else:
                path = self._store.blobs.path(manifest.digest)
            return _Base("the uploaded file", path, manifest)
        entry = self._host.find(source)
        if entry is not None and entry.overrides is None:
            return _Base(entry.name, entry.path)
        if entry is not None and entry.overrides is not None:
            found = dataclasses.replace(
                entry.overrides.manifest, created_unix_ms=0, source=f"made from {entry.name}"
            )
            return _Base(entry.name, entry.path, found)
        folder = self._host.folder.find_folder(source, CONFIG)
        if folder is None:
            raise not_found(source, "from")
        return _Base(source, folder)

    def add_file(self, path: Path, label: str) -> Manifest:
        """A GGUF file outside the store, all parts of a split one, as blobs of the store."""
        with without_paths(ModelEntry(label, path, 0, 0)):
            paths = ModelFile.open(path).paths
        blobs = self._store.blobs
        weights = []
        for one in paths:
            digest = blobs.add_file(one)
            weights.append(Blob(digest, blobs.size(digest) or 0, one.name if len(paths) > 1 else ""))
        return Manifest(weights=tuple(weights), source=f"the file {label}")

    def _of_files(self, files: Sequence[rpc.ModelFileBlob]) -> Manifest:
        weights = [
            Blob(blob.digest, blob.size_bytes, blob.file if len(files) > 1 else "")
            for blob in _blobs(self._store, files, "files")
        ]
        if len({blob.file for blob in weights}) < len(weights):
            raise invalid("files", "each file of a split model needs a name of its own")
        for blob in weights:  # refuses what is no model, by name, before it gets one
            path = self._store.blobs.path(blob.digest)
            with without_paths(ModelEntry(blob.file or "the blob", path, blob.size_bytes, 0)):
                _open_alone(path)
        return Manifest(weights=tuple(sorted(weights, key=lambda one: one.file)), source="uploaded blobs")

    async def _convert(self, base: _Base, recipe: str, adapters: Sequence[Path], call: Call) -> Events:
        """Quantizes into a blob; the manifest keeps what the base adds to its weights."""
        blobs = self._store.blobs
        output = blobs.new_path(".gguf")
        verb = "converting" if base.is_folder else "quantizing"
        events = self._quantize.make(
            base.path,
            output,
            recipe=recipe,
            adapters=adapters,
            label=base.label,
            hidden=(base.path, base.path.parent, blobs.root, *adapters, *(one.parent for one in adapters)),
            call=call,
        )
        made = recipe
        try:
            async with aclosing(events):
                async for event in events:
                    if event.HasField("result"):
                        made = event.result.recipe or recipe
                    yield _progress(f"{verb} to {recipe}", event)
            yield rpc.CreateProgress(status="computing the digest")
            digest = await asyncio.to_thread(blobs.adopt, output)
        except ApiError as failure:
            field = {"source": "from", "recipe": "quantize", "lora": "adapter_files"}.get(
                failure.field, failure.field
            )
            if adapters and any(name in failure.message for name in ADAPTER_FILES):
                field = "adapter_files"
            raise ApiError(
                failure.reason,
                failure.message,
                field=field,
                retry_after_s=failure.retry_after_s,
                details=failure.details,
            ) from None
        finally:
            for left in output.parent.glob(f"{output.name}*"):
                left.unlink(missing_ok=True)
        done = "converted" if base.is_folder else "quantized"
        yield dataclasses.replace(
            base.manifest or Manifest(weights=()),
            weights=(Blob(digest, blobs.size(digest) or 0),),
            created_unix_ms=0,
            source=f"{base.label}, {done} to {made}" + (f", {_count(adapters)} merged" if adapters else ""),
        )

    # What comes with them.

    def _with_texts(self, base: Manifest, request: rpc.CreateModelRequest) -> Manifest:
        changes: dict[str, Any] = {}
        if request.HasField("template"):
            blob = self._text(request.template) if request.template else None
            go = bool(request.template) and is_go_template(request.template)
            changes |= {"go_template": blob if go else None, "template": None if go else blob}
        if request.HasField("system"):
            changes["system"] = self._text(request.system) if request.system else None
        if request.licenses:
            changes["licenses"] = tuple(self._text(text) for text in request.licenses)
        if request.messages:
            changes["messages"] = self._text(
                messages_json((one.role, one.content) for one in request.messages)
            )
        if request.HasField("parameters"):
            changes["parameters_json"] = check_parameters(merge(base.parameters, request.parameters))
        return dataclasses.replace(base, **changes)

    def _text(self, text: str) -> Blob:
        data = text.encode()
        return Blob(self._store.blobs.add_bytes(data), len(data))


class _Folders:
    """Folders of links to blobs, under the names that the files of a Hugging Face folder or an adapter must have."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store
        self._made: list[Path] = []

    def link(self, files: Sequence[rpc.ModelFileBlob], field: str) -> Path:
        blobs = _blobs(self._store, files, field)
        if len({blob.file for blob in blobs}) < len(blobs) or not all(blob.file for blob in blobs):
            raise invalid(field, "each file needs a name of its own")
        if field == "adapter_files" and not {blob.file for blob in blobs} >= ADAPTER_FILES:
            raise invalid(field, f"an adapter is {' and '.join(sorted(ADAPTER_FILES))}")
        folder = self._store.blobs.new_path()
        folder.mkdir()
        self._made.append(folder)
        for blob in blobs:
            (folder / blob.file).hardlink_to(self._store.blobs.path(blob.digest))
        return folder

    def close(self) -> None:
        """Removes the folders; the blobs stay."""
        for folder in self._made:
            shutil.rmtree(folder, ignore_errors=True)


def _check(request: rpc.CreateModelRequest, local: LocalFiles) -> None:
    """Everything that can be refused without looking at weights."""
    sources = (bool(getattr(request, "from")), bool(request.files), local.weights is not None)
    if sum(sources) != 1:
        raise invalid("from", "either from or files must be given")
    for field, texts in (
        ("template", [request.template]),
        ("system", [request.system]),
        ("licenses", request.licenses),
        ("messages", ["".join(one.content for one in request.messages)]),
    ):
        for text in texts:
            if len(text.encode()) > MAX_TEXT_BYTES:
                raise invalid(field, f"at most {MAX_TEXT_BYTES} bytes, not {len(text.encode())}")
    if len(request.licenses) > MAX_LICENSES:
        raise invalid("licenses", f"at most {MAX_LICENSES}, not {len(request.licenses)}")
    if len(request.messages) > MAX_MESSAGES:
        raise invalid("messages", f"at most {MAX_MESSAGES}, not {len(request.messages)}")
    for index, message in enumerate(request.messages):
        if message.role not in MESSAGE_ROLES:
            raise invalid(
                f"messages[{index}].role",
                f"must be one of {', '.join(MESSAGE_ROLES)}, not {message.role[:40]!r}",
            )
    if len(local.adapters) > MAX_ADAPTERS:
        raise invalid("adapter_files", f"at most {MAX_ADAPTERS} adapters, not {len(local.adapters)}")
    check_parameters(request.parameters)
    if request.template and not is_go_template(request.template):
        ChatTemplate(request.template)


def check_parameters(options: pb.GenerationOptions) -> str:
    """Defaults in the form of the manifest; INVALID_ARGUMENT for values that no request could have."""
    read_options(options, n_vocab=2**31 - 1, context_tokens=MAX_CONTEXT_TOKENS, encode=lambda _: [])
    return parameters_json(options)


def _blobs(store: ModelStore, files: Sequence[rpc.ModelFileBlob], field: str) -> list[Blob]:
    """The blobs of a request, each checked to be there."""
    if len(files) > MAX_WEIGHTS:
        raise invalid(field, f"at most {MAX_WEIGHTS}, not {len(files)}")
    found = []
    for index, one in enumerate(files):
        where = f"{field}[{index}]"
        digest = parse_digest(one.digest, f"{where}.digest")
        if one.file and not is_plain_file(one.file):
            raise invalid(f"{where}.file", f"must be a plain file name, not {one.file[:100]!r}")
        size = store.blobs.size(digest)
        if size is None:
            raise ApiError(
                "MODEL_NOT_FOUND",
                f"There is no blob sha256:{digest}; upload it first.",
                field=f"{where}.digest",
            )
        found.append(Blob(digest, size, one.file))
    return found


def _stored_type(folder: Path) -> str:
    """The recipe that keeps what a Hugging Face folder stores: BF16 stays, F32 and F16 become F16."""
    with contextlib.suppress(OSError, ValueError, RecursionError, AttributeError):
        with (folder / CONFIG).open("rb") as file:
            config = json.loads(file.read(MAX_CONFIG_BYTES))
        if "bfloat16" in (config.get("torch_dtype"), config.get("dtype")):
            return "BF16"
    return "F16"


def _count(adapters: Sequence[Path]) -> str:
    return "1 adapter" if len(adapters) == 1 else f"{len(adapters)} adapters"


def _progress(status: str, event: quantize_service_pb2.QuantizeResponse) -> rpc.CreateProgress:
    kind = event.WhichOneof("event")
    if kind == "queued":
        ahead = event.queued.jobs_ahead
        return rpc.CreateProgress(status=f"waiting for {ahead} other quantization{'s' if ahead > 1 else ''}")
    if kind == "progress":
        return rpc.CreateProgress(
            status=status, completed_bytes=event.progress.bytes_done, total_bytes=event.progress.bytes_total
        )
    return rpc.CreateProgress(status=f"checking {event.result.output_bytes} bytes")


def _open_alone(path: Path) -> None:
    """Checks the format of one file, which may be one of several."""
    from runtime._native import GgufFile  # noqa: PLC0415

    GgufFile(str(path))
