"""A daemon in another process or on another machine, over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from daemon.errors import from_rpc_error
from daemon.gateway.backend import CallContext, Health
from quantd.v1 import (
    embedding_service_pb2,
    embedding_service_pb2_grpc,
    generate_pb2,
    generate_service_pb2,
    generate_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    tokenizer_service_pb2,
    tokenizer_service_pb2_grpc,
)

Request = TypeVar("Request")
Response = TypeVar("Response")

HEALTH_TIMEOUT_S = 2.0
MAX_MESSAGE_BYTES = 32 << 20  # answers; the daemon bounds what it takes
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_http_proxy", 0),
)


class RemoteBackend:
    """A Backend over one channel; make it inside the event loop that uses it, and close it."""

    def __init__(self, target: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        """Connect to `target` (HOST:PORT or unix:PATH) when it is first needed; None: without TLS."""
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(target, credentials, options=_OPTIONS)
        self._generate = generate_service_pb2_grpc.GenerateServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._tokenizer = tokenizer_service_pb2_grpc.TokenizerServiceStub(self._channel)
        self._embedding = embedding_service_pb2_grpc.EmbeddingServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    async def close(self) -> None:
        """End all calls and the connection."""
        await self._channel.close()

    def generate(
        self, request: generate_pb2.GenerateRequest, context: CallContext
    ) -> AsyncIterator[generate_service_pb2.GenerateResponse]:
        """Continue a prompt."""
        return _stream(self._generate.Generate, request, context)

    def chat(
        self, request: generate_pb2.ChatRequest, context: CallContext
    ) -> AsyncIterator[generate_service_pb2.ChatResponse]:
        """Answer a conversation."""
        return _stream(self._generate.Chat, request, context)

    async def list_models(
        self, request: model_service_pb2.ListModelsRequest, context: CallContext
    ) -> model_service_pb2.ListModelsResponse:
        """List all models."""
        return await _unary(self._models.ListModels, request, context)

    async def get_model(
        self, request: model_service_pb2.GetModelRequest, context: CallContext
    ) -> model_service_pb2.GetModelResponse:
        """Describe one model."""
        return await _unary(self._models.GetModel, request, context)

    async def plan_memory(
        self, request: model_service_pb2.PlanMemoryRequest, context: CallContext
    ) -> model_service_pb2.PlanMemoryResponse:
        """Say what memory serving takes."""
        return await _unary(self._models.PlanMemory, request, context)

    async def list_running(
        self, request: model_service_pb2.ListRunningRequest, context: CallContext
    ) -> model_service_pb2.ListRunningResponse:
        """Say which models are in memory."""
        return await _unary(self._models.ListRunning, request, context)

    async def load_model(
        self, request: model_service_pb2.LoadModelRequest, context: CallContext
    ) -> model_service_pb2.LoadModelResponse:
        """Bring a model into memory."""
        return await _unary(self._models.LoadModel, request, context)

    async def unload_model(
        self, request: model_service_pb2.UnloadModelRequest, context: CallContext
    ) -> model_service_pb2.UnloadModelResponse:
        """Take a model out of memory."""
        return await _unary(self._models.UnloadModel, request, context)

    async def show_model(
        self, request: model_service_pb2.ShowModelRequest, context: CallContext
    ) -> model_service_pb2.ShowModelResponse:
        """Tell everything about a model."""
        return await _unary(self._models.ShowModel, request, context)

    async def copy_model(
        self, request: model_service_pb2.CopyModelRequest, context: CallContext
    ) -> model_service_pb2.CopyModelResponse:
        """Give a model a second name."""
        return await _unary(self._models.CopyModel, request, context)

    async def delete_model(
        self, request: model_service_pb2.DeleteModelRequest, context: CallContext
    ) -> model_service_pb2.DeleteModelResponse:
        """Forget a name."""
        return await _unary(self._models.DeleteModel, request, context)

    def create_model(
        self, request: model_service_pb2.CreateModelRequest, context: CallContext
    ) -> AsyncIterator[model_service_pb2.CreateModelResponse]:
        """Make a model from another one or from blobs."""
        return _stream(self._models.CreateModel, request, context)

    async def has_blob(
        self, request: model_service_pb2.HasBlobRequest, context: CallContext
    ) -> model_service_pb2.HasBlobResponse:
        """Say whether the store has a blob."""
        return await _unary(self._models.HasBlob, request, context)

    def pull_model(
        self, request: model_service_pb2.PullModelRequest, context: CallContext
    ) -> AsyncIterator[model_service_pb2.PullModelResponse]:
        """Download a model."""
        return _stream(self._models.PullModel, request, context)

    async def upload_blob(
        self, parts: AsyncIterator[model_service_pb2.UploadBlobRequest], context: CallContext
    ) -> model_service_pb2.UploadBlobResponse:
        """Store a blob."""
        try:
            return await self._models.UploadBlob(
                parts, timeout=context.timeout_s, metadata=_metadata(context)
            )
        except grpc.aio.AioRpcError as failure:
            raise from_rpc_error(failure) from None

    async def tokenize(
        self, request: tokenizer_service_pb2.TokenizeRequest, context: CallContext
    ) -> tokenizer_service_pb2.TokenizeResponse:
        """Split text into token ids."""
        return await _unary(self._tokenizer.Tokenize, request, context)

    async def detokenize(
        self, request: tokenizer_service_pb2.DetokenizeRequest, context: CallContext
    ) -> tokenizer_service_pb2.DetokenizeResponse:
        """Join token ids to text."""
        return await _unary(self._tokenizer.Detokenize, request, context)

    async def render_chat(
        self, request: tokenizer_service_pb2.RenderChatRequest, context: CallContext
    ) -> tokenizer_service_pb2.RenderChatResponse:
        """Render a conversation without answering it."""
        return await _unary(self._tokenizer.RenderChat, request, context)

    async def embed(
        self, request: embedding_service_pb2.EmbedRequest, context: CallContext
    ) -> embedding_service_pb2.EmbedResponse:
        """Give the vectors of texts."""
        return await _unary(self._embedding.Embed, request, context)

    async def health(self) -> Health:
        """Ask the daemon's health service; this process itself is always live."""
        try:
            answer = await self._health.Check(health_pb2.HealthCheckRequest(), timeout=HEALTH_TIMEOUT_S)
        except grpc.aio.AioRpcError as failure:
            return Health(live=True, ready=False, detail=from_rpc_error(failure).message)
        ready = answer.status == health_pb2.HealthCheckResponse.SERVING
        return Health(live=True, ready=ready, detail="ready" if ready else "the model server is not ready")


def _metadata(context: CallContext) -> tuple[tuple[str, str], ...]:
    named = (("x-request-id", context.request_id),)
    if context.credential is None or not context.credential.isascii():
        return named  # no key of ours has other characters, and metadata cannot carry them
    return (*named, ("authorization", f"Bearer {context.credential}"))


async def _unary(
    method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request, context: CallContext
) -> Response:
    try:
        return await method(request, timeout=context.timeout_s, metadata=_metadata(context))
    except grpc.aio.AioRpcError as failure:
        raise from_rpc_error(failure) from None


async def _stream(
    method: grpc.aio.UnaryStreamMultiCallable[Request, Response], request: Request, context: CallContext
) -> AsyncIterator[Response]:
    call = method(request, timeout=context.timeout_s, metadata=_metadata(context))
    try:
        async for event in call:
            yield event
    except grpc.aio.AioRpcError as failure:
        raise from_rpc_error(failure) from None
    finally:
        call.cancel()  # of no effect on a call that has ended
