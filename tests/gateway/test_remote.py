"""The gateway as a process of its own: the same answers over gRPC."""

from __future__ import annotations

import asyncio

import grpc.aio
import httpx2
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from daemon.errors import ApiError, to_rpc_status
from daemon.gateway.app import create_app
from daemon.gateway.backend import CallContext
from daemon.gateway.remote import RemoteBackend
from quantd.v1 import (
    embedding_service_pb2_grpc,
    generate_service_pb2_grpc,
    model_service_pb2_grpc,
    tokenizer_service_pb2_grpc,
)
from quantd.v1 import generate_pb2 as pb
from quantd.v1 import tokenizer_service_pb2 as tokenizer_rpc

CODES = {code.value[0]: code for code in grpc.StatusCode}


async def abort(context, failure):
    status = to_rpc_status(failure)
    details = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(CODES[status.code], status.message, details)


class Generate(generate_service_pb2_grpc.GenerateServiceServicer):
    def __init__(self, backend):
        self.backend = backend

    async def Generate(self, request, context):
        async for event in self._run(self.backend.generate, request, context):
            yield event

    async def Chat(self, request, context):
        async for event in self._run(self.backend.chat, request, context):
            yield event

    async def _run(self, method, request, context):
        metadata = dict(context.invocation_metadata())
        try:
            async for event in method(request, CallContext(metadata["x-request-id"])):
                yield event
        except ApiError as failure:
            await abort(context, failure)

    async def GenerateUnary(self, request, context):
        await abort(context, ApiError("NOT_FOUND", "No."))

    ChatUnary = GenerateUnary


class Models(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, backend):
        self.backend = backend

    async def ListModels(self, request, context):
        return await self.backend.list_models(request, None)

    async def GetModel(self, request, context):
        try:
            return await self.backend.get_model(request, None)
        except ApiError as failure:
            await abort(context, failure)

    async def PlanMemory(self, request, context):
        return await self.backend.plan_memory(request, None)

    async def LoadModel(self, request, context):
        await abort(context, ApiError("NOT_FOUND", "No."))

    UnloadModel = LoadModel


class Tokens(tokenizer_service_pb2_grpc.TokenizerServiceServicer):
    async def Tokenize(self, request, context):
        return tokenizer_rpc.TokenizeResponse(ids=range(len(request.text)))

    async def Detokenize(self, request, context):
        return tokenizer_rpc.DetokenizeResponse(text="x" * len(request.ids))


class Embeddings(embedding_service_pb2_grpc.EmbeddingServiceServicer):
    def __init__(self, backend):
        self.backend = backend

    async def Embed(self, request, context):
        try:
            return await self.backend.embed(request, None)
        except ApiError as failure:
            await abort(context, failure)


@pytest.fixture
async def remote(backend):
    """A RemoteBackend that talks to a gRPC server over the fake backend."""
    server = grpc.aio.server()
    generate_service_pb2_grpc.add_GenerateServiceServicer_to_server(Generate(backend), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Models(backend), server)
    tokenizer_service_pb2_grpc.add_TokenizerServiceServicer_to_server(Tokens(), server)
    embedding_service_pb2_grpc.add_EmbeddingServiceServicer_to_server(Embeddings(backend), server)
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    remote = RemoteBackend(f"127.0.0.1:{port}")
    remote.servicer = servicer
    yield remote
    await remote.close()
    await server.stop(0)


@pytest.fixture
async def gateway(remote):
    transport = httpx2.ASGITransport(app=create_app(remote))
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


async def test_same_embeddings(gateway, client, backend):
    body = {"model": "demo", "input": ["abc", "de"]}
    there, here = [await one.post("/v1/embeddings", json=body) for one in (gateway, client)]
    assert there.status_code == 200
    assert there.json() == here.json()
    backend.texts = [ApiError("CONTEXT_LENGTH_EXCEEDED", "too long", field="input[1]")]
    refused = await gateway.post("/v1/embeddings", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input[1]")


async def test_same_answers(gateway, client, make_chat):
    for path, body in (
        ("/v1/chat/completions", make_chat()),
        ("/v1/chat/completions", make_chat(stream=True, stream_options={"include_usage": True})),
        ("/v1/completions", {"model": "demo", "prompt": "x"}),
        ("/v1/chat/completions", make_chat(model="nope")),
    ):
        near = await client.post(path, json=body)
        far = await gateway.post(path, json=body)
        assert far.status_code == near.status_code
        far_id, near_id = far.headers["x-request-id"], near.headers["x-request-id"]
        assert far.text.replace(far_id, "ID") == near.text.replace(near_id, "ID")
    assert (await gateway.get("/v1/models")).text == (await client.get("/v1/models")).text
    assert (await gateway.get("/v1/models/x")).text == (await client.get("/v1/models/x")).text
    assert (await gateway.get("/api/info")).text == (await client.get("/api/info")).text


@pytest.mark.parametrize("stream", [False, True])
async def test_same_errors(gateway, client, backend, make_chat, stream):
    for reason in ("QUEUE_FULL", "CONTEXT_LENGTH_EXCEEDED", "UNAVAILABLE", "NON_FINITE_LOGITS"):
        backend.texts = [ApiError(reason, "No.", field="messages")]
        body = make_chat(stream=stream)
        near = await client.post("/v1/chat/completions", json=body)
        far = await gateway.post("/v1/chat/completions", json=body)
        assert (far.status_code, far.text) == (near.status_code, near.text)
        assert far.headers.get("retry-after") == near.headers.get("retry-after")


async def test_health(remote):
    await remote.servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    assert (await remote.health()).ready
    await remote.servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    state = await remote.health()
    assert (state.live, state.ready) == (True, False)


async def test_tokens(remote):
    context = CallContext("id")
    assert list((await remote.tokenize(tokenizer_rpc.TokenizeRequest(text="abc"), context)).ids) == [0, 1, 2]
    assert (await remote.detokenize(tokenizer_rpc.DetokenizeRequest(ids=[1, 2]), context)).text == "xx"


async def test_no_daemon(make_chat):
    remote = RemoteBackend("127.0.0.1:1")
    transport = httpx2.ASGITransport(app=create_app(remote))
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for stream in (False, True):
            answer = await client.post("/v1/chat/completions", json=make_chat(stream=stream))
            assert answer.status_code == 503
            assert answer.headers["retry-after"]
            assert answer.json()["error"]["code"] == "unavailable"
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/livez")).status_code == 200
    await remote.close()


async def test_cancelling_ends_the_call(remote, backend):
    backend.texts = [30.0]
    request = pb.ChatRequest(model="demo", messages=[pb.ChatMessage(role="user", content="x")])

    async def read():
        async for _ in remote.chat(request, CallContext("id")):
            pass

    task = asyncio.create_task(read())
    await wait_until(lambda: backend.num_open == 1)
    task.cancel()
    await wait_until(lambda: backend.num_open == 0)

    events = remote.chat(request, CallContext("id"))
    await anext(events)
    await wait_until(lambda: backend.num_open == 1)
    await events.aclose()
    await wait_until(lambda: backend.num_open == 0)


async def wait_until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)
