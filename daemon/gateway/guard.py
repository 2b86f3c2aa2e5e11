"""What every HTTP request passes first: bounds on its head, who may ask, an id, and an answer whatever happens."""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from daemon.access.credential import credential_of
from daemon.errors import ApiError
from daemon.gateway.events import ClientGoneError
from daemon.gateway.replies import error_response, log

LOOPBACK_HOSTS = frozenset(("localhost", "127.0.0.1", "::1"))
MAX_URI_BYTES = 8 << 10
MAX_HEADERS = 100
MAX_HEADER_BYTES = 16 << 10

_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "*, Authorization",
    "Access-Control-Max-Age": "600",
}
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Guard:
    """The outermost ASGI application."""

    def __init__(
        self, app: ASGIApp, *, allowed_hosts: Collection[str] | None, allowed_origins: Collection[str] = ()
    ) -> None:
        """Refuse hosts and origins other than `allowed_hosts`; None takes every host.

        Pages of this machine, and those of `allowed_origins` (with * for any characters), may read the answers.
        """
        self._app = app
        self._allowed_origins = [
            re.compile(".*".join(re.escape(part) for part in one.split("*"))) for one in allowed_origins
        ]
        self._allowed_hosts = None if allowed_hosts is None else frozenset(h.lower() for h in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["credential"] = _credential(scope)
        origin = self._page(scope)
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                own = [(b"x-request-id", request_id.encode()), *(_cors(origin) if origin else ())]
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        try:
            self._check(scope)
            if origin and scope["method"] == "OPTIONS":
                await Response(status_code=204, headers=_PREFLIGHT)(scope, receive, send_with_id)
                return
            await self._app(scope, receive, send_with_id)
        except ClientGoneError:
            log.info("client_gone", request_id=request_id)
        except Exception as failure:  # noqa: BLE001 - the outermost border
            if started:
                # The framework answered and raised again, or a stream broke: all that is left is to say so.
                if not isinstance(failure, ApiError):
                    log.error("request_failed", request_id=request_id, exc_info=failure)
                return
            await error_response(failure, request_id)(scope, receive, send_with_id)

    def _check(self, scope: Scope) -> None:
        uri_bytes = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
        if uri_bytes > MAX_URI_BYTES:
            raise ApiError("URI_TOO_LONG", f"The URI is longer than {MAX_URI_BYTES} bytes.")
        headers = scope["headers"]
        header_bytes = sum(len(name) + len(value) for name, value in headers)
        if len(headers) > MAX_HEADERS or header_bytes > MAX_HEADER_BYTES:
            raise ApiError(
                "HEADERS_TOO_LARGE", f"At most {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes in all."
            )
        if self._allowed_hosts is None:
            return
        # A page of some other site must not talk to a server on this machine, nor reach it under a name of its own.
        for name, value in headers:
            if name == b"host" and not self._allows(_hostname(b"//" + value)):
                raise ApiError("PERMISSION_DENIED", "This host name is not served.")
            if name == b"origin" and not self._allows_page(value):
                raise ApiError("PERMISSION_DENIED", "Requests from this origin are not taken.")

    def _allows_page(self, origin: bytes) -> bool:
        text = origin.decode("latin-1")
        return self._allows(_hostname(origin)) or any(one.fullmatch(text) for one in self._allowed_origins)

    def _page(self, scope: Scope) -> bytes | None:
        """The origin of the page that asks, where it may read the answer."""
        origin: bytes | None = next((value for name, value in scope["headers"] if name == b"origin"), None)
        return origin if origin is not None and self._allows_page(origin) else None

    def _allows(self, host: str | None) -> bool:
        """Loopback addresses are always ours: a name can be made to point here, an address cannot."""
        return host is not None and (host in (self._allowed_hosts or ()) or _is_loopback(host))


def _cors(origin: bytes) -> list[tuple[bytes, bytes]]:
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", b"X-Request-Id, Retry-After"),
        (b"vary", b"Origin"),
    ]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _hostname(url: bytes) -> str | None:
    try:
        return urlsplit(url.decode("ascii")).hostname
    except ValueError:
        return None


def _credential(scope: Scope) -> str | None:
    """The API key of a request; whether it is one, the backend says."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    return credential_of(headers)


def _request_id(scope: Scope) -> str:
    """A unique id; one that the client sent stays readable in front, but two requests never share an id."""
    unique = secrets.token_hex(8)
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return f"{value.decode('ascii')}-{unique}"
    return unique
