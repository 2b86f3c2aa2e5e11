"""The store: names, each with a manifest; blobs, each under its digest; everything in one folder."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from daemon.errors import ApiError
from daemon.log import get_logger
from daemon.store.blobs import BlobStore, sync_folder
from daemon.store.manifest import MAX_MANIFEST_BYTES, Blob, Manifest, Overrides, read_messages
from daemon.store.names import ModelName

log = get_logger("quantd.store")

MAX_MODELS = 4096
_LOCK_S = 30.0  # a change of names takes milliseconds; whoever holds the lock longer is stuck


@dataclass(frozen=True, slots=True)
class Stored:
    """A name of the store."""

    name: ModelName
    manifest: Manifest
    path: Path  # of the first weights file, as GGUF readers want it
    changed_ns: int  # when the name was last given


class ModelStore:
    """One folder of models.  Made when the first model comes; safe to use from several processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = BlobStore(root / "blobs")
        self._manifests = root / "manifests"
        self._views = root / "views"
        self._read: dict[Path, tuple[tuple[int, int, int], Stored]] = {}

    # Reading.

    def names(self) -> list[ModelName]:
        """Every name, in order."""
        try:
            with os.scandir(self._manifests) as files:
                found = [ModelName.of_file_name(file.name) for file in files]
        except OSError:
            return []
        return sorted(name for name in found if name is not None)

    def entries(self) -> list[Stored]:
        """Every model that can be read, by name."""
        found = (self.find(name) for name in self.names())
        return [stored for stored in found if stored is not None]

    def find(self, name: ModelName) -> Stored | None:
        """The model of that name; None where there is none, or where its manifest is damaged (which is logged)."""
        path = self._manifests / name.file_name
        try:
            facts = path.lstat()
            stamp = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
            known = self._read.get(path)
            if known is not None and known[0] == stamp:
                return known[1]
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
                manifest = Manifest.from_json(file.read(MAX_MANIFEST_BYTES + 1))
        except OSError:
            return None
        except ValueError as failure:
            log.warning("manifest_unusable", name=str(name), error=str(failure))
            return None
        stored = Stored(name, manifest, self._weights_path(manifest), facts.st_mtime_ns)
        if len(self._read) >= MAX_MODELS:
            self._read.clear()
        self._read[path] = (stamp, stored)
        return stored

    def overrides(self, stored: Stored) -> Overrides:
        """The texts and defaults of a model; a blob that is gone leaves its default."""
        manifest = stored.manifest

        def text(blob: Blob | None) -> str | None:
            try:
                return None if blob is None else self.blobs.read_text(blob.digest)
            except OSError:
                return None

        return Overrides(
            manifest,
            text(manifest.template),
            text(manifest.system) or "",
            read_messages(text(manifest.messages) or "[]"),
            manifest.parameters,
        )

    def _weights_path(self, manifest: Manifest) -> Path:
        first = manifest.weights[0]
        return (
            self._view(manifest) / first.file if len(manifest.weights) > 1 else self.blobs.path(first.digest)
        )

    def _view(self, manifest: Manifest) -> Path:
        """The folder in which the files of a split model stand side by side under their own names."""
        return self._views / manifest.digest

    # Changing.

    def put(self, name: ModelName, manifest: Manifest) -> Stored:
        """Gives a name to blobs that are there; what the name stood for before is collected."""
        manifest = dataclasses.replace(
            manifest, created_unix_ms=manifest.created_unix_ms or time.time_ns() // 1_000_000
        )
        data = manifest.to_json()
        with self._locked():
            for blob in manifest.blobs():
                if self.blobs.size(blob.digest) != blob.size_bytes:
                    raise ApiError(
                        "MODEL_NOT_FOUND", f"There is no blob sha256:{blob.digest}.", field="digest"
                    )
            before = self.find(name)
            if before is None and len(self.names()) >= MAX_MODELS:
                raise ApiError("QUEUE_FULL", f"The store holds {MAX_MODELS} names, which is its limit.")
            if len(manifest.weights) > 1:
                self._make_view(manifest)
            self._manifests.mkdir(parents=True, exist_ok=True)
            path = self._manifests / name.file_name
            partial = path.with_name(f".{os.getpid()}.partial")
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            sync_folder(self._manifests)
            if before is not None:
                self._collect(before.manifest)
            stored = self.find(name)
        assert stored is not None
        return stored

    def copy(self, source: ModelName, destination: ModelName) -> Stored:
        """A second name for the same model; MODEL_NOT_FOUND without a source."""
        stored = self.find(source)
        if stored is None:
            raise ApiError("MODEL_NOT_FOUND", f"There is no model {str(source)!r}.", field="source")
        return self.put(destination, dataclasses.replace(stored.manifest, created_unix_ms=0))

    def remove(self, name: ModelName) -> int:
        """Forgets a name and frees what no other name uses; returns the bytes that were freed."""
        with self._locked():
            path = self._manifests / name.file_name
            stored = self.find(name)
            try:
                path.unlink()
            except FileNotFoundError:
                raise ApiError("MODEL_NOT_FOUND", f"There is no model {str(name)!r}.", field="name") from None
            sync_folder(self._manifests)
            self._read.pop(path, None)
            return self._collect(stored.manifest) if stored is not None else 0

    def collect_stale(self) -> int:
        """Removes what crashes and abandoned downloads left, long after the fact; returns how many files."""
        if not self.root.is_dir():
            return 0
        with self._locked():
            referenced = {blob.digest for stored in self.entries() for blob in stored.manifest.blobs()}
            if len(self.entries()) < len(self.names()):
                return 0  # a manifest cannot be read: what it refers to is unknown
            stale = self.blobs.stale(referenced)
            for path in stale:
                with contextlib.suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        return len(stale)

    def _collect(self, manifest: Manifest) -> int:
        """Removes the blobs of a manifest that is gone, except those that another name uses."""
        entries = self.entries()
        if len(entries) < len(self.names()):
            return 0  # a manifest cannot be read: what it refers to is unknown
        used = {blob.digest for stored in entries for blob in stored.manifest.blobs()}
        if manifest.digest not in used and len(manifest.weights) > 1:
            view = self._view(manifest)
            for blob in manifest.weights:
                with contextlib.suppress(OSError):
                    (view / blob.file).unlink()
            with contextlib.suppress(OSError):
                view.rmdir()
        return self.blobs.remove({blob.digest for blob in manifest.blobs()} - used)

    def _make_view(self, manifest: Manifest) -> None:
        view = self._view(manifest)
        view.mkdir(parents=True, exist_ok=True)
        for blob in manifest.weights:
            with contextlib.suppress(FileExistsError):
                (view / blob.file).hardlink_to(self.blobs.path(blob.digest))
        sync_folder(view)

    @contextlib.contextmanager
    def _locked(self, sleep: Callable[[float], None] = time.sleep) -> Iterator[None]:
        """One change of names at a time, over all processes."""
        self.root.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            until_s = time.monotonic() + _LOCK_S
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= until_s:
                        raise ApiError("MODEL_BUSY", "Another process is changing the model store.") from None
                    sleep(0.02)
            yield
        finally:
            os.close(fd)
