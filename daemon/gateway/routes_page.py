"""The API page, and OpenAPI's document that it shows."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from daemon.gateway.openapi import ApiDocument
from daemon.gateway.routing import Declared, Routes

_PAGE = Path(__file__).with_name("docs.html")


def make_routes(described: Sequence[Declared], *, version: str) -> Routes:
    """Routes of a page that describes others."""
    routes = Routes()
    document = ApiDocument(described, version)

    @routes.get("/docs", in_schema=False)
    async def docs(_: Request) -> Response:
        return HTMLResponse(_PAGE.read_text(encoding="utf-8"))

    @routes.get("/openapi.json", in_schema=False)
    async def openapi(_: Request) -> Response:
        return Response(await asyncio.to_thread(document.text), media_type="application/json")

    return routes
