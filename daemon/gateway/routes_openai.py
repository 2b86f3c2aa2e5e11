"""/v1: chat completions, completions, responses, models; and what is not there."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from daemon.errors import ApiError
from daemon.gateway.answers import ChatShape, CompletionShape, Shape
from daemon.gateway.backend import Backend, CallContext
from daemon.gateway.body import read_json
from daemon.gateway.events import EventSource
from daemon.gateway.joined import joined
from daemon.gateway.replies import JsonResponse, error_body
from daemon.gateway.respond import Responder
from daemon.gateway.responses_answer import ResponseShape, ResponseWriter
from daemon.gateway.responses_request import ResponsesRequest, read_responses, responses_message
from daemon.gateway.routing import Handler, Routes
from daemon.gateway.schema import (
    ChatCompletionRequest,
    CompletionRequest,
    GenerationRequest,
    read_chat,
    read_completion,
)
from daemon.gateway.sse import ChunkWriter
from daemon.gateway.translate import chat_request, completion_requests
from daemon.quantization_name import quantization_name
from quantd.v1 import model_pb2, model_service_pb2, tokenizer_service_pb2

# What clients may look for and this server does not have: a clear word instead of silence.
_ABSENT = {
    "/moderations": "This server has no moderation model.",
}


def _absent(message: str) -> Handler:
    async def answer(_: Request) -> Response:
        raise ApiError("NOT_FOUND", message)

    return answer


def make_routes(backend: Backend, responder: Responder) -> Routes:
    """Routes over `backend`."""
    routes = Routes(prefix="/v1")

    @routes.post("/chat/completions", body=ChatCompletionRequest)
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation.  What is left out takes the server's defaults (temperature 0.8, top_p 0.95, ...)."""
        asked = read_chat(await read_json(request))
        message = chat_request(asked)
        context = _context(request)
        shape = ChatShape(
            request_id=context.request_id,
            model=asked.model,
            with_reasoning=asked.include_reasoning is not False,
        )
        return await _answer(request, asked, EventSource(backend.chat(message, context)), shape, context)

    @routes.post("/completions", body=CompletionRequest)
    async def completions(request: Request) -> Response:
        """Continue a text or token ids, by 16 tokens where max_tokens is left out."""
        asked = read_completion(await read_json(request))
        messages = completion_requests(asked)
        context = _context(request)
        shape = CompletionShape(request_id=context.request_id, model=asked.model)
        streams = [backend.generate(message, context) for message in messages]
        source = EventSource(streams[0] if len(streams) == 1 else joined(streams, asked.n or 1))
        return await _answer(request, asked, source, shape, context)

    @routes.post("/responses", body=ResponsesRequest)
    async def responses(request: Request) -> Response:
        """Answer in the form of the Responses API.  Nothing is stored: each request brings the whole conversation."""
        asked = read_responses(await read_json(request))
        message = responses_message(asked)
        context = _context(request)
        shape = ResponseShape(asked, request_id=context.request_id)
        source = EventSource(backend.chat(message, context))
        if asked.stream:
            writer = ResponseWriter(shape, lambda failure: error_body(failure, context.request_id))
            return await responder.stream(request, source, writer)
        return await responder.whole(request, source, shape.whole)

    @routes.post("/responses/input_tokens", body=ResponsesRequest)
    async def response_tokens(request: Request) -> Response:
        """Count the tokens of a request to the Responses API."""
        message = responses_message(read_responses(await read_json(request)))
        rendered = await backend.render_chat(
            tokenizer_service_pb2.RenderChatRequest(request=message), _context(request)
        )
        return JsonResponse({"object": "response.input_tokens", "input_tokens": len(rendered.ids)})

    for path, message in _ABSENT.items():
        routes.post(path, in_schema=False)(_absent(message))

    @routes.get("/models")
    async def models(request: Request) -> Response:
        """List the models: those in memory first, the others are loaded when a request names them."""
        listed = await backend.list_models(model_service_pb2.ListModelsRequest(), _context(request))
        return JsonResponse({"object": "list", "data": [_model(m) for m in listed.models]})

    @routes.get("/models/{name}")
    async def model(request: Request, name: str) -> Response:
        """Describe a model."""
        answer = await backend.get_model(model_service_pb2.GetModelRequest(name=name), _context(request))
        return JsonResponse(_model(answer.model))

    async def _answer(
        request: Request, asked: GenerationRequest, source: EventSource, shape: Shape, context: CallContext
    ) -> Response:
        if not asked.stream:
            return await responder.whole(request, source, shape.whole)
        writer = ChunkWriter(
            shape,
            lambda failure: error_body(failure, context.request_id),
            with_usage=bool(asked.stream_options and asked.stream_options.include_usage),
        )
        return await responder.stream(request, source, writer)

    return routes


def _context(request: Request) -> CallContext:
    return CallContext(request_id=request.state.request_id, credential=request.state.credential)


def _model(model: model_pb2.Model) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.modified_unix_ms // 1000,
        "owned_by": "quantd",
        "meta": {
            "loaded": model.loaded,
            "architecture": model.architecture,
            "quantization": quantization_name(model),
            "n_params": model.num_parameters,
            "size": model.size_bytes,
            "n_ctx_train": model.context_length,
            "n_ctx": model.session_context_tokens,
            "n_vocab": model.vocab_size,
            "has_chat_template": model.has_chat_template,
            "gives_embeddings": model.gives_embeddings,
        },
    }
