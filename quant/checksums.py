"""Hashes of the input files: computed beside the work, and compared where the source says what they must be.

Downloads from the Hub say it: the entry of `.cache/huggingface/download/NAME.metadata`, or the name of the blob that a
cached file links to.  Large files have a SHA-256 there, small ones the hash that git gives a blob.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from quant.errors import QuantizeCancelledError
from quant.input_files import Bytes
from runtime.errors import ModelFormatError

_BLOCK_BYTES = 256 << 10  # stays in the second-level cache between the read and the hash
_OFFERED_BYTES = 80 << 20  # of offers that wait; once as much waits, what they wait for is read
_OFFER_WAIT_S = 2.0  # longer than the hashing takes for all of them, on a machine that is not stuck
_GAP_BYTES = 64 << 10  # between tensors: read without waiting whether somebody else does
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_SHA1 = re.compile(r"[0-9a-f]{40}")


def published_hash(path: Path) -> str | None:
    """Return the hash under which the Hub published a file, 64 or 40 hexadecimal digits; None: nobody says."""
    names = []
    if path.is_symlink():
        names.append(path.readlink().name)
    metadata = path.parent / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
    try:
        lines = metadata.read_text(encoding="ascii", errors="replace").splitlines()
        names += [lines[1].strip().strip('"')] if len(lines) > 1 else []
    except OSError:
        pass  # not a download of the Hub
    return next((name for name in names if _SHA256.fullmatch(name) or _GIT_SHA1.fullmatch(name)), None)


class InputHashes:
    """Hashes files in a thread of its own; a context manager that stops it.

    What was read of them for the work is offered and hashed where it lies, still in the cache; only what nobody offers
    in its turn is read: the parts between tensors, and files whose tensors are used in another order.
    """

    def __init__(self, paths: Sequence[Path], n_weights: int, *, drop_cache: bool) -> None:
        """The first `n_weights` of the files may be offered."""
        self._n_weights = n_weights
        self._files = [_HashedFile(path, drop_cache=drop_cache) for path in paths]
        self._changed = threading.Condition()  # guards what follows
        self._offers: list[_Offer] = []
        self._reached = [0] * len(paths)  # bytes of each file that are hashed, with what is being hashed
        self._is_complete = False  # nothing more will be offered
        self._is_stopped = False
        self._pool = ThreadPoolExecutor(1, "quantize-hash")
        self._found: Future[list[str]] | None = None

    def __enter__(self) -> Self:
        self._found = self._pool.submit(self._run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        self._pool.shutdown()

    def offer(self, file: int, offset: int, data: Bytes) -> None:
        """Offer what was read of a file (its index) at a byte.  The data must not change afterwards.

        Waits a moment where the hashing is just behind: the core is then better used for that.
        """
        if file >= len(self._files):  # nothing is hashed
            return
        one = _Offer(file, offset, data)
        with self._changed:
            self._changed.wait_for(lambda: self._has_room(one) or not self._is_in_turn(), _OFFER_WAIT_S)
            if not self._has_room(one):
                return  # the hashing waits for another place, and will read this itself
            self._offers.append(one)
            self._changed.notify_all()

    def check(self) -> None:
        """Raise what the hashing has found so far: ModelFormatError CHECKSUM_MISMATCH, OSError."""
        if self._found is not None and self._found.done():
            self._found.result()

    def result(self) -> list[str]:
        """Read what is left, and return the SHA-256 of each file; raises as `check` does."""
        with self._changed:
            self._is_complete = True
            self._changed.notify_all()
        return self._found.result() if self._found is not None else []

    def _run(self) -> list[str]:
        try:
            for file in self._files[self._n_weights :]:
                file.read_to(None, self._check_stopped)
                file.result()
            while (offer := self._next()) is not None:
                file = self._files[offer.file]
                position = file.read_to(offer.offset, self._check_stopped)
                if offer.offset <= position < offer.end:
                    file.update(offer.data[position - offer.offset :])
            for file in self._files:
                file.read_to(None, self._check_stopped)
            return [file.result() for file in self._files]
        finally:
            for file in self._files:
                file.close()
            with self._changed:
                self._offers = []
                self._changed.notify_all()

    def _next(self) -> _Offer | None:
        """Return the offer to hash next; None: there will be none."""
        with self._changed:
            while True:
                self._check_stopped()
                found = next((one for one in self._offers if self._is_next(one)), None)
                if found is None and self._offers and (self._is_complete or self._is_full()):
                    found = min(self._offers, key=lambda one: (one.file, one.offset))
                if found is not None:
                    self._offers = [one for one in self._offers if one is not found]
                    self._reached[found.file] = max(self._reached[found.file], found.end)
                    self._changed.notify_all()
                    return found
                if self._is_complete:
                    return None
                self._changed.wait()

    def _is_full(self) -> bool:
        return sum(len(one.data) for one in self._offers) >= _OFFERED_BYTES

    def _has_room(self, offer: _Offer) -> bool:
        """What is next is always taken: it makes room."""
        return not self._is_full() or self._is_next(offer)

    def _is_in_turn(self) -> bool:
        return any(map(self._is_next, self._offers))

    def _is_next(self, offer: _Offer) -> bool:
        return offer.offset <= self._reached[offer.file] + _GAP_BYTES

    def _check_stopped(self) -> None:
        if self._is_stopped:
            raise QuantizeCancelledError("the quantization was cancelled; no file was left")


@dataclass(frozen=True, slots=True)
class _Offer:
    """What was read of a file."""

    file: int
    offset: int
    data: Bytes

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


class _HashedFile:
    """One file, hashed from front to back."""

    def __init__(self, path: Path, *, drop_cache: bool) -> None:
        self._path = path
        self._drop_cache = drop_cache
        self._published = published_hash(path)
        self._sha256 = hashlib.sha256()
        self._fd = -1
        self._size = -1
        self._git: hashlib._Hash | None = None
        self.position = 0  # bytes that were hashed

    def read_to(self, end: int | None, check: Callable[[], None]) -> int:
        """Read and hash up to a byte, None: to the end; `check` is called now and then.  Returns the position."""
        if self._size < 0:
            self._open()
        end = self._size if end is None else min(end, self._size)
        buffer = memoryview(bytearray(min(_BLOCK_BYTES, max(end - self.position, 0))))
        while self.position < end:
            check()
            n_bytes = os.preadv(self._fd, [buffer[: end - self.position]], self.position)
            if n_bytes == 0:
                break  # it has become shorter: whoever reads the weights says so
            if self._drop_cache:
                os.posix_fadvise(self._fd, self.position, n_bytes, os.POSIX_FADV_DONTNEED)
            self.update(buffer[:n_bytes])
        return self.position

    def update(self, data: memoryview) -> None:
        """Hash what lies at the position."""
        self._sha256.update(data)
        if self._git is not None:
            self._git.update(data)
        self.position += len(data)

    def result(self) -> str:
        """Return the SHA-256; ModelFormatError CHECKSUM_MISMATCH where the file is not what was published."""
        sha256 = self._sha256.hexdigest()
        found = sha256 if self._git is None else self._git.hexdigest()
        if self._published is not None and found != self._published:
            raise ModelFormatError(
                "CHECKSUM_MISMATCH",
                self._path.name,
                0,
                f"{self._path}: its hash is {found}, published was {self._published}; the download is damaged, fetch it "
                "again",
            )
        return sha256

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        self._size = os.fstat(self._fd).st_size
        if self._published is not None and len(self._published) == 40:
            self._git = hashlib.sha1(b"blob %d\0" % self._size, usedforsecurity=False)
