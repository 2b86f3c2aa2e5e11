"""A pull in a thread, its steps as events of the loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator

from daemon.errors import ApiError
from daemon.store.download import PullCancelledError
from daemon.store.models import ModelStore
from daemon.store.names import ModelName
from daemon.store.places import Places
from daemon.store.pull import Step, pull
from quantd.v1 import model_service_pb2 as rpc
from runtime.memory import MemoryPlan, RuntimeSettings

REPORT_S = 0.1
MAX_PENDING = 64
LET_GO_S = 2.0


async def pull_events(
    store: ModelStore,
    name: str,
    as_name: ModelName | None,
    *,
    places: Places,
    settings: RuntimeSettings | None,
    leaving: tuple[MemoryPlan, ...] = (),
) -> AsyncGenerator[rpc.PullProgress | ModelName, None]:
    """Progress at most ten times a second and at each change, then the name.  Closing the iterator ends the download."""
    parsed = ModelName.parse(name)
    loop = asyncio.get_running_loop()
    steps: deque[Step] = deque(maxlen=MAX_PENDING)  # a slow reader sees the newest
    fresh = asyncio.Event()
    cancel = threading.Event()
    shown: tuple[str, str] = ("", "")
    shown_s = 0.0

    def add(step: Step) -> None:
        steps.append(step)
        fresh.set()

    def report(step: Step) -> None:
        nonlocal shown, shown_s
        key, now_s = (step.status, step.digest), time.monotonic()
        if key == shown and now_s - shown_s < REPORT_S and step.completed_bytes != step.total_bytes:
            return
        shown, shown_s = key, now_s
        with contextlib.suppress(RuntimeError):  # the loop may be gone when a cancelled pull notices
            loop.call_soon_threadsafe(add, step)

    work = asyncio.ensure_future(
        asyncio.to_thread(
            pull,
            store,
            parsed,
            places=places,
            report=report,
            cancel=cancel,
            as_name=as_name,
            settings=settings,
            leaving=leaving,
        )
    )
    work.add_done_callback(lambda _: fresh.set())
    try:
        while True:
            await fresh.wait()
            fresh.clear()
            while steps:
                yield _message(steps.popleft())
            if work.done() and not steps:
                try:
                    yield work.result()
                except PullCancelledError:
                    raise ApiError("CANCELLED", "The download was cancelled.") from None
                return
    finally:
        cancel.set()
        if not work.done():
            with contextlib.suppress(Exception):
                await asyncio.wait_for(asyncio.shield(work), LET_GO_S)
        if work.done() and not work.cancelled():
            work.exception()


def _message(step: Step) -> rpc.PullProgress:
    return rpc.PullProgress(
        status=step.status,
        digest=f"sha256:{step.digest}" if step.digest else "",
        completed_bytes=step.completed_bytes,
        total_bytes=step.total_bytes,
    )
