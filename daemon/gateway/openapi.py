"""The API page's document of all routes.  Made when it is first asked for: an answer needs none of what it takes.

Request bodies are read by hand, strictly, and not by the framework; the document says what is read.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from daemon.gateway.routing import Declared


class ApiDocument:
    """OpenAPI's description of routes.  For any thread."""

    def __init__(self, routes: Sequence[Declared], version: str) -> None:
        self._routes = routes
        self._version = version
        self._lock = threading.Lock()
        self._text: bytes | None = None

    def text(self) -> bytes:
        """The document as JSON; the first call takes some tenths of a second."""
        with self._lock:
            if self._text is None:
                self._text = self._write()
            return self._text

    def _write(self) -> bytes:
        from fastapi import FastAPI  # noqa: PLC0415  a quarter of a second

        app = FastAPI(
            title="quantd",
            version=self._version,
            description="A language-model server for CPU-only machines, over the OpenAI API.",
        )
        for route in self._routes:
            if route.in_schema:
                app.add_api_route(
                    route.path,
                    route.handler,
                    methods=[route.method],
                    openapi_extra=None if route.body is None else _documented(route.body),
                    response_model=None,
                )
        return json.dumps(app.openapi(), ensure_ascii=False, separators=(",", ":")).encode()


@functools.cache
def _documented(model: type[BaseModel]) -> dict[str, Any]:
    """The openapi_extra of a route that reads `model`."""
    schema = model.model_json_schema()
    schema.pop("$defs", None)
    if "stream_options" in schema["properties"]:
        schema["properties"]["stream_options"] = {
            "type": "object",
            "properties": {"include_usage": {"type": "boolean"}},
        }
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
