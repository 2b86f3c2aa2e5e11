"""Hashes of the input files: computed beside the work, and compared where the source says what they must be.

Downloads from the Hub say it: the entry of `.cache/huggingface/download/NAME.metadata`, or the name of the blob that a
cached file links to.  Large files have a SHA-256 there, small ones the hash that git gives a blob.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from quant.errors import QuantizeCancelledError
from runtime.errors import ModelFormatError

_BLOCK_BYTES = 256 << 10  # stays in the second-level cache between the read and the hash
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
    """Hashes files in a thread of its own; a context manager that stops it."""

    def __init__(self, paths: Sequence[Path], *, drop_cache: bool) -> None:
        self._paths = tuple(paths)
        self._drop_cache = drop_cache
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1, "quantize-hash")
        self._found: list[Future[str]] = []

    def __enter__(self) -> Self:
        self._found = [self._pool.submit(self._hash, path) for path in self._paths]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def check(self) -> None:
        """Raise what the hashes that are ready have found: ModelFormatError CHECKSUM_MISMATCH, OSError."""
        for future in self._found:
            if future.done():
                future.result()

    def result(self) -> list[str]:
        """Wait for all and return their SHA-256; raises as `check` does."""
        return [future.result() for future in self._found]

    def _hash(self, path: Path) -> str:
        expected = published_hash(path)
        sha256 = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False) if expected else None
            position = 0
            buffer = memoryview(bytearray(_BLOCK_BYTES))
            while n_bytes := file.readinto(buffer):
                block = buffer[:n_bytes]
                if self._stop.is_set():
                    raise QuantizeCancelledError("the quantization was cancelled; no file was left")
                sha256.update(block)
                if git is not None and len(expected or "") == 40:
                    git.update(block)
                position += len(block)
                if self._drop_cache:
                    os.posix_fadvise(file.fileno(), position - len(block), len(block), os.POSIX_FADV_DONTNEED)
        found = git.hexdigest() if git is not None and len(expected or "") == 40 else sha256.hexdigest()
        if expected is not None and found != expected:
            raise ModelFormatError(
                "CHECKSUM_MISMATCH",
                path.name,
                0,
                f"{path}: its hash is {found}, published was {expected}; the download is damaged, fetch it again",
            )
        return sha256.hexdigest()
