"""Vectors of texts in Ollama's form: POST /api/embed, and /api/embeddings, which it superseded."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from daemon.errors import ApiError, retry_after_header, to_api_error
from daemon.gateway.backend import Backend, CallContext
from daemon.gateway.body import read_json
from daemon.gateway.fields import refuse
from daemon.gateway.replies import JsonResponse, log_unexpected
from daemon.gateway.routing import Routes
from daemon.gateway.schema import Body, Int32, read_fields
from daemon.keep_alive import FOREVER, parse_keep_alive
from quantd.v1 import embed_pb2 as pb
from quantd.v1 import embedding_service_pb2 as rpc


class EmbedRequest(Body):
    """POST /api/embed."""

    model: str
    input: str | list[str] = ""
    truncate: bool = True
    dimensions: Int32 | None = None
    keep_alive: str | int | float | None = None


class OldEmbedRequest(Body):
    """POST /api/embeddings."""

    model: str
    prompt: str = ""
    keep_alive: str | int | float | None = None


def make_routes(backend: Backend) -> Routes:
    """Routes over `backend`."""
    routes = Routes()

    @routes.post("/api/embed", body=EmbedRequest)
    async def embed(request: Request) -> Response:
        """Give the vectors of texts; what is too long is cut unless `truncate` is false."""
        started_ns = time.monotonic_ns()
        context = _context(request)
        try:
            asked = read_fields(EmbedRequest, await read_json(request, any_media_type=True))
            texts = [asked.input] if isinstance(asked.input, str) else asked.input
            answer = rpc.EmbedResponse(model=asked.model)
            if texts and texts != [""]:
                message = _message(asked.model, texts, asked.keep_alive)
                message.truncate = asked.truncate
                if asked.dimensions is not None:
                    message.dimensions = asked.dimensions
                answer = await backend.embed(message, context)
        except Exception as failure:  # noqa: BLE001  the border: everything becomes Ollama's form
            return _error(failure, context)
        return JsonResponse(
            {
                "model": asked.model,
                "embeddings": [list(one.values) for one in answer.embeddings],
                "total_duration": time.monotonic_ns() - started_ns,
                "prompt_eval_count": answer.prompt_tokens,
            }
        )

    @routes.post("/api/embeddings", body=OldEmbedRequest)
    async def embeddings(request: Request) -> Response:
        """Give the vector of one text."""
        context = _context(request)
        vector: list[float] = []
        try:
            asked = read_fields(OldEmbedRequest, await read_json(request, any_media_type=True))
            if asked.prompt:
                message = _message(asked.model, [asked.prompt], asked.keep_alive)
                message.truncate = True
                vector = list((await backend.embed(message, context)).embeddings[0].values)
        except Exception as failure:  # noqa: BLE001  the border: everything becomes Ollama's form
            return _error(failure, context)
        return JsonResponse({"embedding": vector})

    return routes


def _message(model: str, texts: list[str], keep_alive: str | float | None) -> rpc.EmbedRequest:
    message = rpc.EmbedRequest(model=model, input=[pb.EmbedInput(text=text) for text in texts])
    if keep_alive is not None:
        try:
            seconds = parse_keep_alive(keep_alive)
        except ValueError as failure:
            raise refuse("keep_alive", str(failure)) from None
        message.keep_alive_ms = -1 if seconds == FOREVER else round(seconds * 1e3)
    return message


def _error(failure: Exception, context: CallContext) -> JsonResponse:
    error: ApiError = to_api_error(failure, context.request_id)
    log_unexpected(error, failure, context.request_id)
    body: dict[str, Any] = {"error": str(error)}
    retry_after = retry_after_header(error)
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return JsonResponse(body, status_code=error.http_status, headers=headers)


def _context(request: Request) -> CallContext:
    return CallContext(request_id=request.state.request_id, credential=request.state.credential)
