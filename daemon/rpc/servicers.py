"""Servicers: each method hands its message to the service of the same name."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from daemon.rpc.interceptor import current_call
from daemon.services import Services
from quantd.v1 import embedding_service_pb2 as embedding_rpc
from quantd.v1 import (
    embedding_service_pb2_grpc,
    generate_pb2,
    generate_service_pb2_grpc,
    model_service_pb2_grpc,
    quantize_service_pb2_grpc,
    tokenizer_service_pb2_grpc,
)
from quantd.v1 import generate_service_pb2 as generate_rpc
from quantd.v1 import model_service_pb2 as model_rpc
from quantd.v1 import quantize_service_pb2 as quantize_rpc
from quantd.v1 import tokenizer_service_pb2 as tokenizer_rpc


class GenerateServicer(generate_service_pb2_grpc.GenerateServiceServicer):
    def __init__(self, services: Services) -> None:
        self._service = services.generate

    def Generate(  # noqa: N802
        self, request: generate_pb2.GenerateRequest, context: Any
    ) -> AsyncGenerator[generate_rpc.GenerateResponse, None]:
        del context
        return self._service.generate(request, current_call.get())

    async def GenerateUnary(  # noqa: N802
        self, request: generate_rpc.GenerateUnaryRequest, context: Any
    ) -> generate_rpc.GenerateUnaryResponse:
        del context
        return await self._service.generate_unary(request, current_call.get())

    def Chat(  # noqa: N802
        self, request: generate_pb2.ChatRequest, context: Any
    ) -> AsyncGenerator[generate_rpc.ChatResponse, None]:
        del context
        return self._service.chat(request, current_call.get())

    async def ChatUnary(  # noqa: N802
        self, request: generate_rpc.ChatUnaryRequest, context: Any
    ) -> generate_rpc.ChatUnaryResponse:
        del context
        return await self._service.chat_unary(request, current_call.get())


class TokenizerServicer(tokenizer_service_pb2_grpc.TokenizerServiceServicer):
    def __init__(self, services: Services) -> None:
        self._service = services.tokenizer

    async def Tokenize(  # noqa: N802
        self, request: tokenizer_rpc.TokenizeRequest, context: Any
    ) -> tokenizer_rpc.TokenizeResponse:
        del context
        return await self._service.tokenize(request, current_call.get())

    async def Detokenize(  # noqa: N802
        self, request: tokenizer_rpc.DetokenizeRequest, context: Any
    ) -> tokenizer_rpc.DetokenizeResponse:
        del context
        return await self._service.detokenize(request, current_call.get())

    async def RenderChat(  # noqa: N802
        self, request: tokenizer_rpc.RenderChatRequest, context: Any
    ) -> tokenizer_rpc.RenderChatResponse:
        del context
        return await self._service.render_chat(request, current_call.get())


class EmbeddingServicer(embedding_service_pb2_grpc.EmbeddingServiceServicer):
    def __init__(self, services: Services) -> None:
        self._service = services.embedding

    async def Embed(  # noqa: N802
        self, request: embedding_rpc.EmbedRequest, context: Any
    ) -> embedding_rpc.EmbedResponse:
        del context
        return await self._service.embed(request, current_call.get())


class ModelServicer(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, services: Services) -> None:
        self._service = services.model
        self._library = services.library

    async def ListModels(  # noqa: N802
        self, request: model_rpc.ListModelsRequest, context: Any
    ) -> model_rpc.ListModelsResponse:
        del context
        return await self._service.list_models(request, current_call.get())

    async def GetModel(  # noqa: N802
        self, request: model_rpc.GetModelRequest, context: Any
    ) -> model_rpc.GetModelResponse:
        del context
        return await self._service.get_model(request, current_call.get())

    async def LoadModel(  # noqa: N802
        self, request: model_rpc.LoadModelRequest, context: Any
    ) -> model_rpc.LoadModelResponse:
        del context
        return await self._service.load_model(request, current_call.get())

    async def UnloadModel(  # noqa: N802
        self, request: model_rpc.UnloadModelRequest, context: Any
    ) -> model_rpc.UnloadModelResponse:
        del context
        return await self._service.unload_model(request, current_call.get())

    async def ListRunning(  # noqa: N802
        self, request: model_rpc.ListRunningRequest, context: Any
    ) -> model_rpc.ListRunningResponse:
        del context
        return await self._service.list_running(request, current_call.get())

    async def PlanMemory(  # noqa: N802
        self, request: model_rpc.PlanMemoryRequest, context: Any
    ) -> model_rpc.PlanMemoryResponse:
        del context
        return await self._service.plan_memory(request, current_call.get())

    async def ShowModel(  # noqa: N802
        self, request: model_rpc.ShowModelRequest, context: Any
    ) -> model_rpc.ShowModelResponse:
        del context
        return await self._library.show_model(request, current_call.get())

    async def CopyModel(  # noqa: N802
        self, request: model_rpc.CopyModelRequest, context: Any
    ) -> model_rpc.CopyModelResponse:
        del context
        return await self._library.copy_model(request, current_call.get())

    async def DeleteModel(  # noqa: N802
        self, request: model_rpc.DeleteModelRequest, context: Any
    ) -> model_rpc.DeleteModelResponse:
        del context
        return await self._library.delete_model(request, current_call.get())

    def CreateModel(  # noqa: N802
        self, request: model_rpc.CreateModelRequest, context: Any
    ) -> AsyncGenerator[model_rpc.CreateModelResponse, None]:
        del context
        return self._library.create_model(request, current_call.get())

    async def HasBlob(  # noqa: N802
        self, request: model_rpc.HasBlobRequest, context: Any
    ) -> model_rpc.HasBlobResponse:
        del context
        return await self._library.has_blob(request, current_call.get())

    def PullModel(  # noqa: N802
        self, request: model_rpc.PullModelRequest, context: Any
    ) -> AsyncGenerator[model_rpc.PullModelResponse, None]:
        del context
        return self._library.pull_model(request, current_call.get())

    async def UploadBlob(  # noqa: N802
        self, request_iterator: AsyncIterator[model_rpc.UploadBlobRequest], context: Any
    ) -> model_rpc.UploadBlobResponse:
        del context
        return await self._library.upload_blob(request_iterator, current_call.get())


class QuantizeServicer(quantize_service_pb2_grpc.QuantizeServiceServicer):
    def __init__(self, services: Services) -> None:
        self._service = services.quantize

    def Quantize(  # noqa: N802
        self, request: quantize_rpc.QuantizeRequest, context: Any
    ) -> AsyncGenerator[quantize_rpc.QuantizeResponse, None]:
        del context
        return self._service.quantize(request, current_call.get())

    async def ListJobs(  # noqa: N802
        self, request: quantize_rpc.ListJobsRequest, context: Any
    ) -> quantize_rpc.ListJobsResponse:
        del request, context
        return self._service.list_jobs(current_call.get())

    async def CancelJob(  # noqa: N802
        self, request: quantize_rpc.CancelJobRequest, context: Any
    ) -> quantize_rpc.CancelJobResponse:
        del context
        return self._service.cancel_job(request, current_call.get())
