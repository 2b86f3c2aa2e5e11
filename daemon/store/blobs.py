"""Content-addressed files.  A blob is there under its digest or not at all; partial ones have names of their own."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from daemon.errors import ApiError

CHUNK_BYTES = 1 << 20
PARTIAL = ".partial"
MAKING = "making-"
MAX_TEXT_BYTES = 1 << 20  # of a template, system text or license
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})", re.ASCII)
_STALE_PARTIAL_S = 7 * 86400.0
_STALE_BLOB_S = 86400.0  # what was uploaded and never used


class Hash(Protocol):
    """hashlib's sha256 object."""

    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


def parse_digest(text: str, field: str = "digest") -> str:
    """The 64 hexadecimal digits of "sha256:..."; INVALID_ARGUMENT for anything else."""
    match = _DIGEST.fullmatch(text)
    if match is None:
        raise ApiError(
            "INVALID_ARGUMENT",
            f"{field}: must be sha256: and 64 hexadecimal digits, not {text[:80]!r}",
            field=field,
        )
    return match[1]


class BlobStore:
    """The blobs of one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, digest: str) -> Path:
        """Where the blob of these 64 hexadecimal digits is, or would be."""
        assert re.fullmatch(r"[0-9a-f]{64}", digest), "digests are checked where they come in"
        return self.root / f"sha256-{digest}"

    def size(self, digest: str) -> int | None:
        """Size in bytes; None where there is no such blob."""
        try:
            return self.path(digest).stat().st_size
        except OSError:
            return None

    def read_text(self, digest: str) -> str:
        """A small text blob, bounded; undecodable bytes become U+FFFD."""
        with self.path(digest).open("rb") as file:
            return file.read(MAX_TEXT_BYTES).decode(errors="replace")

    def add_bytes(self, data: bytes) -> str:
        """Stores a small blob; returns its digest."""
        digest = hashlib.sha256(data).hexdigest()
        if self.size(digest) != len(data):
            with self.partial(digest) as partial:
                partial.restart()
                partial.write(data)
                partial.commit()
        return digest

    def add_file(self, source: Path, progress: Callable[[int], None] = lambda _: None) -> str:
        """Copies a file into the store (sharing its blocks where the file system can); returns its digest."""
        hasher = hashlib.sha256()
        with source.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                hasher.update(chunk)
                progress(len(chunk))
        digest = hasher.hexdigest()
        if self.size(digest) == source.stat().st_size:
            return digest
        self.require_room(source.stat().st_size)
        with self.partial(digest) as partial, source.open("rb") as file:
            partial.restart()
            while chunk := file.read(CHUNK_BYTES):
                partial.write(chunk)
            partial.commit()
        return digest

    def new_path(self, suffix: str = "") -> Path:
        """A path for a file, or a folder of links, that is being made; what is left there goes after a day."""
        self.root.mkdir(parents=True, exist_ok=True)
        return self.root / f"{MAKING}{secrets.token_hex(8)}{suffix}"

    def adopt(self, path: Path, progress: Callable[[int], None] = lambda _: None) -> str:
        """Makes a finished file of `new_path` a blob; returns its digest."""
        hasher = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                hasher.update(chunk)
                progress(len(chunk))
            os.fsync(file.fileno())
        digest = hasher.hexdigest()
        path.replace(self.path(digest))
        sync_folder(self.root)
        return digest

    def require_room(self, n_bytes: int) -> None:
        """DISK_FULL, with numbers, unless so many bytes are free here."""
        self.root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.root).free
        if n_bytes > free:
            raise ApiError(
                "DISK_FULL",
                f"{n_bytes} bytes are needed on the disk of the model store, {free} are free.",
                details={"needed_bytes": str(n_bytes), "free_bytes": str(free)},
            )

    @contextlib.contextmanager
    def partial(self, digest: str) -> Iterator[Partial]:
        """The blob under construction, as far as it came before; one process at a time writes it."""
        self.root.mkdir(parents=True, exist_ok=True)
        partial = Partial(self.path(digest), digest)
        try:
            yield partial
        finally:
            partial.close()

    def remove(self, digests: Iterable[str]) -> int:
        """Removes blobs that nothing refers to any more; returns the bytes that were freed."""
        freed = 0
        for digest in digests:
            size = self.size(digest)
            with contextlib.suppress(FileNotFoundError):
                self.path(digest).unlink()
                freed += size or 0
        return freed

    def stale(self, referenced: set[str]) -> list[Path]:
        """Blobs without a name and partial ones, of a time when whoever made them must be done."""
        found = []
        now_s = time.time()
        with contextlib.suppress(FileNotFoundError), os.scandir(self.root) as files:
            for file in files:
                with contextlib.suppress(OSError):
                    age_s = now_s - file.stat(follow_symlinks=False).st_mtime
                    digest = file.name.removesuffix(PARTIAL).removeprefix("sha256-")
                    limit_s = _STALE_PARTIAL_S if file.name.endswith(PARTIAL) else _STALE_BLOB_S
                    if age_s > limit_s and (file.name.endswith(PARTIAL) or digest not in referenced):
                        found.append(Path(file.path))
        return found


class Partial:
    """A blob being written; `commit` checks, syncs and renames it."""

    def __init__(self, target: Path, digest: str) -> None:
        self._target = target
        self._digest = digest
        self._path = target.with_name(target.name + PARTIAL)
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as failure:
            os.close(self._fd)
            raise ApiError(
                "MODEL_BUSY", f"Another process is writing sha256:{digest[:12]} right now; try again later."
            ) from failure
        self._hash: Hash = hashlib.sha256()
        self._hashed = 0
        self._size = os.fstat(self._fd).st_size

    @property
    def size(self) -> int:
        """Bytes that are there already."""
        return self._size

    def restart(self) -> None:
        """Forgets what was there."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._hash = hashlib.sha256()
        self._size = self._hashed = 0

    def recreate(self) -> None:
        """After a `commit` that refused: an empty file under the same name again."""
        os.close(self._fd)
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.restart()

    def read_head(self, n_bytes: int) -> bytes:
        """The first bytes of what is there."""
        return os.pread(self._fd, n_bytes, 0)

    def resume(self) -> int:
        """Takes over what is there (read once, for the digest); returns how many bytes that is."""
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._hash = hashlib.sha256()
        self._hashed = 0
        while chunk := os.read(self._fd, CHUNK_BYTES):
            self._hash.update(chunk)
            self._hashed += len(chunk)
        self._size = self._hashed
        return self._size

    def write(self, data: bytes) -> None:
        """Appends; DISK_FULL and IO_ERROR leave what was written for the next try."""
        view = memoryview(data)
        while view:
            written = os.write(self._fd, view)
            view = view[written:]
        self._hash.update(data)
        self._hashed += len(data)
        self._size = self._hashed

    def commit(self) -> None:
        """Gives the blob its name; DIGEST_MISMATCH, and nothing stays, where it is not what it should be."""
        found = self._hash.hexdigest()
        if found != self._digest:
            self.discard()
            raise ApiError(
                "DIGEST_MISMATCH",
                f"The data has the digest sha256:{found}, not sha256:{self._digest}; nothing of it was kept.",
            )
        os.fsync(self._fd)
        self._path.replace(self._target)
        sync_folder(self._target.parent)

    def discard(self) -> None:
        """Removes what was written."""
        with contextlib.suppress(OSError):
            self._path.unlink()

    def close(self) -> None:
        """Lets go of the file; what was written stays for the next try."""
        os.close(self._fd)


def sync_folder(folder: Path) -> None:
    """Makes a rename or a removal in the folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as failure:
        if failure.errno != errno.EINVAL:  # some network file systems cannot
            raise
    finally:
        os.close(fd)
