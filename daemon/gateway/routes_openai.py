"""/v1: chat completions, completions, models."""

from __future__ import annotations

import functools
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from daemon.errors import ApiError
from daemon.gateway.answers import ChatShape, CompletionShape, Shape
from daemon.gateway.backend import Backend, CallContext
from daemon.gateway.body import read_json
from daemon.gateway.events import EventSource, unless_gone
from daemon.gateway.replies import JsonResponse, error_body
from daemon.gateway.schema import (
    ChatCompletionRequest,
    CompletionRequest,
    GenerationRequest,
    read_chat,
    read_completion,
)
from daemon.gateway.sse import event_response, frames
from daemon.gateway.translate import chat_request, completion_request
from quantd.v1 import generate_pb2 as pb
from quantd.v1 import model_pb2, model_service_pb2


@functools.cache
def _documented(model: type[GenerationRequest]) -> dict[str, Any]:
    """The request body for the API page: bodies are read by hand, strictly, and not by the framework."""
    schema = model.model_json_schema()
    schema.pop("$defs", None)
    schema["properties"]["stream_options"] = {
        "type": "object",
        "properties": {"include_usage": {"type": "boolean"}},
    }
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def make_router(backend: Backend, *, first_event_s: float, ping_s: float, send_timeout_s: float) -> APIRouter:
    """Routes over `backend`.

    A streamed answer waits up to `first_event_s` for its first token before it commits to status 200; then it
    sends a comment every `ping_s` seconds.  A client that reads nothing for `send_timeout_s` loses the connection.
    """
    router = APIRouter(prefix="/v1")

    @router.post("/chat/completions", openapi_extra=_documented(ChatCompletionRequest), response_model=None)
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation.  What is left out takes the server's defaults (temperature 0.8, top_p 0.95, ...)."""
        asked = read_chat(await read_json(request))
        message = chat_request(asked)
        context = _context(request)
        shape = ChatShape(request_id=context.request_id, model=asked.model)
        return await _answer(request, asked, EventSource(backend.chat(message, context)), shape, context)

    @router.post("/completions", openapi_extra=_documented(CompletionRequest), response_model=None)
    async def completions(request: Request) -> Response:
        """Continue a text or token ids, by 16 tokens where max_tokens is left out."""
        asked = read_completion(await read_json(request))
        message = completion_request(asked)
        context = _context(request)
        shape = CompletionShape(request_id=context.request_id, model=asked.model)
        return await _answer(request, asked, EventSource(backend.generate(message, context)), shape, context)

    @router.get("/models", response_model=None)
    async def models(request: Request) -> Response:
        """List the models that answer requests now."""
        listed = await backend.list_models(model_service_pb2.ListModelsRequest(), _context(request))
        return JsonResponse({"object": "list", "data": [_model(m) for m in listed.models if m.loaded]})

    @router.get("/models/{name}", response_model=None)
    async def model(request: Request, name: str) -> Response:
        """Describe a model that answers requests now."""
        answer = await backend.get_model(model_service_pb2.GetModelRequest(name=name), _context(request))
        if not answer.model.loaded:
            raise ApiError("MODEL_NOT_FOUND", f"The model {name[:200]!r} is not loaded.", field="name")
        return JsonResponse(_model(answer.model))

    async def _answer(
        request: Request, asked: GenerationRequest, source: EventSource, shape: Shape, context: CallContext
    ) -> Response:
        try:
            if not asked.stream:
                return JsonResponse(await unless_gone(request, _whole(source, shape)))
            head, waiting = await unless_gone(request, source.peek(first_event_s))
        except BaseException:
            source.cancel()
            raise
        content = frames(
            source,
            head,
            waiting,
            shape,
            with_usage=bool(asked.stream_options and asked.stream_options.include_usage),
            error_body=lambda failure: error_body(failure, context.request_id),
        )
        return event_response(content, ping_s=ping_s, send_timeout_s=send_timeout_s)

    return router


async def _whole(source: EventSource, shape: Shape) -> dict[str, Any]:
    deltas: list[pb.Delta] = []
    async for event in source:
        if isinstance(event, pb.Started):
            shape.start(event)
        elif isinstance(event, pb.Queued):
            continue
        elif isinstance(event, pb.Delta):
            deltas.append(event)
        else:
            return shape.whole(deltas, event)
    raise ApiError("INTERNAL", "The answer broke off.")


def _context(request: Request) -> CallContext:
    return CallContext(request_id=request.state.request_id, credential=request.state.credential)


def _model(model: model_pb2.Model) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.modified_unix_ms // 1000,
        "owned_by": "quantd",
        "meta": {
            "architecture": model.architecture,
            "quantization": model.quantization,
            "n_params": model.num_parameters,
            "size": model.size_bytes,
            "n_ctx_train": model.context_length,
            "n_ctx": model.session_context_tokens,
            "n_vocab": model.vocab_size,
            "has_chat_template": model.has_chat_template,
        },
    }
