"""The bytes of one blob from a server: resumed where an earlier try ended, never more than announced, checked by digest."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx2

from daemon.errors import ApiError
from daemon.log import get_logger
from daemon.store.blobs import BlobStore, Partial
from daemon.store.manifest import Blob

log = get_logger("quantd.download")

CONNECT_S, READ_S = 15.0, 30.0
MAX_TRIES = 5  # without a byte of progress between them
MAX_REDIRECTS = 5
_RETRY_S = (0.2, 1.0, 3.0, 8.0)
_MAX_WAIT_S = 30.0  # of what a server may ask for
HEAD_BYTES = 16 << 20  # the beginning of a model file that usually has all its metadata

Report = Callable[[int, int], None]  # bytes that are there, bytes in all


@dataclass(frozen=True, slots=True)
class Wanted:
    """A blob to be fetched."""

    url: str
    digest: str  # 64 hexadecimal digits
    size_bytes: int
    file: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def blob(self) -> Blob:
        """What the manifest will say of it."""
        return Blob(self.digest, self.size_bytes, self.file)


class PullCancelledError(Exception):
    """The caller does not want it any more; what was fetched stays for the next try."""


class _Again(Exception):  # noqa: N818  not an error yet
    """Something that may be better the next time."""

    def __init__(self, why: str, wait_s: float | None = None) -> None:
        super().__init__(why)
        self.wait_s = wait_s


@contextmanager
def http_client() -> Iterator[httpx2.Client]:
    """A client with deadlines, that follows a few redirects (and takes no key of one host to another)."""
    timeout = httpx2.Timeout(READ_S, connect=CONNECT_S)
    with httpx2.Client(follow_redirects=True, max_redirects=MAX_REDIRECTS, timeout=timeout) as client:
        yield client


class Downloader:
    """Fetches blobs into a store."""

    def __init__(self, blobs: BlobStore, client: httpx2.Client, cancel: threading.Event) -> None:
        self._blobs = blobs
        self._client = client
        self._cancel = cancel

    def fetch(
        self, wanted: Wanted, report: Report, on_head: Callable[[Partial, int], bool] | None = None
    ) -> Blob:
        """Brings a blob into the store, if it is not there already.

        `on_head` is told when the beginning of the file is there, with the number of its bytes; False asks to be told again
        when there is twice as much.  What it raises ends the download.  Raises ApiError MODEL_NOT_FOUND, PERMISSION_DENIED,
        DIGEST_MISMATCH, DISK_FULL or DOWNLOAD_FAILED.
        """
        if self._blobs.size(wanted.digest) == wanted.size_bytes:
            report(wanted.size_bytes, wanted.size_bytes)
            return wanted.blob()
        with self._blobs.partial(wanted.digest) as partial:
            if partial.size > wanted.size_bytes:
                partial.restart()
            resumed = partial.resume()
            head = _Head(partial, wanted.size_bytes, on_head)
            for last in (False, True):
                self._complete(wanted, partial, report, head)
                try:
                    partial.commit()
                except ApiError:
                    # What an earlier try left may be to blame; what came whole from the server is not.
                    if last or not resumed:
                        raise
                    log.warning("download_starts_over", digest=wanted.digest)
                    partial.recreate()
                else:
                    break
        return wanted.blob()

    def _complete(self, wanted: Wanted, partial: Partial, report: Report, head: _Head) -> None:
        """Requests until every byte is there."""
        tries = 0
        while True:
            before = partial.size
            try:
                head.check()
                if partial.size < wanted.size_bytes:
                    self._request(wanted, partial, report, head)
                if partial.size == wanted.size_bytes:
                    head.check()
                    report(partial.size, wanted.size_bytes)
                    return
                raise _Again("the answer ended early")
            except (httpx2.TransportError, _Again) as failure:
                tries = 1 if partial.size > before else tries + 1
                wait_s = failure.wait_s if isinstance(failure, _Again) else None
                if tries >= MAX_TRIES:
                    host = urlsplit(wanted.url).hostname
                    why = str(failure) or type(failure).__name__
                    raise ApiError(
                        "DOWNLOAD_FAILED",
                        f"The download from {host} failed after {MAX_TRIES} tries: {why[:200]}. "
                        f"{partial.size} of {wanted.size_bytes} bytes are kept; the next try goes on from there.",
                    ) from failure
                self._sleep(_RETRY_S[min(tries, len(_RETRY_S)) - 1] if wait_s is None else wait_s)

    def _request(self, wanted: Wanted, partial: Partial, report: Report, head: _Head) -> None:
        headers = {**wanted.headers, "Accept-Encoding": "identity"}
        if partial.size:
            headers["Range"] = f"bytes={partial.size}-"
        with self._client.stream("GET", wanted.url, headers=headers) as response:
            if response.status_code == 416:
                partial.restart()
                raise _Again("the server has less than was downloaded")
            check_answer(response, wanted.url)
            if response.status_code == 206:
                if _range_start(response) != partial.size:
                    partial.restart()
                    raise _Again("the server answered with another range")
            elif partial.size:
                partial.restart()  # it knows no ranges, or the file is another one now
            for chunk in response.iter_raw():
                if self._cancel.is_set():
                    raise PullCancelledError
                if partial.size + len(chunk) > wanted.size_bytes:
                    partial.discard()
                    raise ApiError(
                        "DIGEST_MISMATCH",
                        f"The server sent more than the {wanted.size_bytes} bytes it announced.",
                    )
                partial.write(chunk)
                report(partial.size, wanted.size_bytes)
                head.check()

    def _sleep(self, seconds: float) -> None:
        if self._cancel.wait(min(seconds, _MAX_WAIT_S)):
            raise PullCancelledError


class _Head:
    """Tells once when enough of the beginning is there."""

    def __init__(
        self, partial: Partial, size_bytes: int, on_head: Callable[[Partial, int], bool] | None
    ) -> None:
        self._partial = partial
        self._size_bytes = size_bytes
        self._on_head = on_head
        self._due_bytes = min(HEAD_BYTES, size_bytes)

    def check(self) -> None:
        while self._on_head is not None and self._partial.size >= self._due_bytes:
            whole = self._partial.size == self._size_bytes
            if self._on_head(self._partial, self._size_bytes) or whole:
                self._on_head = None
            self._due_bytes = min(2 * self._due_bytes, self._size_bytes)


def check_answer(response: httpx2.Response, url: str) -> None:
    """Raises for anything but a success: ApiError where it is final, a reason to try again otherwise."""
    host = urlsplit(url).hostname
    if url.startswith("https:") and response.url.scheme != "https":
        raise ApiError("DOWNLOAD_FAILED", f"{host} redirects to an address without TLS.")
    code = response.status_code
    if code in (401, 403):
        raise ApiError(
            "PERMISSION_DENIED",
            f"{host} does not let us download this ({code}); it may be private or gated, or not exist at all.",
        )
    if code in (404, 410):
        raise ApiError("MODEL_NOT_FOUND", f"{host} has no such model or file.", field="name")
    if code == 429 or code >= 500:
        raise _Again(f"{host} answered {code}", _retry_after_s(response))
    if code not in (200, 206):
        raise ApiError("DOWNLOAD_FAILED", f"{host} answered {code}.")


def get_small(client: httpx2.Client, url: str, headers: Mapping[str, str], max_bytes: int) -> httpx2.Response:
    """A small document, read within a bound; the few tries and errors of a download."""
    for wait_s in (*_RETRY_S[:2], None):
        try:
            with client.stream("GET", url, headers=dict(headers)) as response:
                if response.status_code == 401:
                    response.read()
                    return response
                check_answer(response, url)
                data = b""
                for chunk in response.iter_bytes():
                    data += chunk
                    if len(data) > max_bytes:
                        raise ApiError(
                            "DOWNLOAD_FAILED",
                            f"{urlsplit(url).hostname} answered more than {max_bytes} bytes.",
                        )
                return httpx2.Response(response.status_code, headers=response.headers, content=data)
        except (httpx2.TransportError, _Again) as failure:
            if wait_s is None:
                host, why = urlsplit(url).hostname, str(failure) or type(failure).__name__
                raise ApiError("DOWNLOAD_FAILED", f"{host} cannot be reached: {why[:200]}.") from failure
            time.sleep(wait_s)
    raise AssertionError("unreachable")


def read_head(client: httpx2.Client, wanted: Wanted, n_bytes: int) -> bytes:
    """The first bytes of a blob, whether or not the server knows ranges; fewer where it ends early."""
    headers = {**wanted.headers, "Accept-Encoding": "identity", "Range": f"bytes=0-{n_bytes - 1}"}
    try:
        with client.stream("GET", wanted.url, headers=headers) as response:
            check_answer(response, wanted.url)
            data = bytearray()
            for chunk in response.iter_raw():
                data += chunk
                if len(data) >= n_bytes:
                    break
            return bytes(data[:n_bytes])
    except (httpx2.TransportError, _Again) as failure:
        host, why = urlsplit(wanted.url).hostname, str(failure) or type(failure).__name__
        raise ApiError("DOWNLOAD_FAILED", f"{host} cannot be reached: {why[:200]}.") from failure


def _range_start(response: httpx2.Response) -> int | None:
    """The first byte of a 206 answer."""
    unit, _, rest = response.headers.get("content-range", "").partition(" ")
    start = rest.partition("-")[0]
    return int(start) if unit == "bytes" and start.isdecimal() else None


def _retry_after_s(response: httpx2.Response) -> float | None:
    text: Any = response.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else None
