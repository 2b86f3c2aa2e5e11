"""The services as the gateway's backend, for a gateway that lives in the same process: no second hop."""

from __future__ import annotations

from collections.abc import AsyncIterator

from daemon.gateway.backend import CallContext, Health
from daemon.services import Services
from daemon.services.call import Call
from daemon.services.host import State
from quantd.v1 import (
    embedding_service_pb2,
    generate_pb2,
    generate_service_pb2,
    model_service_pb2,
    tokenizer_service_pb2,
)


class LocalBackend:
    """A daemon.gateway.backend.Backend over the services themselves."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def generate(
        self, request: generate_pb2.GenerateRequest, context: CallContext
    ) -> AsyncIterator[generate_service_pb2.GenerateResponse]:
        """Continue a prompt."""
        return self._services.generate.generate(request, self._call(context))

    def chat(
        self, request: generate_pb2.ChatRequest, context: CallContext
    ) -> AsyncIterator[generate_service_pb2.ChatResponse]:
        """Answer a conversation."""
        return self._services.generate.chat(request, self._call(context))

    async def list_models(
        self, request: model_service_pb2.ListModelsRequest, context: CallContext
    ) -> model_service_pb2.ListModelsResponse:
        """List all models."""
        return await self._services.model.list_models(request, self._call(context))

    async def get_model(
        self, request: model_service_pb2.GetModelRequest, context: CallContext
    ) -> model_service_pb2.GetModelResponse:
        """Describe one model."""
        return await self._services.model.get_model(request, self._call(context))

    async def plan_memory(
        self, request: model_service_pb2.PlanMemoryRequest, context: CallContext
    ) -> model_service_pb2.PlanMemoryResponse:
        """Say what memory serving takes."""
        return await self._services.model.plan_memory(request, self._call(context))

    async def list_running(
        self, request: model_service_pb2.ListRunningRequest, context: CallContext
    ) -> model_service_pb2.ListRunningResponse:
        """Say which models are in memory."""
        return await self._services.model.list_running(request, self._call(context))

    async def load_model(
        self, request: model_service_pb2.LoadModelRequest, context: CallContext
    ) -> model_service_pb2.LoadModelResponse:
        """Bring a model into memory."""
        return await self._services.model.load_model(request, self._call(context))

    async def unload_model(
        self, request: model_service_pb2.UnloadModelRequest, context: CallContext
    ) -> model_service_pb2.UnloadModelResponse:
        """Take a model out of memory."""
        return await self._services.model.unload_model(request, self._call(context))

    async def show_model(
        self, request: model_service_pb2.ShowModelRequest, context: CallContext
    ) -> model_service_pb2.ShowModelResponse:
        """Tell everything about a model."""
        return await self._services.library.show_model(request, self._call(context))

    async def copy_model(
        self, request: model_service_pb2.CopyModelRequest, context: CallContext
    ) -> model_service_pb2.CopyModelResponse:
        """Give a model a second name."""
        return await self._services.library.copy_model(request, self._call(context))

    async def delete_model(
        self, request: model_service_pb2.DeleteModelRequest, context: CallContext
    ) -> model_service_pb2.DeleteModelResponse:
        """Forget a name."""
        return await self._services.library.delete_model(request, self._call(context))

    def create_model(
        self, request: model_service_pb2.CreateModelRequest, context: CallContext
    ) -> AsyncIterator[model_service_pb2.CreateModelResponse]:
        """Make a model from another one or from blobs."""
        return self._services.library.create_model(request, self._call(context))

    async def has_blob(
        self, request: model_service_pb2.HasBlobRequest, context: CallContext
    ) -> model_service_pb2.HasBlobResponse:
        """Say whether the store has a blob."""
        return await self._services.library.has_blob(request, self._call(context))

    def pull_model(
        self, request: model_service_pb2.PullModelRequest, context: CallContext
    ) -> AsyncIterator[model_service_pb2.PullModelResponse]:
        """Download a model."""
        return self._services.library.pull_model(request, self._call(context))

    async def upload_blob(
        self, parts: AsyncIterator[model_service_pb2.UploadBlobRequest], context: CallContext
    ) -> model_service_pb2.UploadBlobResponse:
        """Store a blob."""
        return await self._services.library.upload_blob(parts, self._call(context))

    async def tokenize(
        self, request: tokenizer_service_pb2.TokenizeRequest, context: CallContext
    ) -> tokenizer_service_pb2.TokenizeResponse:
        """Split text into token ids."""
        return await self._services.tokenizer.tokenize(request, self._call(context))

    async def detokenize(
        self, request: tokenizer_service_pb2.DetokenizeRequest, context: CallContext
    ) -> tokenizer_service_pb2.DetokenizeResponse:
        """Join token ids to text."""
        return await self._services.tokenizer.detokenize(request, self._call(context))

    async def render_chat(
        self, request: tokenizer_service_pb2.RenderChatRequest, context: CallContext
    ) -> tokenizer_service_pb2.RenderChatResponse:
        """Render a conversation without answering it."""
        return await self._services.tokenizer.render_chat(request, self._call(context))

    async def embed(
        self, request: embedding_service_pb2.EmbedRequest, context: CallContext
    ) -> embedding_service_pb2.EmbedResponse:
        """Give the vectors of texts."""
        return await self._services.embedding.embed(request, self._call(context))

    async def health(self) -> Health:
        """Live while the engine is; ready while it would take a request."""
        host = self._services.host
        live, ready = host.healthy(), host.ready()
        detail = host.state.value if ready or host.state is not State.READY else "the engine does not answer"
        return Health(live=live, ready=ready, detail=detail)

    def _call(self, context: CallContext) -> Call:
        caller = self._services.gate.caller(context.credential)
        return Call.within(context.timeout_s, context.request_id, caller)
