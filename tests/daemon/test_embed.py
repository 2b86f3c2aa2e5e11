"""EmbeddingService over gRPC: checks, limits, one request at a time on an encoder, and models that cannot."""

import asyncio
import threading
from dataclasses import replace

import grpc
import numpy as np
import pytest

from daemon.access.keys import Key
from daemon.access.limits import Caller
from daemon.errors import ApiError, from_rpc_error
from daemon.services.call import Call
from daemon.services.embed import MAX_INPUTS
from daemon.text.template import ChatTemplate
from quantd.v1 import embed_pb2 as pb
from quantd.v1 import embedding_service_pb2 as rpc
from quantd.v1 import generate_pb2, model_service_pb2
from runtime.errors import ContextLengthError

N_EMBD = 4
MAX_TOKENS = 16


class Encoder:
    """What a fake model does to be an encoder: the vector of a text is that of its first bytes."""

    def __init__(self, model):
        model.generates = False
        model.config.n_embd = N_EMBD
        model.max_embedding_tokens = MAX_TOKENS
        model.embed = self.embed
        self.gate = threading.Event()
        self.gate.set()
        self.calls = []
        self.num_inside = self.most_inside = 0

    def embed(self, sequences):
        self.calls.append([list(one) for one in sequences])
        self.num_inside += 1
        self.most_inside = max(self.most_inside, self.num_inside)
        self.gate.wait(10)
        self.num_inside -= 1
        rows = np.array([[len(one), *[*one, 0, 0, 0][:3]] for one in sequences], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def encoder(world):
    made = Encoder(world.host.served.model)
    yield made
    made.gate.set()


def request(*texts, **fields):
    inputs = [
        pb.EmbedInput(text=one) if isinstance(one, str) else pb.EmbedInput(tokens={"ids": one})
        for one in texts
    ]
    return rpc.EmbedRequest(input=inputs, **fields)


async def refusal(world, asked):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.embedding.Embed(asked)
    return from_rpc_error(caught.value)


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_vectors_in_order(world, encoder):
    answer = await world.embedding.Embed(request("abc", [97, 98], "z"))
    assert answer.model == "tiny"
    assert [one.num_tokens for one in answer.embeddings] == [3, 2, 1]
    assert answer.prompt_tokens == 6
    for one, expected in zip(
        answer.embeddings, ([3, 97, 98, 99], [2, 97, 98, 0], [1, 122, 0, 0]), strict=True
    ):
        assert one.values == pytest.approx(expected / np.linalg.norm(expected), rel=1e-6)
    assert encoder.calls == [[[97, 98, 99], [97, 98], [122]]]
    count = world.host.metrics.registry.get_sample_value
    labels = {"model_name": "tiny", "engine": "0"}
    assert count("quantd_embeddings_total", labels) == 3
    assert count("quantd_embedding_tokens_total", labels) == 6


async def test_dimensions_are_scaled_to_length_1_again(world, encoder):
    answer = await world.embedding.Embed(request("abc", dimensions=2))
    assert answer.embeddings[0].values == pytest.approx(np.array([3, 97]) / np.hypot(3, 97), rel=1e-6)


async def test_long_requests_take_several_steps(world, encoder):
    answer = await world.embedding.Embed(request("a" * 10, "b" * 10, "c" * 6, "d"))
    assert [len(call) for call in encoder.calls] == [1, 2, 1]
    assert [one.num_tokens for one in answer.embeddings] == [10, 10, 6, 1]


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (request(), "input"),
        (request(*["a"] * (MAX_INPUTS + 1)), "input"),
        (request("a", ""), "input[1]"),
        (rpc.EmbedRequest(input=[pb.EmbedInput()]), "input[0]"),
        (request([]), "input[0]"),
        (request("a", [1, 257]), "input[1]"),
        (request([-1]), "input[0]"),
        (request("a", dimensions=0), "dimensions"),
        (request("a", dimensions=N_EMBD + 1), "dimensions"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_bad_requests_name_the_field(world, encoder, asked, field):
    error = await refusal(world, asked)
    assert (error.reason, error.field) == ("INVALID_ARGUMENT", field)
    assert not encoder.calls
    assert world.host.num_requests == 0


async def test_all_tokens_together_are_bounded(world, encoder, monkeypatch):
    monkeypatch.setattr("daemon.services.embed.MAX_TOTAL_TOKENS", 20)
    assert (await refusal(world, request("a" * 11, "b" * 10))).field == "input"
    assert not encoder.calls


async def test_a_text_that_is_too_long(world, encoder):
    error = await refusal(world, request("a", "b" * (MAX_TOKENS + 1)))
    assert (error.reason, error.field) == (ContextLengthError.reason, "input[1]")
    answer = await world.embedding.Embed(request("a", "b" * 40, [98] * 40 + [256], truncate=True))
    assert [(one.num_tokens, one.truncated) for one in answer.embeddings] == [
        (1, False),
        (MAX_TOKENS, True),
        (MAX_TOKENS, True),
    ]
    assert encoder.calls[-1][0][-1] == 256  # the model's last token stays


async def test_a_model_that_generates_is_refused_by_name(world):
    error = await refusal(world, request("a"))
    assert (error.reason, error.field) == ("INVALID_ARGUMENT", "model")
    assert "'tiny'" in error.message
    assert "no embeddings" in error.message


@pytest.mark.parametrize("chat", [False, True])
async def test_generating_on_an_encoder_is_refused_by_name(world, encoder, chat):
    if chat:
        message = generate_pb2.ChatMessage(role="user", content="Hi")
        stream = world.generate.Chat(generate_pb2.ChatRequest(messages=[message]))
    else:
        stream = world.generate.Generate(generate_pb2.GenerateRequest(text="Hi"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(stream))
    error = from_rpc_error(caught.value)
    assert (error.reason, error.field) == ("INVALID_ARGUMENT", "model")
    assert "'tiny' gives embeddings" in error.message


async def test_a_model_without_a_template_is_described_with_a_warning(world):
    asked = model_service_pb2.GetModelRequest(name="tiny")
    assert not (await world.model.GetModel(asked)).model.warnings
    slot = world.host.slots[0]
    slot.served = replace(slot.served, template=ChatTemplate.fallback())
    (warning,) = (await world.model.GetModel(asked)).model.warnings
    assert "ChatML" in warning


async def test_numbers_that_are_not_finite(world, encoder):
    world.host.served.model.embed = lambda sequences: np.full((len(sequences), N_EMBD), np.nan, np.float32)
    assert (await refusal(world, request("a"))).reason == "NON_FINITE_LOGITS"
    count = world.host.metrics.registry.get_sample_value
    assert count("quantd_requests_failed_total", {"reason": "NON_FINITE_LOGITS"}) == 1
    assert (await refusal(world, request("a", model="none"))).reason == "MODEL_NOT_FOUND"
    assert count("quantd_requests_rejected_total", {"reason": "MODEL_NOT_FOUND"}) == 1


async def test_one_request_at_a_time(world, encoder):
    encoder.gate.clear()
    calls = [asyncio.ensure_future(world.embedding.Embed(request(text))) for text in "ab"]
    await until(lambda: len(encoder.calls) == 1 and world.host.num_requests == 2)
    await asyncio.sleep(0.05)
    assert len(encoder.calls) == 1
    encoder.gate.set()
    await asyncio.gather(*calls)
    assert encoder.most_inside == 1


async def test_a_wait_ends_at_the_deadline(world, encoder):
    encoder.gate.clear()
    first = asyncio.ensure_future(world.embedding.Embed(request("a")))
    await until(lambda: encoder.calls)
    with pytest.raises(ApiError) as caught:
        await world.services.embedding.embed(request("b"), Call.within(0.05))
    assert caught.value.reason == "DEADLINE_EXCEEDED"
    encoder.gate.set()
    await first
    assert len(encoder.calls) == 1


async def test_unloading_waits_for_the_step_of_a_caller_that_left(world, encoder):
    encoder.gate.clear()
    call = asyncio.ensure_future(world.services.embedding.embed(request("a"), Call()))
    await until(lambda: encoder.calls)
    model, entry = world.host.served.model, world.host.served.entry
    call.cancel()
    await asyncio.sleep(0.02)
    call.cancel()  # however often
    await asyncio.sleep(0.02)
    assert not call.done()
    with pytest.raises(ApiError) as caught:
        await world.host.unload(entry)
    assert caught.value.reason == "MODEL_BUSY"
    assert not model.closed
    encoder.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await world.host.unload(entry)
    assert model.closed


async def test_a_keys_tokens_are_charged(world, encoder):
    caller = Caller(Key(name="app", sha256="0" * 64, tokens_per_minute=60))
    await world.services.embedding.embed(request("a" * 10, "b" * 10, "c" * 10), Call(caller=caller))
    await world.services.embedding.embed(request("d" * 10, "e" * 10), Call(caller=caller))
    with pytest.raises(ApiError) as caught:
        await world.services.embedding.embed(request("f" * 15), Call(caller=caller))
    assert caught.value.reason == "RATE_LIMITED"
    assert len(encoder.calls) == 5
    assert caller.num_running == caller.num_waiting == 0


async def test_the_deadline_ends_a_request_between_two_steps(world, encoder):
    encoder.gate.clear()
    call = asyncio.ensure_future(
        world.services.embedding.embed(request("a" * 10, "b" * 10), Call.within(0.1))
    )
    await until(lambda: encoder.calls)
    await asyncio.sleep(0.12)
    encoder.gate.set()
    with pytest.raises(ApiError) as caught:
        await call
    assert caught.value.reason == "DEADLINE_EXCEEDED"
    assert len(encoder.calls) == 1
