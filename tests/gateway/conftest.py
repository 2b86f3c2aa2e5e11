"""A fake backend that answers as told, the gateway over it, and a server for real clients."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time

import httpx2
import pytest
import structlog
import uvicorn

from daemon.errors import ApiError
from daemon.gateway.app import create_app
from daemon.gateway.backend import Health
from quantd.v1 import (
    embed_pb2,
    embedding_service_pb2,
    generate_service_pb2,
    model_pb2,
    model_service_pb2,
    tokenizer_service_pb2,
)
from quantd.v1 import generate_pb2 as pb

MODEL = model_pb2.Model(
    name="demo",
    loaded=True,
    architecture="llama",
    session_context_tokens=512,
    context_length=1024,
    modified_unix_ms=1_700_000_000_000,
    has_chat_template=True,
    quantization="Q4_K",
    recipe="Q4_K_M",
)


class FakeBackend:
    """Answers with `texts`; an exception among them is raised, a number is seconds of silence, a Delta is itself."""

    def __init__(self):
        self.texts = ["Hello", ", ", "wörld", "!"]
        self.finish = pb.FINISH_REASON_STOP
        self.stop_text = ""
        self.requests = []
        self.contexts = []
        self.num_open = 0
        self.num_closed = 0
        self.state = Health(live=True, ready=True, detail="ready")

    async def _answer(self, response, request, context):
        self.requests.append(request)
        self.contexts.append(context)
        self.num_open += 1
        try:
            if request.model != "demo":
                raise ApiError(
                    "MODEL_NOT_FOUND", f"There is no model {request.model[:200]!r}.", field="model"
                )
            with_logprobs = request.options.HasField("top_logprobs")
            started = False
            for n, text in enumerate(self.texts):
                if isinstance(text, Exception):
                    raise text
                if not started:
                    started = True
                    yield response(
                        started=pb.Started(
                            request_id="r", model="demo", created_unix_ms=1_700_000_000_123, prompt_tokens=5
                        )
                    )
                if isinstance(text, int | float):
                    await asyncio.sleep(text)
                    continue
                if isinstance(text, pb.Delta):
                    yield response(delta=text)
                    continue
                top = pb.TokenLogprob(token_id=n, token=text.encode(), logprob=-0.5)
                delta = pb.Delta(text=text, token_ids=[n])
                if with_logprobs:
                    delta.logprobs.append(
                        pb.TokenLogprob(token_id=n, token=text.encode(), logprob=-0.5, top=[top])
                    )
                yield response(delta=delta)
            yield response(
                done=pb.Done(
                    finish_reason=self.finish,
                    stop_text=self.stop_text,
                    usage=pb.Usage(prompt_tokens=5, completion_tokens=len(self.texts), cached_tokens=3),
                )
            )
        finally:
            self.num_open -= 1
            self.num_closed += 1

    def generate(self, request, context):
        return self._answer(generate_service_pb2.GenerateResponse, request, context)

    def chat(self, request, context):
        return self._answer(generate_service_pb2.ChatResponse, request, context)

    async def list_models(self, request, context):
        other = model_pb2.Model(name="other")
        return model_service_pb2.ListModelsResponse(models=[MODEL, other])

    async def get_model(self, request, context):
        if request.name not in ("", "demo"):
            raise ApiError("MODEL_NOT_FOUND", f"There is no model {request.name[:200]!r}.", field="name")
        return model_service_pb2.GetModelResponse(model=MODEL)

    async def plan_memory(self, request, context):
        plan = model_pb2.MemoryPlan(kv_arena_bytes=1 << 20, sessions=4, kv_type="f16")
        return model_service_pb2.PlanMemoryResponse(plan=plan)

    async def tokenize(self, request, context):
        return tokenizer_service_pb2.TokenizeResponse(ids=[1, 2])

    async def detokenize(self, request, context):
        return tokenizer_service_pb2.DetokenizeResponse(text="x")

    async def render_chat(self, request, context):
        self.requests.append(request.request)
        return tokenizer_service_pb2.RenderChatResponse(prompt="<prompt>", ids=[1, 2, 3])

    async def show_model(self, request, context):
        self.requests.append(request)
        found = await self.get_model(request, context)
        answer = model_service_pb2.ShowModelResponse(
            model=found.model, template="{{ tools }} <think>", system="Be brief"
        )
        answer.parameters.sampling.temperature = 0.5
        answer.parameters.max_tokens = 9
        answer.parameters.stop.append("x")
        answer.metadata_json["general.architecture"] = '"llama"'
        answer.metadata_json["x.list"] = "null"
        return answer

    async def copy_model(self, request, context):
        self.requests.append(request)
        return model_service_pb2.CopyModelResponse()

    async def delete_model(self, request, context):
        self.requests.append(request)
        return model_service_pb2.DeleteModelResponse()

    async def create_model(self, request, context):
        self.requests.append(request)
        if request.quantize:
            progress = model_service_pb2.CreateProgress(
                status=f"quantizing to {request.quantize}", completed_bytes=1, total_bytes=2
            )
            yield model_service_pb2.CreateModelResponse(progress=progress)
        yield model_service_pb2.CreateModelResponse(model=MODEL)

    async def has_blob(self, request, context):
        return model_service_pb2.HasBlobResponse(exists=request.digest == "sha256:aa")

    async def upload_blob(self, parts, context):
        self.requests += [part async for part in parts]
        return model_service_pb2.UploadBlobResponse()

    async def pull_model(self, request, context):
        self.requests.append(request)
        for text in self.texts:
            if isinstance(text, Exception):
                raise text
            status = text if isinstance(text, str) else "pulling"
            progress = model_service_pb2.PullProgress(status=status, digest="sha256:aa", total_bytes=9)
            yield model_service_pb2.PullModelResponse(progress=progress)
        yield model_service_pb2.PullModelResponse(model=MODEL)

    async def list_running(self, request, context):
        one = model_service_pb2.RunningModel(model=MODEL, memory_bytes=1000)
        return model_service_pb2.ListRunningResponse(models=[one])

    async def load_model(self, request, context):
        self.requests.append(request)
        return model_service_pb2.LoadModelResponse(model=MODEL)

    async def unload_model(self, request, context):
        self.requests.append(request)
        return model_service_pb2.UnloadModelResponse()

    async def embed(self, request, context):
        """Vectors of 4 numbers; the first tells the length of the input, and length 1 is kept."""
        self.requests.append(request)
        self.contexts.append(context)
        if isinstance(self.texts[0], Exception):
            raise self.texts[0]
        answer = embedding_service_pb2.EmbedResponse(model=request.model)
        for one in request.input:
            size = len(one.text) or len(one.tokens.ids)
            first = 1 / (1 + size)
            values = [first, (1 - first**2) ** 0.5, 0, 0]
            answer.embeddings.append(embed_pb2.Embedding(values=values, num_tokens=size))
            answer.prompt_tokens += size
        return answer

    async def health(self):
        return self.state


@pytest.fixture(autouse=True)
def logs():
    """Keep the log from the terminal: drawing tracebacks takes seconds."""
    with structlog.testing.capture_logs() as entries:
        yield entries


@pytest.fixture
def backend():
    return FakeBackend()


@pytest.fixture
async def client(backend):
    """An HTTP client straight into the application."""
    transport = httpx2.ASGITransport(app=create_app(backend))
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client


class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):
        yield


@pytest.fixture
def serve(backend):
    """Run the application on a free port in a thread; gives its URL."""
    running = []

    def start(app=None, **options):
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(app or create_app(backend, **options), log_level="warning", lifespan="off")
        server = Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        running.append((server, thread, listener))
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for server, thread, listener in running:
        server.should_exit = True
        thread.join(10)
        listener.close()


def chat_body(**changes):
    return {"model": "demo", "messages": [{"role": "user", "content": "Hi"}], **changes}


@pytest.fixture
def make_chat():
    return chat_body
