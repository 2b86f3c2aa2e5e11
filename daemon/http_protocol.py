"""uvicorn's HTTP/1.1 protocol with two manners more: a head must come in time, and a broken one gets our error body."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from daemon.errors import ApiError, openai_body

HEAD_S = (
    10.0  # for the head of a request to come, from its first byte (or from the connection, for the first)
)


class PatientProtocol(H11Protocol):
    """One connection.  Not for ever patient: a head that trickles in is ended with 408."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Called where h11 refuses what came; its exception says which status fits."""
        del msg
        failure = sys.exception()
        if getattr(failure, "error_status_hint", 400) == 431:
            self._refuse(ApiError("HEADERS_TOO_LARGE", "The head of the request is too large."))
        else:
            self._refuse(ApiError("INVALID_ARGUMENT", "This is no valid HTTP request."))

    def _watch_head(self) -> None:
        """Starts the clock while a head is incomplete, and stops it when it is not."""
        first = self.cycle is None
        incomplete = self.conn.their_state is h11.IDLE and (first or bool(self.conn.trailing_data[0]))
        if not incomplete:
            self._forget_head()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self._head_is_late)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        first: Any = self.cycle  # None before the first request, whatever uvicorn's annotation says
        if first is None and not self.conn.trailing_data[0]:
            self.transport.close()  # nothing was ever asked
        else:
            self._refuse(
                ApiError("REQUEST_TIMEOUT", f"The request's head did not come within {HEAD_S:g} seconds.")
            )

    def _refuse(self, error: ApiError) -> None:
        """Answers and closes, whatever h11 thinks of the connection."""
        if not self.transport.is_closing():
            body = json.dumps(openai_body(error)).encode()
            head = (
                f"HTTP/1.1 {error.http_status} Refused\r\n"
                "content-type: application/json\r\n"
                f"content-length: {len(body)}\r\n"
                "connection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
            self.transport.close()
