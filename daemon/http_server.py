"""uvicorn inside our own event loop: it leaves signals to us and does not wake up while nothing happens."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator
from typing import Any

import uvicorn

from daemon.http_protocol import PatientProtocol
from daemon.tls import TlsFiles

MAX_HEADER_BYTES = 16 * 1024
KEEP_ALIVE_S = 120
LAST_ANSWERS_S = 2  # for answers that are being written when the server stops
_TICK_S = 1.0  # uvicorn's own tick is 0.1 s; only the Date header needs one


class HttpServer(uvicorn.Server):
    """Serves one ASGI app on one listening socket until `stop`."""

    def __init__(self, app: Any, listener: socket.socket, tls: TlsFiles | None = None) -> None:
        """Plain HTTP where `tls` is None."""
        super().__init__(
            uvicorn.Config(
                app,
                loop="none",
                http=PatientProtocol,
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=LAST_ANSWERS_S,
            )
        )
        if tls is not None:
            self.config.load()  # makes the rest; a context of its own would come from file names and know less
            self.config.ssl = tls.http_context()
        self._listener = listener
        self._up = asyncio.Event()
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Answers from now on."""
        self._task = asyncio.create_task(self.serve(sockets=[self._listener]))
        up = asyncio.create_task(self._up.wait())
        await asyncio.wait([up, self._task], return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        if self._task.done():
            self._task.result()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; then `start` returns."""
        await super().startup(sockets)
        self._up.set()

    async def stop(self) -> None:
        """Closes idle connections at once, others when their answer is written or LAST_ANSWERS_S have passed."""
        self.should_exit = True
        self._stop.set()
        if self._task is not None:
            await self._task

    async def main_loop(self) -> None:
        """Replaces uvicorn's: one tick a second."""
        counter = 0
        while not await self.on_tick(counter):
            # Each call counts as one second: uvicorn's on_tick works at multiples of ten tenths.
            counter += 10
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _TICK_S)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Signals are the daemon's."""
        yield
