"""Writing a file so that its final name never shows anything but the finished file.

The bytes go to `.NAME.partial.PID` beside the target.  Space is taken before the work starts; after it the file is
synced, checked and renamed, and the folder is synced.  Whatever goes wrong, the partial file is removed; one that was
left by a killed process is removed by the next run for the same target.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from quant.errors import CannotCreateError, DiskFullError, OutputError, OutputExistsError
from runtime.errors import QuantdError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})


def check_target(target: Path, *, force: bool) -> None:
    """Refuse a target that exists (unless forced), is a folder, or has no folder to lie in."""
    folder = target.parent
    try:
        if not folder.is_dir():
            raise CannotCreateError(f"{target}: folder {folder} does not exist")
        if target.is_dir():
            raise CannotCreateError(f"{target} is a folder; name the file to write")
        if os.path.lexists(target) and not force:
            raise OutputExistsError(
                f"{target} exists already; choose another name, or replace it with --force"
            )
        if not os.access(folder, os.W_OK | os.X_OK):
            raise CannotCreateError(f"{target}: no permission to write in {folder}")
    except OSError as failure:  # a name that is too long, a loop of links
        raise CannotCreateError(f"{target}: {failure.strerror}") from None


def check_space(folder: Path, needed_bytes: int) -> None:
    """Refuse a folder whose disk has less than this free."""
    stat = os.statvfs(folder)
    free_bytes = stat.f_bavail * stat.f_frsize
    if free_bytes < needed_bytes:
        raise DiskFullError(
            f"not enough space in {folder}: the output takes {needed_bytes:,} bytes, {free_bytes:,} are free"
        )


class PartialFile:
    """The file while it is written; a context manager that removes it unless `commit` was reached."""

    def __init__(self, target: Path, size_bytes: int, *, force: bool) -> None:
        self._target = target
        self._size_bytes = size_bytes
        self._force = force
        self._fd = -1
        self.path = target.with_name(f".{target.name}.partial.{os.getpid()}")

    def __enter__(self) -> Self:
        check_target(self._target, force=self._force)
        remove_stale_partials(self._target)
        check_space(self._target.parent, self._size_bytes)
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._fd = os.open(self.path, flags, 0o666)
        except OSError as failure:
            raise CannotCreateError(f"{self.path}: {failure.strerror}") from None
        try:
            # Held until the file is closed: tells a later run that this partial file is still being written.
            with contextlib.suppress(OSError):
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with self._failures_named("taking space for"):
                os.posix_fallocate(self._fd, 0, self._size_bytes)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def write(self, data: bytes | NDArray[np.uint8], offset: int) -> None:
        """Write all bytes at this offset."""
        view = data.data if isinstance(data, np.ndarray) else memoryview(data)
        with self._failures_named("writing"):
            while view:
                written = os.pwrite(self._fd, view, offset)
                view, offset = view[written:], offset + written

    def flush(self, offset: int, n_bytes: int, *, drop: bool) -> None:
        """Bring what was written to the disk; `drop` also gives its page cache back."""
        with self._failures_named("syncing"):
            os.fdatasync(self._fd)
        if drop:
            os.posix_fadvise(self._fd, offset, n_bytes, os.POSIX_FADV_DONTNEED)

    def commit(self, check: Callable[[Path], None]) -> None:
        """Sync, check and rename.  `check` raises where the file is not what it should be."""
        with self._failures_named("syncing"):
            os.fsync(self._fd)
        check(self.path)
        with self._failures_named("renaming"):
            self._rename()
            folder = os.open(self._target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _rename(self) -> None:
        if self._force:
            self.path.replace(self._target)
            return
        try:
            os.link(self.path, self._target)  # fails, atomically, where the name has been taken meanwhile
        except FileExistsError:
            raise OutputExistsError(f"{self._target} was created by someone else meanwhile") from None
        except OSError as failure:
            if failure.errno not in _NO_LINKS:
                raise
            if os.path.lexists(self._target):
                raise OutputExistsError(f"{self._target} was created by someone else meanwhile") from None
            self.path.rename(self._target)

    def _remove(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                self.path.unlink()
            os.close(self._fd)
            self._fd = -1

    @contextlib.contextmanager
    def _failures_named(self, doing: str) -> Iterator[None]:
        try:
            yield
        except QuantdError:
            raise
        except OSError as failure:
            message = f"{doing} {self._target} ({self._size_bytes:,} bytes): {failure.strerror}"
            kind = DiskFullError if failure.errno in _FULL else OutputError
            raise kind(message) from failure


def remove_stale_partials(target: Path) -> None:
    """Remove partial files of this target whose process is gone."""
    prefix = f".{target.name}.partial."
    for path in target.parent.iterdir():
        pid = path.name.removeprefix(prefix)
        if not path.name.startswith(prefix) or not pid.isdecimal():
            continue
        if int(pid) != os.getpid() and _is_alive(int(pid)):
            continue
        with contextlib.suppress(OSError):
            if _is_unlocked(path):
                path.unlink()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _is_unlocked(path: Path) -> bool:
    """Say whether no process holds the file's lock; a process in another container has a pid that says nothing."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True
