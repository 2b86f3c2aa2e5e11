"""GRPCInferenceService: the calls of the Open Inference Protocol, on the path that all requests take."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from daemon.errors import ApiError, to_api_error
from daemon.gateway.joined import joined
from daemon.kserve import request as reading
from daemon.kserve.tensors import Tensor, add_output
from daemon.log import get_logger
from daemon.rpc.interceptor import current_call
from daemon.services import Services
from daemon.services.call import Call
from daemon.version import version
from quantd.kserve import inference_pb2 as pb
from quantd.kserve import inference_pb2_grpc
from quantd.v1 import generate_pb2, model_pb2, model_service_pb2

log = get_logger("quantd.rpc")

EXTENSIONS = ("model_stream_infer",)
MAX_AT_ONCE = 16  # requests of one stream that are answered at the same time
_MAX_WAITING = 64  # responses that a slow reader leaves lying; then the answers wait too
_FINISH = {
    generate_pb2.FINISH_REASON_STOP: b"stop",
    generate_pb2.FINISH_REASON_LENGTH: b"length",
    generate_pb2.FINISH_REASON_TOOL_CALLS: b"tool_calls",
}


class InferenceServicer(inference_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, services: Services) -> None:
        self._services = services

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Any) -> pb.ServerLiveResponse:  # noqa: N802
        del request, context
        return pb.ServerLiveResponse(live=self._services.host.healthy())

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Any) -> pb.ServerReadyResponse:  # noqa: N802
        del request, context
        return pb.ServerReadyResponse(ready=self._services.host.ready())

    async def ServerMetadata(  # noqa: N802
        self, request: pb.ServerMetadataRequest, context: Any
    ) -> pb.ServerMetadataResponse:
        del request, context
        return pb.ServerMetadataResponse(name="quantd", version=version(), extensions=EXTENSIONS)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Any) -> pb.ModelReadyResponse:  # noqa: N802
        del context
        reading.check_version(request.version)
        try:
            await self._model(request.name, current_call.get())
        except ApiError as failure:
            if failure.reason != "MODEL_NOT_FOUND":
                raise
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._services.host.ready())

    async def ModelMetadata(  # noqa: N802
        self, request: pb.ModelMetadataRequest, context: Any
    ) -> pb.ModelMetadataResponse:
        del context
        reading.check_version(request.version)
        model = await self._model(request.name, current_call.get())
        described = pb.ModelMetadataResponse(name=model.name, versions=[reading.VERSION], platform="gguf")
        described.inputs.add(name=reading.TEXT, datatype="BYTES", shape=[-1])
        if model.gives_embeddings:
            described.outputs.add(name=reading.VECTORS, datatype="FP32", shape=[-1, -1])
        else:
            for name in reading.OUTPUTS:
                described.outputs.add(name=name, datatype="BYTES", shape=[-1])
        return described

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:  # noqa: N802
        del context
        # One response: nothing is streamed.
        async with aclosing(self._answer(request, current_call.get(), may_stream=False)) as responses:
            return await anext(responses)

    async def ModelStreamInfer(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Any
    ) -> AsyncGenerator[pb.ModelStreamInferResponse, None]:
        del context
        call = current_call.get()
        waiting: asyncio.Queue[pb.ModelStreamInferResponse | None] = asyncio.Queue(_MAX_WAITING)
        reader = asyncio.create_task(self._read_stream(request_iterator, call, waiting))
        try:
            while (response := await waiting.get()) is not None:
                yield response
            await reader
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read_stream(
        self,
        requests: AsyncIterator[pb.ModelInferRequest],
        call: Call,
        waiting: asyncio.Queue[pb.ModelStreamInferResponse | None],
    ) -> None:
        """Answers the requests of a stream as they come; None says that all are over, or that the stream broke."""
        places = asyncio.Semaphore(MAX_AT_ONCE)
        number = 0
        try:
            async with asyncio.TaskGroup() as group:
                async for request in requests:
                    await places.acquire()
                    own = dataclasses.replace(call, request_id=f"{call.request_id}-{number}")
                    number += 1
                    task = group.create_task(self._answer_one(request, own, waiting))
                    task.add_done_callback(lambda _: places.release())
        except* ApiError as failures:
            await waiting.put(None)
            raise failures.exceptions[0] from None
        await waiting.put(None)

    async def _answer_one(
        self, request: pb.ModelInferRequest, call: Call, waiting: asyncio.Queue[Any]
    ) -> None:
        """The responses to one request of a stream; a failure is one of them, and the others of the stream go on."""
        try:
            async with aclosing(self._answer(request, call, may_stream=True)) as responses:
                async for response in responses:
                    await waiting.put(pb.ModelStreamInferResponse(infer_response=response))
        except Exception as failure:
            error = to_api_error(failure, call.request_id)
            if not isinstance(failure, ApiError) and error.reason == "INTERNAL":
                log.exception("internal_error", request_id=call.request_id)
            failed = pb.ModelInferResponse(id=request.id, model_name=request.model_name)
            await waiting.put(
                pb.ModelStreamInferResponse(
                    error_message=f"{error.reason}: {error.message}", infer_response=failed
                )
            )

    async def _answer(
        self, request: pb.ModelInferRequest, call: Call, *, may_stream: bool
    ) -> AsyncGenerator[pb.ModelInferResponse, None]:
        asked = reading.read(request)
        if asked.timeout_s is not None:
            deadline = time.monotonic() + asked.timeout_s
            call = dataclasses.replace(call, deadline=min(deadline, call.deadline or deadline))
        model = await self._model(asked.model, call)
        if model.gives_embeddings:
            yield await self._embed(request, asked, call)
            return
        wanted = reading.generation(asked, may_stream=may_stream)
        make = _generated if not wanted.streams else _streamed
        streams = [self._services.generate.generate(message, call) for message in wanted.messages]
        async with aclosing(make(request, wanted, joined(streams, wanted.num_choices))) as responses:
            async for response in responses:
                yield response

    async def _embed(
        self, request: pb.ModelInferRequest, asked: reading.Asked, call: Call
    ) -> pb.ModelInferResponse:
        message, shape = reading.embedding_message(asked)
        answer = await self._services.embedding.embed(message, call)
        response = _begun(request, answer.model)
        values = [value for one in answer.embeddings for value in one.values]
        full = (*shape, len(answer.embeddings[0].values))
        add_output(
            response, Tensor(reading.VECTORS, "FP32", full, values), raw=bool(request.raw_input_contents)
        )
        response.parameters["prompt_tokens"].int64_param = answer.prompt_tokens
        return response

    async def _model(self, name: str, call: Call) -> model_pb2.Model:
        found = await self._services.model.get_model(model_service_pb2.GetModelRequest(name=name), call)
        return found.model


async def _generated(
    request: pb.ModelInferRequest, wanted: reading.Generation, events: Any
) -> AsyncGenerator[pb.ModelInferResponse, None]:
    """The whole answer as one response."""
    number = len(wanted.messages) * wanted.num_choices
    texts, reasons = [b""] * number, [b""] * number
    response = _begun(request, "")
    async with aclosing(events):
        async for event in events:
            kind = event.WhichOneof("event")
            if kind == "started":
                response.model_name = event.started.model
            elif kind == "delta":
                texts[event.delta.choice] += event.delta.text.encode()
                if event.delta.finish_reason:
                    reasons[event.delta.choice] = _FINISH[event.delta.finish_reason]
            elif kind == "done":
                _tell_usage(response, event.done.usage)
    _add_texts(response, request, wanted, wanted.shape, {"text_output": texts, "finish_reason": reasons})
    yield response


async def _streamed(
    request: pb.ModelInferRequest, wanted: reading.Generation, events: Any
) -> AsyncGenerator[pb.ModelInferResponse, None]:
    """A response for each piece of text, of shape (1); where there are several texts, "choice" says of which."""
    several = len(wanted.messages) * wanted.num_choices > 1
    model = ""
    async with aclosing(events):
        async for event in events:
            kind = event.WhichOneof("event")
            if kind == "started":
                model = event.started.model
                continue
            if kind == "queued":
                continue
            response = _begun(request, model)
            is_last = kind == "done"
            text, reason = b"", b""
            if is_last:
                _tell_usage(response, event.done.usage)
            else:
                text = event.delta.text.encode()
                reason = _FINISH.get(event.delta.finish_reason, b"")
                if not text and not reason:
                    continue
                if several:
                    response.parameters["choice"].int64_param = event.delta.choice
            response.parameters["triton_final_response"].bool_param = is_last
            _add_texts(response, request, wanted, (1,), {"text_output": [text], "finish_reason": [reason]})
            yield response


def _begun(request: pb.ModelInferRequest, model: str) -> pb.ModelInferResponse:
    return pb.ModelInferResponse(model_name=model, model_version=reading.VERSION, id=request.id)


def _add_texts(
    response: pb.ModelInferResponse,
    request: pb.ModelInferRequest,
    wanted: reading.Generation,
    shape: tuple[int, ...],
    texts: dict[str, list[bytes]],
) -> None:
    for name in wanted.outputs:
        tensor = Tensor(name, "BYTES", shape, texts[name])
        add_output(response, tensor, raw=bool(request.raw_input_contents))


def _tell_usage(response: pb.ModelInferResponse, usage: generate_pb2.Usage) -> None:
    for name in ("prompt_tokens", "completion_tokens", "cached_tokens"):
        response.parameters[name].int64_param = getattr(usage, name)
