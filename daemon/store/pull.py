"""Pulling a model: choose, plan, fetch, check, name."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2

from daemon.errors import ApiError
from daemon.sizes import format_size
from daemon.store import hub, registry
from daemon.store.blobs import Partial
from daemon.store.download import HEAD_BYTES, Downloader, Wanted, http_client, read_head
from daemon.store.go_template import is_go_template
from daemon.store.manifest import Manifest, parameters_json
from daemon.store.models import ModelStore
from daemon.store.names import ModelName
from daemon.store.offer import Offer, Variant
from daemon.store.parameters import options_of_ollama
from daemon.store.places import Places
from runtime.errors import ModelFormatError
from runtime.memory import MemoryPlan, RuntimeSettings, plan_memory

MAX_HEAD_BYTES = 256 << 20  # metadata longer than this is no model's
_LOOPBACK = ("localhost", "127.0.0.1")


@dataclass(frozen=True, slots=True)
class Step:
    """How far a pull is."""

    status: str
    digest: str = ""  # 64 hexadecimal digits of the blob under way
    completed_bytes: int = 0
    total_bytes: int = 0


def pull(
    store: ModelStore,
    name: ModelName,
    *,
    places: Places,
    report: Callable[[Step], None],
    cancel: threading.Event,
    as_name: ModelName | None = None,
    settings: RuntimeSettings | None = None,
    leaving: tuple[MemoryPlan, ...] = (),
) -> ModelName:
    """Downloads a model into the store; returns the name that it has there.

    With `settings`, the memory plan must fit once `leaving` (models in memory that can go) are gone: it is made from the
    beginning of the file, before the rest is fetched.  Raises ApiError, MemoryPlanError, UnsupportedModelError or
    PullCancelledError; what was fetched stays for the next try.
    """
    with http_client() as client:
        report(Step(f"looking for {name}"))
        offer = _offer(name, places, client)
        missing = sum(w.size_bytes for w in offer.weights if store.blobs.size(w.digest) != w.size_bytes)
        store.blobs.require_room(missing)
        downloader = Downloader(store.blobs, client, cancel)
        check = _HeadCheck(offer, settings, leaving)
        for index, wanted in enumerate((*offer.weights, *offer.texts)):
            _fetch(downloader, wanted, report, check if index == 0 else None)
        report(Step("checking the model"))
        manifest = _manifest(store, offer)
        _check_complete(store, offer)
    final = as_name or name
    report(Step("writing the manifest"))
    store.put(final, manifest)
    return final


def remote_plan(
    name: ModelName, places: Places, settings: RuntimeSettings
) -> tuple[MemoryPlan, tuple[Variant, ...]]:
    """The memory plan of a model that is not here, from the beginning of its file; and what else the place has of it.

    Raises ApiError, UnsupportedModelError, or ModelFormatError for metadata that is not sound.
    """
    with http_client() as client:
        offer = _offer(name, places, client)
        first = offer.weights[0]
        n_bytes = min(HEAD_BYTES, first.size_bytes)
        while True:
            head = read_head(client, first, n_bytes)
            try:
                return plan_head(head, first.size_bytes, offer.size_bytes, settings), offer.variants
            except ModelFormatError:
                if n_bytes >= min(first.size_bytes, MAX_HEAD_BYTES):
                    raise
                n_bytes = min(2 * n_bytes, first.size_bytes, MAX_HEAD_BYTES)


def _offer(name: ModelName, places: Places, client: httpx2.Client) -> Offer:
    host = name.parts[0] if len(name.parts) > 2 else ""
    if host in hub.HOSTS:
        return hub.offer(name, places.hub.rstrip("/"))
    if not host or host == httpx2.URL(places.registry).netloc.decode():
        return registry.offer(name, places.registry, client)
    if not places.any_host:
        raise ApiError("PERMISSION_DENIED", f"This daemon does not download from {host}.", field="name")
    scheme = "http" if host.partition(":")[0] in _LOOPBACK else "https"
    return registry.offer(name, f"{scheme}://{host}", client)


def _fetch(
    downloader: Downloader, wanted: Wanted, report: Callable[[Step], None], check: _HeadCheck | None
) -> None:
    status = f"fetching {wanted.file or wanted.digest[:12]}"
    downloader.fetch(wanted, lambda have, total: report(Step(status, wanted.digest, have, total)), check)


def _manifest(store: ModelStore, offer: Offer) -> Manifest:
    split = len(offer.weights) > 1
    manifest = Manifest(
        weights=tuple(replace(w.blob(), file=w.file if split else "") for w in offer.weights),
        system=offer.system.blob() if offer.system else None,
        messages=offer.messages.blob() if offer.messages else None,
        licenses=tuple(wanted.blob() for wanted in offer.licenses),
        source=offer.source,
    )
    if offer.template is not None:
        go = is_go_template(store.blobs.read_text(offer.template.digest))
        blob = offer.template.blob()
        manifest = replace(manifest, go_template=blob) if go else replace(manifest, template=blob)
    if offer.parameters is not None:
        with contextlib.suppress(ValueError, RecursionError):
            parameters: Any = json.loads(store.blobs.read_text(offer.parameters.digest))
            if isinstance(parameters, dict):
                manifest = replace(manifest, parameters_json=parameters_json(options_of_ollama(parameters)))
    return manifest


def _check_complete(store: ModelStore, offer: Offer) -> None:
    """Reads the whole format of each file once: a model that lies gets no name."""
    from runtime._native import GgufFile  # noqa: PLC0415

    for wanted in offer.weights:
        try:
            GgufFile(str(store.blobs.path(wanted.digest)))
        except ModelFormatError as failure:
            text = failure.message.replace(str(store.blobs.path(wanted.digest)), wanted.file or "the file")
            raise ApiError("INVALID_MODEL_FILE", text, field="name") from failure


class _HeadCheck:
    """Plans the memory of the model from the beginning of its first file."""

    def __init__(
        self, offer: Offer, settings: RuntimeSettings | None, leaving: tuple[MemoryPlan, ...]
    ) -> None:
        self._offer = offer
        self._settings = settings
        self._leaving = leaving

    def __call__(self, partial: Partial, size_bytes: int) -> bool:
        if self._settings is None:
            return True
        head = partial.read_head(min(partial.size, MAX_HEAD_BYTES))
        try:
            plan = plan_head(head, size_bytes, self._offer.size_bytes, self._settings, self._leaving)
        except ModelFormatError:
            # Its metadata may be longer; where that cannot be, the check of the whole file names what is wrong.
            return partial.size >= min(size_bytes, MAX_HEAD_BYTES)
        if not plan.fits:
            hint = self._what_fits(plan)
            raise ApiError(
                "INSUFFICIENT_MEMORY",
                f"{plan.explanation}\n{hint}",
                details={"total_bytes": str(plan.total_bytes), "available_bytes": str(plan.available_bytes)},
            )
        return True

    def _what_fits(self, plan: MemoryPlan) -> str:
        """Which of the place's other quantizations would fit."""
        rest_bytes = plan.total_bytes - plan.weights_bytes
        fitting = [v for v in self._offer.variants if v.size_bytes + rest_bytes <= plan.available_bytes]
        if not fitting:
            return "Nothing was downloaded that is of use here; --force downloads it all the same."
        best = max(fitting, key=lambda variant: variant.size_bytes)
        return f"Of the same model, {best.quant} ({format_size(best.size_bytes)}) would fit."


def plan_head(
    head: bytes,
    size_bytes: int,
    weights_bytes: int,
    settings: RuntimeSettings,
    leaving: tuple[MemoryPlan, ...] = (),
) -> MemoryPlan:
    """The memory plan of a model of `weights_bytes` from the beginning of its first file of `size_bytes`.

    Raises ModelFormatError where the metadata is not whole or not sound, UnsupportedModelError.
    """
    from runtime._native import GgufFile  # noqa: PLC0415
    from runtime.gguf import ModelFile  # noqa: PLC0415
    from runtime.model import read_config  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="quantd-plan-") as folder:
        path = Path(folder) / "model.gguf"
        with path.open("wb") as file:
            file.write(head)
            os.truncate(file.fileno(), size_bytes)  # the rest is a hole
        model = ModelFile((GgufFile(str(path)),))
        model.size_bytes = weights_bytes  # of all its files
        return plan_memory(model, read_config(model), settings, leaving=leaving)
