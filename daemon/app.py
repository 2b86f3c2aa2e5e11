"""The life of the daemon: sockets first, then the model, then ready; at the end drain, then stop.

    bind HTTP and gRPC     a taken port fails here, before seconds go into a model
    start both servers     /livez and health answer; requests get UNAVAILABLE while the model loads
    load, warm up          in a thread; READY only when a step has run
    wait                   for a signal, or for the engine of the last model to fail
    drain, stop            no new requests; running ones get drain_seconds; a second signal ends them at once

An idle daemon sleeps: it has no timer but uvicorn's clock and, under systemd, the watchdog.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import os
import signal
import sys
import time
from collections.abc import Coroutine
from typing import Any

import click

from daemon.addresses import Address, listen
from daemon.config import Settings
from daemon.errors import ApiError
from daemon.gateway import create_app
from daemon.gateway.guard import LOOPBACK_HOSTS
from daemon.http_server import HttpServer
from daemon.log import get_logger
from daemon.metrics_page import metrics_page
from daemon.rpc.server import RpcServer
from daemon.services import Services
from daemon.services.asked import find_model
from daemon.services.build import build_services
from daemon.services.folder import ModelEntry
from daemon.services.host import State
from daemon.services.local import LocalBackend
from daemon.services.served import LoadModel
from daemon.systemd import Notifier

log = get_logger("quantd.app")

EXIT_ENGINE_FAILED = 70
LAST_ANSWERS_S = 1.0  # for streams to send their last events after the engine stopped
ENGINE_CHECK_S = 1.0  # while requests run
STATUS_S = 10.0
LOOP_LAG_S = 1.0  # an event loop later than this is not alive enough to feed the watchdog
LOAD_EXTENSION_S = 60.0  # start-up time asked of systemd, again and again while a model loads


def serve(settings: Settings, load_model: LoadModel | None = None) -> int:
    """Runs a daemon until it is told to stop; returns the exit code.  Raises ApiError if it cannot start.

    `load_model`: in the place of the runtime's, such as one that has begun already (daemon/head_start.py).
    """
    faulthandler.enable()  # the watchdog's SIGABRT then shows where every thread was
    entry = find_model(settings)
    try:
        return asyncio.run(Daemon(settings, build_services(settings, load_model)).run(entry))
    finally:
        gc.unfreeze()  # the interpreter takes down at exit only what its collector may look at


class Daemon:
    """One daemon: services, two servers, one event loop."""

    def __init__(self, settings: Settings, services: Services, notifier: Notifier | None = None) -> None:
        self._settings = settings
        self._services = services
        self._host = services.host
        self._notifier = notifier or Notifier.from_environment()
        self._stop = asyncio.Event()
        self._num_signals = 0
        self._failure: BaseException | None = None
        self._serving = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, entry: ModelEntry | None) -> int:
        """Start, serve, drain; see the module."""
        tls = self._settings.tls
        if tls is not None:
            tls.check()
        listener = listen(self._settings.http, "HTTP")
        http_address = self._settings.http.with_port(listener.getsockname()[1])
        limit = self._settings.max_models * (self._settings.sessions + self._settings.max_waiting)
        rpc = RpcServer(self._services, max_concurrent=limit)
        grpc_address = rpc.bind(self._settings.grpc, tls)
        gateway = create_app(
            LocalBackend(self._services),
            metrics_app=metrics_page(self._host.metrics),
            allowed_hosts=LOOPBACK_HOSTS if self._settings.http.is_loopback else None,
            allowed_origins=self._settings.origins,
            kv_budget_bytes=self._settings.kv_budget,
        )
        http = HttpServer(gateway, listener, tls)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)

        await rpc.start()
        await http.start()
        self._host.on_change.append(lambda _: self._spawn(self._tell_health(rpc)))
        loading = asyncio.create_task(self._load(entry))
        self._spawn(self._clean_store())
        self._spawn(self._announce(loading, http_address, grpc_address))
        self._spawn(self._watch_engine(rpc))
        if self._notifier.enabled:
            self._spawn(self._report())
        await self._stop.wait()
        await self._shut_down(rpc, http)
        return await self._outcome(loading)

    # Start.

    async def _load(self, entry: ModelEntry | None) -> None:
        if entry is not None:
            await self._host.load(entry)
        else:
            self._host.open()

    async def _clean_store(self) -> None:
        """Removes what crashes and abandoned downloads left in the store, long after the fact."""
        try:
            num_files = await asyncio.to_thread(self._services.library.collect_stale)
        except (ApiError, OSError) as failure:
            log.warning("store_not_cleaned", error=str(failure))
            return
        if num_files:
            log.info("store_cleaned", files=num_files)

    async def _announce(self, loading: asyncio.Task[None], http: Address, grpc: Address) -> None:
        """Tells people and systemd when the model serves; ends the daemon if it cannot."""
        while not loading.done():
            self._notifier.extend_start(LOAD_EXTENSION_S)
            await asyncio.wait([loading], timeout=LOAD_EXTENSION_S / 2)
        failure = loading.exception()
        if self._num_signals:
            return  # asked to stop meanwhile: whatever became of the load, nobody waits for it
        if failure is not None:
            self._failure = failure
            self._stop.set()
            return
        # What is there now stays: later collections need not look at it, which would hold up a step for tens of ms.
        gc.freeze()
        gc.enable()
        self._notifier.ready(self._status())
        served = self._host.served
        name = served.name if served else "the models of its folder, each loaded when it is first asked for"
        click.echo(f"quantd serves {name}")
        scheme = "http" if self._settings.tls is None else "https"
        click.echo(f"  OpenAI API  {scheme}://{http}/v1")
        click.echo(f"  API page    {scheme}://{http}/docs")
        click.echo(f"  metrics     {scheme}://{http}/metrics")
        click.echo(f"  gRPC        {grpc}")
        sys.stdout.flush()

    # Watching.

    async def _watch_engine(self, rpc: RpcServer) -> None:
        """Ends the daemon when the engine failed; asleep while no request is under way."""
        while True:
            await self._host.busy.wait()
            while self._host.num_requests:
                await asyncio.sleep(ENGINE_CHECK_S)
                self._require_healthy()
                await self._tell_health(rpc)
            self._host.busy.clear()
            self._require_healthy()
            await self._tell_health(rpc)

    async def _tell_health(self, rpc: RpcServer) -> None:
        """gRPC health says what /readyz says."""
        if self._host.ready() != self._serving:
            self._serving = not self._serving
            await rpc.set_serving(self._serving)

    def _require_healthy(self) -> None:
        """A model whose engine failed leaves memory; where nothing else is served, the daemon ends, to be started anew."""
        failed = self._host.drop_failed() if self._host.state is State.READY else None
        if failed is not None:
            self._host.fail()
            self._failure = ApiError("INTERNAL", "the engine failed; the log has the cause")
            self._stop.set()

    async def _report(self) -> None:
        """Watchdog pings and status lines for systemd: fed by this loop, and only while loop and engine live."""
        interval_s = min(self._notifier.watchdog_interval_s or STATUS_S, STATUS_S)
        while True:
            due_s = time.monotonic() + interval_s
            await asyncio.sleep(interval_s)
            on_time = time.monotonic() - due_s < LOOP_LAG_S
            self._require_healthy()
            if self._notifier.watchdog_interval_s is not None and on_time and self._host.healthy():
                self._notifier.watchdog()
            if self._host.state is not State.DRAINING:
                self._notifier.status(self._status())

    def _status(self) -> str:
        if self._host.state is not State.READY:
            return str(self._host.state.value)
        served = [slot.served for slot in self._host.slots if slot.served is not None]
        if not served:
            return "ready, no model in memory"
        stats = [one.engine.stats() for one in served]
        names = ", ".join(one.name for one in served)
        running, waiting = (sum(int(getattr(one, key)) for one in stats) for key in ("running", "waiting"))
        tokens_per_s = sum(float(one.generation_tokens_per_s) for one in stats)
        sessions = self._settings.sessions * len(served)
        return (
            f"serving {names} | {running}/{sessions} sessions, {waiting} waiting, {tokens_per_s:.0f} tokens/s"
        )

    # End.

    def _on_signal(self) -> None:
        self._num_signals += 1
        self._stop.set()
        if self._num_signals == 2:
            log.warning("stopping_at_once")
            self._spawn(self._host.stop(0.0))

    async def _shut_down(self, rpc: RpcServer, http: HttpServer) -> None:
        self._notifier.stopping()
        if self._num_signals:
            log.info("draining", requests=self._host.num_requests)
        self._host.drain()
        await self._host.stop(self._settings.drain_seconds if self._num_signals < 2 else 0.0)
        await asyncio.gather(rpc.stop(LAST_ANSWERS_S), http.stop())
        for task in self._tasks:
            task.cancel()

    async def _outcome(self, loading: asyncio.Task[None]) -> int:
        if self._host.loading:
            # Mapping a model cannot be interrupted, and its thread would keep the process: everything else is closed.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        loading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._host.close_model()
        if isinstance(self._failure, ApiError) and self._failure.reason == "INTERNAL":
            return EXIT_ENGINE_FAILED
        if self._failure is not None:
            raise self._failure
        log.info("stopped")
        return 0

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs something beside; kept until it ends, because the loop itself keeps only weak references."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A watcher that breaks must not leave the daemon unwatched."""
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("internal_error", exc_info=task.exception())
            self._failure = self._failure or ApiError("INTERNAL", "internal error")
            self._stop.set()
