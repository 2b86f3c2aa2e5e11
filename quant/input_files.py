"""The files that a quantization reads, once each from front to back.

By read calls and not through the mapping: reads overlap with the encoding, a failing disk is an exception, and a file
that is truncated meanwhile is noticed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

from runtime._native import new_buffer
from runtime.errors import ModelChangedError
from runtime.machine_memory import available_memory_bytes

# Flat and contiguous.  No array: a job that only hands bytes on does not wait for NumPy to be imported.
Bytes: TypeAlias = memoryview


class InputFiles:
    """Open files of known sizes; a context manager.  `read` may be called from several threads."""

    def __init__(self, paths: Sequence[Path], sizes: Sequence[int]) -> None:
        self._paths = tuple(paths)
        self._sizes = tuple(sizes)
        self._fds: list[int] = []
        self._states: list[tuple[int, ...]] = []
        # A source that fills memory would push out the weights of the model being served.
        self.drops_cache = sum(sizes) > available_memory_bytes() // 2
        # Told of every read: (index of the file, offset, data).
        self.on_read: Callable[[int, int, Bytes], None] | None = None

    def __enter__(self) -> Self:
        try:
            for path, size in zip(self._paths, self._sizes, strict=True):
                self._fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                os.posix_fadvise(self._fds[-1], 0, 0, os.POSIX_FADV_SEQUENTIAL)
                if os.fstat(self._fds[-1]).st_size != size:
                    raise _changed(path)
                self._states.append(_state(self._fds[-1]))
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def read(self, file: int, offset: int, n_bytes: int) -> Bytes:
        """Return (n_bytes,) bytes of a file, not to be written to; ModelChangedError where it ends before."""
        data = new_buffer(n_bytes)
        view, position = data, offset
        while view:
            got = os.preadv(self._fds[file], [view], position)
            if got == 0:
                raise _changed(self._paths[file])
            view, position = view[got:], position + got
        if self.drops_cache:
            os.posix_fadvise(self._fds[file], offset, n_bytes, os.POSIX_FADV_DONTNEED)
        data = data.toreadonly()
        if self.on_read is not None:
            self.on_read(file, offset, data)
        return data

    def check_unchanged(self) -> None:
        """Raise ModelChangedError if a file was written to since it was opened."""
        for path, fd, state in zip(self._paths, self._fds, self._states, strict=True):
            if _state(fd) != state:
                raise _changed(path)

    def _close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


def _state(fd: int) -> tuple[int, ...]:
    stat = os.fstat(fd)
    return stat.st_size, stat.st_mtime_ns


def _changed(path: Path) -> ModelChangedError:
    return ModelChangedError(
        f"{path} was changed while it was being quantized; start again once it is complete"
    )
