"""The Open Inference Protocol over real gRPC and a fake engine, with messages that are built by hand."""

import asyncio
import struct

import grpc
import numpy as np
import pytest

from daemon.access.keys import Key
from daemon.access.limits import Caller
from daemon.errors import from_rpc_error
from quantd.kserve import inference_pb2 as pb
from quantd.kserve import inference_pb2_grpc
from tests.daemon.test_embed import Encoder
from tests.daemon.test_generate import collect, until


@pytest.fixture
def stub(world):
    return inference_pb2_grpc.GRPCInferenceServiceStub(world.channel)


@pytest.fixture
def encoder(world):
    return Encoder(world.host.served.model)


def tensor(name, datatype, values, shape=None):
    field = {
        "BYTES": "bytes_contents",
        "INT32": "int_contents",
        "INT64": "int64_contents",
        "UINT64": "uint64_contents",
        "FP32": "fp32_contents",
        "BOOL": "bool_contents",
    }[datatype]
    contents = pb.InferTensorContents(**{field: values})
    return pb.ModelInferRequest.InferInputTensor(
        name=name, datatype=datatype, shape=[len(values)] if shape is None else shape, contents=contents
    )


def parameter(value):
    field = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
    return pb.InferParameter(**{field: value})


def request(*texts, inputs=(), outputs=(), shape=None, **parameters):
    return pb.ModelInferRequest(
        model_name="tiny",
        id="r1",
        inputs=[tensor("text_input", "BYTES", [one.encode() for one in texts], shape), *inputs],
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs],
        parameters={name: parameter(value) for name, value in parameters.items()},
    )


def raw(*texts, **parameters):
    asked = request(*texts, **parameters)
    asked.inputs[0].ClearField("contents")
    asked.raw_input_contents.append(
        b"".join(struct.pack("<I", len(one.encode())) + one.encode() for one in texts)
    )
    return asked


def outputs(response):
    return {
        one.name: (list(one.shape), list(one.contents.bytes_contents) or list(one.contents.fp32_contents))
        for one in response.outputs
    }


async def refusal(stub, asked):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(asked)
    return from_rpc_error(caught.value)


async def test_the_server_and_its_models_describe_themselves(world, stub):
    assert (await stub.ServerLive(pb.ServerLiveRequest())).live
    assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
    described = await stub.ServerMetadata(pb.ServerMetadataRequest())
    assert described.name == "quantd"
    assert described.version
    for name, version, ready in (("tiny", "", True), ("tiny", "1", True), ("nobody", "", False)):
        answer = await stub.ModelReady(pb.ModelReadyRequest(name=name, version=version))
        assert answer.ready == ready
    metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny"))
    assert (metadata.name, list(metadata.versions)) == ("tiny", ["1"])
    assert [(one.name, one.datatype, list(one.shape)) for one in metadata.inputs] == [
        ("text_input", "BYTES", [-1])
    ]
    assert [one.name for one in metadata.outputs] == ["text_output", "finish_reason"]
    world.host.drain()
    assert not (await stub.ServerReady(pb.ServerReadyRequest())).ready
    assert not (await stub.ModelReady(pb.ModelReadyRequest(name="tiny"))).ready


async def test_a_text_and_its_usage(stub):
    answer = await stub.ModelInfer(request("hi"))
    assert (answer.model_name, answer.model_version, answer.id) == ("tiny", "1", "r1")
    assert outputs(answer) == {"text_output": ([1], [b"hello"]), "finish_reason": ([1], [b"stop"])}
    used = {name: value.int64_param for name, value in answer.parameters.items()}
    assert used == {"prompt_tokens": 2, "completion_tokens": 6, "cached_tokens": 0}
    assert not answer.raw_output_contents


async def test_several_texts_in_the_shape_of_the_request(stub):
    answer = outputs(await stub.ModelInfer(request("a", "b", "c", "d", shape=[2, 2], max_tokens=2)))
    assert answer == {
        "text_output": ([2, 2], [b"he"] * 4),
        "finish_reason": ([2, 2], [b"length"] * 4),
    }
    answer = outputs(await stub.ModelInfer(request("a", "b", n=2, outputs=["text_output"])))
    assert answer == {"text_output": ([2, 2], [b"hello"] * 4)}


async def test_raw_contents_are_answered_in_raw_contents(stub):
    answer = await stub.ModelInfer(raw("a", "öß"))
    assert list(answer.raw_output_contents) == [
        (struct.pack("<I", 5) + b"hello") * 2,
        (struct.pack("<I", 4) + b"stop") * 2,
    ]
    assert all(not one.HasField("contents") for one in answer.outputs)


async def test_parameters_of_every_kind_reach_the_engine(world, stub):
    asked = request(
        "hi",
        inputs=[
            tensor("top_k", "INT32", [7], [1, 1]),
            tensor("min_p", "FP32", [0.25]),
            tensor("stop", "BYTES", [b"x", b"y"]),
            tensor("ignore_eos", "BOOL", [True]),
            tensor("sampling_parameters", "BYTES", [b'{"presence_penalty": "0.5", "logit_bias": {"7": 1}}']),
        ],
        temperature=0.5,
        max_tokens=3,
        seed=11,
        top_p="0.75",
        timeout=5_000_000,
    )
    await stub.ModelInfer(asked)
    sent = world.engine.requests[-1]
    sampling = sent.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.5, 7, 0.75, 0.25)
    assert (sampling.seed, sampling.presence_penalty, sampling.logit_bias) == (11, 0.5, ((7, 1.0),))
    assert sent.max_tokens == 3
    assert not sent.stop_token_ids
    assert sent.deadline is not None


async def test_tokens_instead_of_text(world, stub):
    asked = request("x", max_tokens=1)
    del asked.inputs[:]
    asked.inputs.append(tensor("input_ids", "INT64", [104, 105, 97, 98], [2, 2]))
    answer = outputs(await stub.ModelInfer(asked))
    assert answer["text_output"] == ([2], [b"h", b"h"])
    assert sorted(one.prompt_ids for one in world.engine.requests[-2:]) == [[97, 98], [104, 105]]


async def test_echo_under_both_names(stub):
    for name, value in (("echo", True), ("exclude_input_in_output", False)):
        assert outputs(await stub.ModelInfer(request("hi", **{name: value})))["text_output"][1] == [
            b"hihello"
        ]


def changed(change):
    asked = request("hi")
    change(asked)
    return asked


BAD = {
    "parameters['nothing']": request("hi", nothing=1),
    "temperature": request("hi", temperature="warm"),
    "max_tokens": request("hi", max_tokens=1.5),
    "options.sampling.temperature": request("hi", temperature=3.0),
    "outputs": request("hi", outputs=["nothing"]),
    "stream": request("hi", stream=True),
    "logprobs": request("hi", logprobs=1),
    "timeout": request("hi", timeout=-1),
    "parameters['dimensions']": request("hi", dimensions=3),
    "inputs": pb.ModelInferRequest(model_name="tiny"),
    "inputs['text_input']": request("hi", shape=[3]),
    "inputs['seed']": request("hi", inputs=[tensor("seed", "UINT64", [1, 2])]),
    'inputs["a\'"]': request("hi", inputs=[tensor("a'", "INT32", [1])]),
    "model_version": changed(lambda one: setattr(one, "model_version", "2")),
    "raw_input_contents": changed(lambda one: one.raw_input_contents.extend([b"", b""])),
    "prompt": request(*["x"] * 65),
    "sampling_parameters['a']": request("hi", inputs=[tensor("sampling_parameters", "BYTES", [b'{"a": 1}'])]),
    "inputs['sampling_parameters']": request("hi", inputs=[tensor("sampling_parameters", "BYTES", [b"["])]),
}


@pytest.mark.parametrize("field", BAD)
async def test_what_is_wrong_is_named(stub, field):
    error = await refusal(stub, BAD[field])
    assert (error.reason, error.field) == ("INVALID_ARGUMENT", field)


@pytest.mark.parametrize(
    "change",
    [
        lambda one: setattr(one.inputs[0], "datatype", "FP16"),
        lambda one: one.inputs[0].parameters["classification"].MergeFrom(parameter(1)),
        lambda one: one.inputs.append(one.inputs[0]),
        lambda one: one.inputs[0].shape.extend([-1, -1]),
        lambda one: one.inputs[0].contents.bytes_contents.__setitem__(0, b"\xff"),
        lambda one: one.inputs[0].contents.int_contents.append(1),
        lambda one: one.raw_input_contents.append(b"\0\0"),
        lambda one: (one.inputs[0].ClearField("contents"), one.raw_input_contents.append(b"\0\0")),
        lambda one: (one.inputs[0].ClearField("contents"), one.raw_input_contents.append(b"\5\0\0\0abc")),
    ],
)
async def test_tensors_that_do_not_hold_together(stub, change):
    assert (await refusal(stub, changed(change))).field == "inputs['text_input']"


async def test_an_unknown_model_and_bytes_that_are_no_message(world, stub):
    asked = request("hi")
    asked.model_name = "nobody"
    assert (await refusal(stub, asked)).reason == "MODEL_NOT_FOUND"
    for kind in ("unary_unary", "stream_stream"):
        name = "ModelInfer" if kind == "unary_unary" else "ModelStreamInfer"
        call = getattr(world.channel, kind)(f"/inference.GRPCInferenceService/{name}")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await (call(b"\xff") if kind == "unary_unary" else collect(call(iter([b"\xff"]))))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stream_tells_text_reason_and_usage(stub):
    events = await collect(stub.ModelStreamInfer(iter([request("hi")])))
    assert all(not event.error_message for event in events)
    responses = [event.infer_response for event in events]
    texts = [outputs(one)["text_output"] for one in responses]
    assert b"".join(text for _, (text,) in texts) == b"hello"
    assert len(responses) == 7
    assert outputs(responses[-2])["finish_reason"] == ([1], [b"stop"])
    assert [one.parameters["triton_final_response"].bool_param for one in responses] == [False] * 6 + [True]
    assert responses[-1].parameters["completion_tokens"].int64_param == 6
    assert {one.id for one in responses} == {"r1"}


async def test_requests_of_one_stream_fail_alone(stub):
    good, bad, whole = request("hi", n=2), request("hi", temperature=9.0), request("hi", stream=False)
    bad.id, whole.id = "bad", "whole"
    events = await collect(stub.ModelStreamInfer(iter([good, bad, whole])))
    failed = [event for event in events if event.error_message]
    assert [event.infer_response.id for event in failed] == ["bad"]
    assert failed[0].error_message.startswith("INVALID_ARGUMENT: ")
    texts = {0: b"", 1: b""}
    for event in events:
        response = event.infer_response
        if response.id == "r1" and not response.parameters["triton_final_response"].bool_param:
            texts[response.parameters["choice"].int64_param] += outputs(response)["text_output"][1][0]
    assert texts == {0: b"hello", 1: b"hello"}
    (answer,) = [event.infer_response for event in events if event.infer_response.id == "whole"]
    assert outputs(answer)["text_output"] == ([1], [b"hello"])


async def test_a_cancelled_stream_frees_its_sessions(world, stub):
    world.engine.prefill_s = 60
    call = stub.ModelStreamInfer(iter([request("a"), request("b")]))
    waiting = asyncio.ensure_future(collect(call))
    await until(lambda: len(world.engine.running) == 2)
    call.cancel()
    await until(lambda: not world.engine.running)
    await until(lambda: world.host.num_requests == 0)
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_timeout_ends_a_request(world, stub):
    world.engine.prefill_s = 60
    assert (await refusal(stub, request("hi", timeout=50_000))).reason == "DEADLINE_EXCEEDED"


async def test_limits_of_the_caller_hold(world, stub, monkeypatch):
    caller = Caller(Key(name="ci", sha256="0" * 64, tokens_per_minute=1))
    monkeypatch.setattr(world.services.gate, "caller", lambda _: caller)
    await stub.ModelInfer(request("hi"))
    assert (await refusal(stub, request("hi"))).reason == "RATE_LIMITED"


async def test_an_encoder_gives_vectors(world, stub, encoder):
    metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny"))
    assert [(one.name, one.datatype) for one in metadata.outputs] == [("embedding", "FP32")]
    shape, values = outputs(await stub.ModelInfer(request("abc", "z")))["embedding"]
    assert shape == [2, 4]
    expected = np.array([[3, 97, 98, 99], [1, 122, 0, 0]], np.float32)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert values == pytest.approx(expected.ravel().tolist(), rel=1e-6)
    answer = await stub.ModelInfer(raw("abc", "z", dimensions=2))
    got = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(answer.outputs[0].shape)
    assert got.shape == (2, 2)
    assert np.allclose(np.linalg.norm(got, axis=1), 1)
    assert answer.parameters["prompt_tokens"].int64_param == 4
    assert (await refusal(stub, request("abc", temperature=1.0))).field == "parameters['temperature']"
    assert (await refusal(stub, request("a" * 99))).reason == "CONTEXT_LENGTH_EXCEEDED"
    assert outputs(await stub.ModelInfer(request("a" * 99, truncate=True)))["embedding"][0] == [1, 4]


async def test_probes_need_no_key_and_requests_do(world, stub, monkeypatch):
    from daemon.errors import ApiError

    def nobody(_):
        raise ApiError("UNAUTHENTICATED", "An API key is needed.")

    monkeypatch.setattr(world.services.gate, "caller", nobody)
    assert (await stub.ServerLive(pb.ServerLiveRequest())).live
    assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
    assert (await refusal(stub, request("hi"))).reason == "UNAUTHENTICATED"
    for call in (
        stub.ModelReady(pb.ModelReadyRequest(name="tiny")),
        stub.ModelMetadata(pb.ModelMetadataRequest()),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
