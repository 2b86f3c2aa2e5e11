"""/metrics as an ASGI app: rendered in a thread, because asking the kernel which pages are resident takes a while."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from daemon.metrics import CONTENT_TYPE, Metrics


def metrics_page(metrics: Metrics) -> ASGIApp:
    """The app that answers a scrape of `metrics`."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if Request(scope).method not in ("GET", "HEAD"):
            await Response(status_code=405, headers={"Allow": "GET, HEAD"})(scope, receive, send)
            return
        text = await asyncio.to_thread(metrics.render)
        await Response(text, media_type=CONTENT_TYPE)(scope, receive, send)

    return answer
