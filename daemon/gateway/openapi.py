"""Request bodies on the API page: they are read by hand, strictly, and not by the framework."""

from __future__ import annotations

import functools
from typing import Any

from pydantic import BaseModel


@functools.cache
def documented(model: type[BaseModel]) -> dict[str, Any]:
    """The openapi_extra of a route that reads `model`."""
    schema = model.model_json_schema()
    schema.pop("$defs", None)
    if "stream_options" in schema["properties"]:
        schema["properties"]["stream_options"] = {
            "type": "object",
            "properties": {"include_usage": {"type": "boolean"}},
        }
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
