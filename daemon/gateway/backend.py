"""What the gateway talks to: the daemon's services in this process, or a daemon over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from quantd.v1 import (
    embedding_service_pb2,
    generate_pb2,
    generate_service_pb2,
    model_service_pb2,
    tokenizer_service_pb2,
)


@dataclass(frozen=True, slots=True)
class CallContext:
    """What a backend is told of the HTTP request behind a call."""

    request_id: str
    timeout_s: float | None = None  # None: no limit
    credential: str | None = None  # the API key that came with the request


@dataclass(frozen=True, slots=True)
class Health:
    """`live`: the process works; `ready`: it would answer a request now; `detail` says what it is doing."""

    live: bool
    ready: bool
    detail: str


class Backend(Protocol):
    """Methods take and give quantd.v1 messages and raise daemon.errors.ApiError.

    Cancelling a call or closing its iterator ends the request at once, wherever it is.
    """

    def generate(
        self, request: generate_pb2.GenerateRequest, context: CallContext
    ) -> AsyncIterator[generate_service_pb2.GenerateResponse]:
        """Continue a prompt: Started, Deltas, Done."""
        ...

    def chat(
        self, request: generate_pb2.ChatRequest, context: CallContext
    ) -> AsyncIterator[generate_service_pb2.ChatResponse]:
        """Answer a conversation: Started, Deltas, Done."""
        ...

    async def list_models(
        self, request: model_service_pb2.ListModelsRequest, context: CallContext
    ) -> model_service_pb2.ListModelsResponse:
        """List all models, loaded ones first."""
        ...

    async def get_model(
        self, request: model_service_pb2.GetModelRequest, context: CallContext
    ) -> model_service_pb2.GetModelResponse:
        """Describe one model."""
        ...

    async def plan_memory(
        self, request: model_service_pb2.PlanMemoryRequest, context: CallContext
    ) -> model_service_pb2.PlanMemoryResponse:
        """Say what memory serving takes."""
        ...

    async def list_running(
        self, request: model_service_pb2.ListRunningRequest, context: CallContext
    ) -> model_service_pb2.ListRunningResponse:
        """Say which models are in memory."""
        ...

    async def load_model(
        self, request: model_service_pb2.LoadModelRequest, context: CallContext
    ) -> model_service_pb2.LoadModelResponse:
        """Bring a model into memory."""
        ...

    async def unload_model(
        self, request: model_service_pb2.UnloadModelRequest, context: CallContext
    ) -> model_service_pb2.UnloadModelResponse:
        """Take a model out of memory."""
        ...

    async def show_model(
        self, request: model_service_pb2.ShowModelRequest, context: CallContext
    ) -> model_service_pb2.ShowModelResponse:
        """Tell everything about a model."""
        ...

    async def copy_model(
        self, request: model_service_pb2.CopyModelRequest, context: CallContext
    ) -> model_service_pb2.CopyModelResponse:
        """Give a model a second name."""
        ...

    async def delete_model(
        self, request: model_service_pb2.DeleteModelRequest, context: CallContext
    ) -> model_service_pb2.DeleteModelResponse:
        """Forget a name."""
        ...

    def create_model(
        self, request: model_service_pb2.CreateModelRequest, context: CallContext
    ) -> AsyncIterator[model_service_pb2.CreateModelResponse]:
        """Make a model from another one or from blobs: progress, then the model."""
        ...

    async def has_blob(
        self, request: model_service_pb2.HasBlobRequest, context: CallContext
    ) -> model_service_pb2.HasBlobResponse:
        """Say whether the store has a blob."""
        ...

    def pull_model(
        self, request: model_service_pb2.PullModelRequest, context: CallContext
    ) -> AsyncIterator[model_service_pb2.PullModelResponse]:
        """Download a model: progress, then the model."""
        ...

    async def upload_blob(
        self, parts: AsyncIterator[model_service_pb2.UploadBlobRequest], context: CallContext
    ) -> model_service_pb2.UploadBlobResponse:
        """Store a blob; the first part has its digest."""
        ...

    async def tokenize(
        self, request: tokenizer_service_pb2.TokenizeRequest, context: CallContext
    ) -> tokenizer_service_pb2.TokenizeResponse:
        """Split text into token ids."""
        ...

    async def detokenize(
        self, request: tokenizer_service_pb2.DetokenizeRequest, context: CallContext
    ) -> tokenizer_service_pb2.DetokenizeResponse:
        """Join token ids to text."""
        ...

    async def render_chat(
        self, request: tokenizer_service_pb2.RenderChatRequest, context: CallContext
    ) -> tokenizer_service_pb2.RenderChatResponse:
        """Render a conversation without answering it."""
        ...

    async def embed(
        self, request: embedding_service_pb2.EmbedRequest, context: CallContext
    ) -> embedding_service_pb2.EmbedResponse:
        """Give the vectors of texts."""
        ...

    async def health(self) -> Health:
        """Say how the backend is; never raises."""
        ...
