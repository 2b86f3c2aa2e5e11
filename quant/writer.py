"""Writing a file so that its final name never shows anything but the finished file.

The bytes go to `.NAME.partial` beside the target, which one process holds by a lock.  Space is taken before the work
starts; after it the file is synced, checked and renamed, and the folder is synced.  Whatever goes wrong, the partial file
is removed; one that was left by a killed process stays with its journal, and the next run for the same target takes it
over: goes on with it where it is the same job, else begins anew.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from quant.errors import CannotCreateError, DiskFullError, OutputError, OutputExistsError
from quant.journal import Finished, Journal
from runtime.errors import QuantdError

FLUSH_BYTES = 128 << 20  # written bytes that make one flush; as many again may wait while it runs
_LAST_FLUSH_BYTES = (
    16 << 20
)  # flushes become as small towards the end, where nothing is left to do beside them
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
_OPEN_TRIES = 8


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


def partial_path(target: Path) -> Path:
    """Return where the bytes lie until the file is finished."""
    return target.with_name(f".{target.name}.partial")


def journal_path(target: Path) -> Path:
    """Return where the journal of the partial file lies."""
    return target.with_name(f".{target.name}.partial.journal")


class PartialFile:
    """The file while it is written; a context manager that removes it unless `commit` was reached.

    `job` names what is written; `resumable` is then what an earlier, killed run of this job finished, to be believed
    only after its bytes were looked at.
    """

    def __init__(self, target: Path, size_bytes: int, *, force: bool, job: str = "") -> None:
        self._target = target
        self._size_bytes = size_bytes
        self._force = force
        self._fd = -1
        self.path = partial_path(target)
        self.journal = Journal(journal_path(target), job)
        self.resumable: list[Finished] = []

    def __enter__(self) -> Self:
        check_target(self._target, force=self._force)
        self._fd = self._open()
        try:
            stat = os.fstat(self._fd)
            if stat.st_size == self._size_bytes:
                self.resumable = self.journal.read()
            if not self.resumable:
                with self._failures_named("writing"):
                    os.ftruncate(self._fd, 0)
            check_space(self._target.parent, self._size_bytes - os.fstat(self._fd).st_blocks * 512)
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

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Return what an earlier run wrote."""
        with self._failures_named("reading"):
            return os.pread(self._fd, n_bytes, offset)

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write all bytes at this offset."""
        view = memoryview(data)
        with self._failures_named("writing"):
            while view:
                written = os.pwrite(self._fd, view, offset)
                view, offset = view[written:], offset + written

    def finish_tensor(self, finished: Finished) -> None:
        """Note a tensor in the journal."""
        with self._failures_named("writing the journal of"):
            self.journal.add(finished)

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

    def _open(self) -> int:
        """Open and lock the partial file, new or left by a killed run.

        The lock goes with the process, so a file that can be locked is nobody's.  A file of two names is an output
        whose run was killed while it was being named: it must not be written to.
        """
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        for _ in range(_OPEN_TRIES):
            try:
                fd = os.open(self.path, flags, 0o666)
            except OSError as failure:
                raise CannotCreateError(f"{self.path}: {failure.strerror}") from None
            try:
                with contextlib.suppress(OSError):  # a file system without locks
                    _lock(fd, self._target)
                stat = os.fstat(fd)
                if stat.st_nlink == 1 and os.path.samestat(stat, self.path.stat(follow_symlinks=False)):
                    return fd
                if stat.st_nlink > 1:
                    self.path.unlink(missing_ok=True)
            except FileNotFoundError:
                pass  # another run has just finished or failed: once more
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
        raise CannotCreateError(f"{self.path}: others keep removing it")

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
                self.journal.remove()
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


class Flusher:
    """Brings a partial file to the disk while it is written, one flush at a time; a context manager around its thread."""

    def __init__(self, partial: PartialFile, size_bytes: int, *, drop: bool) -> None:
        """`drop`: the page cache of what is on the disk is given back."""
        self._partial = partial
        self._size_bytes = size_bytes
        self._drop = drop
        self._pool = ThreadPoolExecutor(1, "quantize-flush")
        self._under_way: Future[None] | None = None
        self._flushed = 0  # bytes of the file up to which it was synced, or is about to be

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def written(self, end: int) -> None:
        """The file is written up to `end`: flush it once that is enough more, after the flush before has ended."""
        enough = min(FLUSH_BYTES, max((self._size_bytes - end) // 2, _LAST_FLUSH_BYTES))
        if end - self._flushed < enough and end < self._size_bytes:
            return
        self.wait()
        begin, self._flushed = self._flushed, end
        self._under_way = self._pool.submit(self._partial.flush, begin, end - begin, drop=self._drop)

    def wait(self) -> None:
        """Wait for the flush that is under way; raises what it found."""
        if self._under_way is not None:
            self._under_way.result()


def _lock(fd: int, target: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CannotCreateError(f"{target} is being written by another process") from None


def remove_leftovers(target: Path) -> None:
    """Remove the partial file and journal of a target that is finished, unless a process is writing them."""
    with contextlib.suppress(OSError):
        fd = os.open(partial_path(target), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            journal_path(target).unlink(missing_ok=True)
            partial_path(target).unlink(missing_ok=True)
        finally:
            os.close(fd)
