"""Reading a request's body: bounded, JSON and nothing else, read strictly."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import Any, NoReturn

from starlette.requests import Request

from daemon.errors import ApiError

MAX_BODY_BYTES = 4 << 20  # as much as a gRPC message may have
BODY_TIMEOUT_S = 30.0
MAX_OBJECTS = 65_536

_LARGE_BYTES = 64 << 10  # reading more than this takes longer than other requests should wait

# A surrogate escape: only then can a string of the body be no Unicode text.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_CONTENT_TYPE = re.compile(r"application/(?:[\w.-]+\+)?json", re.IGNORECASE)


async def read_json(request: Request, *, any_media_type: bool = False) -> dict[str, Any]:
    """The JSON object of a request's body.

    `any_media_type`: whatever Content-Type says, as long as no web page sends it (a page's requests name their origin, and
    could be made without asking first where the type is not JSON).

    Raises ApiError: UNSUPPORTED_MEDIA_TYPE, REQUEST_TOO_LARGE before more is read than MAX_BODY_BYTES, REQUEST_TIMEOUT,
    INVALID_ARGUMENT for anything that is no plain JSON object.  What the body said is never repeated.
    """
    _check_headers(request, any_media_type=any_media_type and "origin" not in request.headers)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            body = await _read(request)
    except TimeoutError:
        raise ApiError(
            "REQUEST_TIMEOUT", f"The body did not come within {BODY_TIMEOUT_S:g} seconds."
        ) from None
    if len(body) < _LARGE_BYTES:
        return parse_object(body)
    return await asyncio.to_thread(parse_object, body)


def _check_headers(request: Request, *, any_media_type: bool) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip()
    if not any_media_type and not _CONTENT_TYPE.fullmatch(media_type):
        raise ApiError(
            "UNSUPPORTED_MEDIA_TYPE", "The body must be JSON: send Content-Type: application/json."
        )
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise ApiError("UNSUPPORTED_MEDIA_TYPE", "Compressed bodies are not taken: send no Content-Encoding.")
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise ApiError("INVALID_ARGUMENT", "Content-Length is no number.")
    if len(length) > 18 or int(length) > MAX_BODY_BYTES:
        raise _too_large()


async def _read(request: Request) -> bytes:
    chunks = bytearray()
    async for chunk in request.stream():
        if len(chunks) + len(chunk) > MAX_BODY_BYTES:
            raise _too_large()
        chunks += chunk
    return bytes(chunks)


def _too_large() -> ApiError:
    return ApiError("REQUEST_TOO_LARGE", f"The body is larger than {MAX_BODY_BYTES} bytes.")


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object from bytes: UTF-8, no repeated keys, finite numbers, Unicode text, not too many parts."""
    if not body.strip():
        raise _bad("The body is empty; a JSON object is needed.")
    try:
        text = body.decode("utf-8")
        value = json.loads(
            text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_Objects()
        )
    except UnicodeDecodeError as error:
        raise _bad(f"The body is no UTF-8 (byte {error.start}).") from None
    except json.JSONDecodeError as error:
        raise _bad(
            f"The body is no JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from None
    except RecursionError:
        raise _bad("The body is nested too deeply.") from None
    except ValueError:  # integers with thousands of digits
        raise _bad("The body holds a number that is too long.") from None
    if not isinstance(value, dict):
        raise _bad("The body must be a JSON object.")
    if _SURROGATE.search(body):
        _check_text(value)
    return value


def _bad(message: str) -> ApiError:
    return ApiError("INVALID_ARGUMENT", message)


def _no_constant(name: str) -> NoReturn:
    raise _bad(f"The body holds {name}, which is no JSON number.")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _bad("The body holds a number that is too large.")
    return value


class _Objects:
    """Makes the objects of one body: no key twice, and not more than any request has."""

    def __init__(self) -> None:
        self._left = MAX_OBJECTS

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        self._left -= 1
        if self._left < 0:
            raise _bad(f"The body has more than {MAX_OBJECTS} objects.")
        value = dict(pairs)
        if len(value) != len(pairs):
            raise _bad("An object of the body has a key twice.")
        return value


def _check_text(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        raise _bad("A string of the body holds half a surrogate pair.") from None
