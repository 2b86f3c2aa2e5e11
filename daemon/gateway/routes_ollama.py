"""Ollama's API: questions to models, and what there is to know of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from daemon.errors import ApiError
from daemon.gateway import ollama_models
from daemon.gateway.backend import Backend, CallContext
from daemon.gateway.body import read_json
from daemon.gateway.events import EventSource, unless_gone
from daemon.gateway.fields import refuse
from daemon.gateway.ollama_answer import LineWriter, OllamaShape, failure_response, json_line
from daemon.gateway.ollama_request import (
    OllamaChatRequest,
    OllamaFields,
    OllamaGenerateRequest,
    as_plain_text,
    chat_message,
    generate_message,
    keep_alive_ms,
)
from daemon.gateway.replies import JsonResponse
from daemon.gateway.respond import Responder
from daemon.gateway.routing import Routes
from daemon.gateway.schema import read_fields
from quantd.v1 import generate_pb2 as pb
from quantd.v1 import model_service_pb2 as rpc
from quantd.v1 import tokenizer_service_pb2

NDJSON = "application/x-ndjson"


def make_routes(backend: Backend, responder: Responder, *, version: str) -> Routes:
    """Routes over `backend`; `version` is what /api/version tells."""
    routes = Routes(answer_failure=failure_response)

    @routes.head("/", in_schema=False)
    @routes.get("/", in_schema=False)
    async def root(_: Request) -> Response:
        """Say the words that Ollama's clients look for."""
        return PlainTextResponse("Ollama is running")

    @routes.head("/api/version", in_schema=False)
    @routes.get("/api/version")
    async def tell_version(_: Request) -> Response:
        """Tell the version of this server."""
        return JsonResponse({"version": version})

    @routes.get("/api/tags")
    async def tags(request: Request) -> Response:
        """List the models, in memory or not."""
        answer = await backend.list_models(rpc.ListModelsRequest(), context_of(request))
        return JsonResponse({"models": [ollama_models.listed(model) for model in answer.models]})

    @routes.get("/api/ps")
    async def running(request: Request) -> Response:
        """List the models in memory."""
        answer = await backend.list_running(rpc.ListRunningRequest(), context_of(request))
        return JsonResponse({"models": [ollama_models.running(one) for one in answer.models]})

    @routes.post("/api/show")
    async def show(request: Request) -> Response:
        """Tell everything about a model."""
        body = await read_json(request, any_media_type=True)
        message = rpc.ShowModelRequest(name=model_name(body), verbose=body.get("verbose") is True)
        return JsonResponse(ollama_models.shown(await backend.show_model(message, context_of(request))))

    @routes.post("/api/chat", body=OllamaChatRequest)
    async def chat(request: Request) -> Response:
        """Answer a conversation in Ollama's form, as lines of JSON unless `stream` is false."""
        asked = read_fields(OllamaChatRequest, await read_json(request, any_media_type=True))
        shape = _shape(asked, is_chat=True)
        if not asked.messages:
            return await _load_or_unload(request, asked, shape)
        message = chat_message(asked)
        return await _answer(request, asked, shape, message)

    @routes.post("/api/generate", body=OllamaGenerateRequest)
    async def generate(request: Request) -> Response:
        """Answer a prompt in Ollama's form, as lines of JSON unless `stream` is false."""
        asked = read_fields(OllamaGenerateRequest, await read_json(request, any_media_type=True))
        shape = _shape(asked, is_chat=False)
        if not asked.prompt and not asked.suffix:
            return await _load_or_unload(request, asked, shape)
        message = generate_message(asked)
        return await _answer(request, asked, shape, message)

    async def _answer(
        request: Request,
        asked: OllamaFields,
        shape: OllamaShape,
        message: pb.ChatRequest | pb.GenerateRequest,
    ) -> Response:
        context = context_of(request)
        plain = isinstance(asked, OllamaGenerateRequest)
        source = EventSource(_events(backend, message, context, plain=plain))
        if asked.stream is False:
            return await responder.whole(request, source, shape.whole)
        return await responder.lines(request, source, LineWriter(shape, context.request_id))

    async def _load_or_unload(request: Request, asked: OllamaFields, shape: OllamaShape) -> Response:
        """A request without a question: its model comes into memory, or with keep_alive 0 leaves it."""
        context, milliseconds = context_of(request), keep_alive_ms(asked.keep_alive)
        work: Any
        if milliseconds == 0:
            work = backend.unload_model(rpc.UnloadModelRequest(name=asked.model, when_idle=True), context)
        elif (
            milliseconds is None
        ):  # loaded as any request loads it, for as long as the daemon is set to keep it
            work = backend.tokenize(
                tokenizer_service_pb2.TokenizeRequest(model=asked.model, text=" "), context
            )
        else:
            message = rpc.LoadModelRequest(name=asked.model, keep_alive_ms=milliseconds)
            work = backend.load_model(message, context)
        await unless_gone(request, work)
        answer = shape.without_answer("unload" if milliseconds == 0 else "load")
        if asked.stream is False:
            return JsonResponse(answer)
        return Response(json_line(answer), media_type=NDJSON)

    return routes


def context_of(request: Request) -> CallContext:
    """What the backend is told of a request."""
    return CallContext(request_id=request.state.request_id, credential=request.state.credential)


def model_name(body: dict[str, Any], field: str = "model") -> str:
    """The name of a model, under its old field "name" too."""
    value = body.get(field) or (body.get("name") if field == "model" else None)
    if not isinstance(value, str) or not value:
        raise refuse(field, "must name a model")
    return value


def _shape(asked: OllamaFields, *, is_chat: bool) -> OllamaShape:
    if not asked.model:
        raise refuse("model", "must name a model")
    return OllamaShape(model=asked.model, is_chat=is_chat)


async def _events(
    backend: Backend, message: pb.ChatRequest | pb.GenerateRequest, context: CallContext, *, plain: bool
) -> AsyncIterator[Any]:
    """The events of an answer.

    A limit of tokens beyond the context means the context, as Ollama takes it; `plain`: a model without a chat template
    continues the prompt as text.  Both are refused before the first event, so nothing is told twice.
    """
    while True:
        chats = isinstance(message, pb.ChatRequest)
        stream: Any = (
            backend.chat(message, context)
            if isinstance(message, pb.ChatRequest)
            else backend.generate(message, context)
        )
        try:
            async with aclosing(stream):
                async for event in stream:
                    yield event
        except ApiError as failure:
            if failure.field == "options.max_tokens" and message.options.HasField("max_tokens"):
                message.options.ClearField("max_tokens")
            elif failure.reason == "NO_CHAT_TEMPLATE" and plain and chats:
                assert isinstance(message, pb.ChatRequest)
                message = as_plain_text(message)
            else:
                raise
        else:
            return
