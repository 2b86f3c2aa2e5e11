"""The model folder and the model host: names that escape nowhere, swaps that never lose a served model."""

import asyncio
import os
import socket

import grpc
import pytest

from daemon.access.keys import Key, KeyFile, hash_of, new_secret, write_keys
from daemon.errors import ApiError, from_rpc_error
from daemon.services.folder import ModelFolder, entry_of, model_name
from daemon.services.host import State
from quantd.v1 import generate_pb2 as pb
from quantd.v1 import model_service_pb2 as rpc
from quantd.v1 import quantize_service_pb2, tokenizer_service_pb2
from runtime.errors import UnsupportedModelError
from tests.daemon.fakes import plan, write_gguf


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


HOSTILE = [
    "../secret",
    "../models/other",
    "..",
    ".",
    "/etc/passwd",
    "/dev/zero",
    "other.gguf",
    "other\0",
    "other/",
    "./other",
    "%2e%2e/secret",
    "link-out",
    "sub/inner",
    "fifo",
    "socket",
    "folder",
    ".hidden",
    "x" * 5000,
    "other\n",
    "-other",
]


@pytest.fixture
def folder(tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    (tmp_path / "secret.gguf").write_bytes(b"GGUF")
    (models / "other.gguf").write_bytes(b"GGUF")
    (models / ".hidden.gguf").write_bytes(b"GGUF")
    (models / "notes.txt").write_bytes(b"")
    (models / "link-out.gguf").symlink_to(tmp_path / "secret.gguf")
    (models / "sub").mkdir()
    (models / "sub" / "inner.gguf").write_bytes(b"GGUF")
    (models / "folder.gguf").mkdir()
    os.mkfifo(models / "fifo.gguf")
    for index in (1, 2):
        (models / f"big-0000{index}-of-00002.gguf").write_bytes(b"GGUF")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(models / "socket.gguf"))
    return ModelFolder(models)


def test_only_regular_files_of_the_folder_itself_are_models(folder):
    assert [entry.name for entry in folder.entries()] == ["big", "other"]
    assert folder.find("big").path.name == "big-00001-of-00002.gguf"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_find_nothing(folder, name):
    assert folder.find(name) is None


@pytest.mark.parametrize(
    "name", ["", "../x", "a/b", "/abs", ".x", "-x", "x\0", "x\n", "x" * 300, "x-00001-of-00002", ".gguf"]
)
def test_hostile_names_create_nothing(folder, name):
    with pytest.raises(ApiError) as caught:
        folder.new_file(name, "output")
    assert (caught.value.reason, caught.value.field) == ("INVALID_ARGUMENT", "output")


@pytest.mark.parametrize("name", ["other", "other.gguf", "big", "folder", "link-out", "fifo"])
def test_taken_names_are_refused(folder, name):
    with pytest.raises(ApiError) as caught:
        folder.new_file(name, "output")
    assert caught.value.reason == "OUTPUT_EXISTS"


def test_new_names_get_the_suffix_once(folder):
    assert folder.new_file("new", "output").name == folder.new_file("new.gguf", "output").name == "new.gguf"


def test_without_a_folder_there_is_nothing(tmp_path):
    assert ModelFolder(None).entries() == ModelFolder(tmp_path / "gone").entries() == []
    with pytest.raises(ApiError) as caught:
        ModelFolder(None).new_file("x", "output")
    assert caught.value.reason == "PERMISSION_DENIED"


def test_a_second_folder_takes_what_is_made_and_shows_it(folder, tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    (made / "other.gguf").write_bytes(b"later")
    (made / "tiny.gguf").write_bytes(b"GGUF")
    both = ModelFolder(folder.path, made)
    assert [entry.name for entry in both.entries()] == ["big", "other", "tiny"]
    assert both.find("other").path.parent == folder.path
    assert both.new_file("new", "output") == made / "new.gguf"
    with pytest.raises(ApiError) as caught:
        both.new_file("big", "output")
    assert caught.value.reason == "OUTPUT_EXISTS"


def test_names_of_split_models(tmp_path):
    assert model_name(tmp_path / "a-00001-of-00003.gguf") == "a"
    assert model_name(tmp_path / "a.gguf") == "a"


async def test_list_get_and_describe(world):
    write_gguf(world.folder / "other.gguf")
    (world.folder / "broken.gguf").write_bytes(b"no gguf at all")
    models = (await world.model.ListModels(rpc.ListModelsRequest())).models
    assert [(model.name, model.loaded) for model in models] == [("tiny", True), ("other", False)]
    assert (models[0].session_context_tokens, models[0].quantization, models[0].num_parameters) == (
        128,
        "Q4_K",
        1000,
    )
    other = (await world.model.GetModel(rpc.GetModelRequest(name="other"))).model
    assert (other.architecture, other.quantization, other.num_parameters) == ("llama", "F16", 128)
    assert other.recipe == ""  # the file does not say
    assert (other.vocab_size, other.context_length, other.has_chat_template) == (3, 512, True)
    assert (await world.model.GetModel(rpc.GetModelRequest())).model.name == "tiny"
    assert (await refusal(world.model.GetModel(rpc.GetModelRequest(name="nope")))).reason == "MODEL_NOT_FOUND"
    error = await refusal(world.model.GetModel(rpc.GetModelRequest(name="broken")))
    assert error.reason == "INVALID_MODEL_FILE"
    assert str(world.folder) not in error.message


@pytest.mark.parametrize("name", [*(name for name in HOSTILE if "\0" not in name), ""])
async def test_hostile_names_over_grpc(world, name):
    for call in (
        world.model.LoadModel(rpc.LoadModelRequest(name=name)),
        world.model.UnloadModel(rpc.UnloadModelRequest(name=name)),
        world.model.PlanMemory(rpc.PlanMemoryRequest(name=name or "x/y")),
    ):
        error = await refusal(call)
        assert error.reason in ("MODEL_NOT_FOUND", "INVALID_ARGUMENT")
        assert str(world.folder) not in error.message


async def test_models_are_loaded_beside_each_other(world):
    write_gguf(world.folder / "other.gguf")
    response = await world.model.LoadModel(rpc.LoadModelRequest(name="other"))
    assert (response.model.name, response.model.loaded, response.plan.total_bytes) == ("other", True, 37)
    assert not world.fake.models[0].closed
    again = await world.model.LoadModel(rpc.LoadModelRequest(name="other"))
    assert again.model.loaded
    assert len(world.fake.models) == 2
    for name, answers in (("tiny", "tiny"), ("other", "other"), ("", "tiny")):
        events = [event async for event in world.generate.Generate(pb.GenerateRequest(model=name, text="hi"))]
        assert events[0].started.model == answers


async def test_the_first_request_that_names_a_model_loads_it(world):
    write_gguf(world.folder / "other.gguf")
    request = tokenizer_service_pb2.TokenizeRequest(model="other", text="hi")
    assert len((await world.tokenizer.Tokenize(request)).ids) == 2
    request = pb.GenerateRequest(model="other", text="hi", keep_alive_ms=60_000)
    events = [event async for event in world.generate.Generate(request)]
    assert events[0].started.model == "other"
    running = (await world.model.ListRunning(rpc.ListRunningRequest())).models
    assert [one.model.name for one in running] == ["other", "tiny"]
    assert running[0].expires_unix_ms > running[0].loaded_unix_ms > 0
    assert running[1].expires_unix_ms == 0
    assert (running[0].num_requests, running[0].kv_arena_bytes) == (0, 20)
    error = await refusal(world.tokenizer.Tokenize(tokenizer_service_pb2.TokenizeRequest(model="nope")))
    assert (error.reason, error.field) == ("MODEL_NOT_FOUND", "model")


async def test_a_request_may_ask_for_a_smaller_context_and_nothing_is_loaded_again(world):
    options = pb.GenerationOptions(context_tokens=20, ignore_eos=True)
    request = pb.GenerateRequest(text="0123456789abcdef", options=options)
    events = [event async for event in world.generate.Generate(request)]
    assert events[-1].done.usage.completion_tokens == 4
    request.text += "more than twenty"
    error = await refusal(world.generate.Generate(request).read())
    assert error.reason == "CONTEXT_LENGTH_EXCEEDED"
    for tokens in (15, -1, 2**31 - 1):
        request = pb.GenerateRequest(text="hi", options=pb.GenerationOptions(context_tokens=tokens))
        error = await refusal(world.generate.Generate(request).read())
        assert (error.reason, error.field) == ("INVALID_ARGUMENT", "options.context_tokens")
    options = pb.GenerationOptions(context_tokens=2**20, ignore_eos=True)
    events = [
        event async for event in world.generate.Generate(pb.GenerateRequest(text="hi", options=options))
    ]
    assert events[-1].done.usage.completion_tokens == 126
    assert len(world.fake.models) == 1


async def test_unloading_is_refused_while_requests_run(world):
    world.engine.prefill_s = 60
    call = world.generate.Generate(pb.GenerateRequest(text="hi"))
    await call.read()
    unload = rpc.UnloadModelRequest(name="tiny")
    assert (await refusal(world.model.UnloadModel(unload))).reason == "MODEL_BUSY"
    unload.when_idle = True
    assert (await world.model.UnloadModel(unload)).pending
    assert not world.fake.models[0].closed
    call.cancel()
    for _ in range(500):
        if world.fake.models[0].closed:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it was never unloaded")


async def test_a_plan_that_does_not_fit_leaves_the_other_model(world):
    write_gguf(world.folder / "other.gguf")
    world.fake.next_plan = plan(total_bytes=1000, fits=False, explanation="too much: 1000 bytes")
    error = await refusal(world.model.LoadModel(rpc.LoadModelRequest(name="other")))
    assert (error.reason, error.details["total_bytes"]) == ("INSUFFICIENT_MEMORY", "1000")
    assert world.host.state is State.READY
    assert not world.fake.models[0].closed


async def test_a_model_that_cannot_be_loaded_leaves_the_other_model(world):
    write_gguf(world.folder / "other.gguf")
    world.fake.load_error = UnsupportedModelError("unknown architecture")
    assert (
        await refusal(world.model.LoadModel(rpc.LoadModelRequest(name="other")))
    ).reason == "UNSUPPORTED_MODEL"
    assert world.host.state is State.READY
    assert world.host.served.name == "tiny"


async def test_a_model_that_fails_its_warm_up_is_not_served(world):
    await world.host.unload(world.host.find("tiny"))

    def break_engine(engine):
        engine.fails_warm_up = True
        engine.error = "non_finite_logits"

    world.fake.on_engine = break_engine
    with pytest.raises(ApiError) as caught:
        await world.host.load_path(world.folder / "tiny.gguf")
    assert caught.value.reason == "UNSUPPORTED_MODEL"
    assert world.host.served is None
    assert world.fake.models[-1].closed


async def test_an_unloaded_model_comes_back_when_it_is_asked_for(world):
    await world.model.UnloadModel(rpc.UnloadModelRequest(name="tiny"))
    assert not (await world.model.ListRunning(rpc.ListRunningRequest())).models
    for name in ("", "tiny"):
        request = tokenizer_service_pb2.TokenizeRequest(model=name, text="hi")
        assert (await world.tokenizer.Tokenize(request)).ids
    assert len(world.fake.models) == 2
    error = await refusal(world.model.UnloadModel(rpc.UnloadModelRequest(name="nope")))
    assert error.reason == "MODEL_NOT_FOUND"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sessions", 0),
        ("sessions", -1),
        ("sessions", 257),
        ("sessions", 2**31 - 1),
        ("session_context_tokens", 0),
        ("session_context_tokens", 15),
        ("session_context_tokens", -(2**31)),
        ("session_context_tokens", 2**31 - 1),
        ("kv_budget_bytes", -1),
        ("kv_budget_bytes", 0),
        ("kv_budget_bytes", 2**63 - 1),
        ("kv_type", "f32"),
        ("kv_type", ""),
    ],
)
async def test_plans_check_every_field(world, field, value):
    error = await refusal(world.model.PlanMemory(rpc.PlanMemoryRequest(**{field: value})))
    assert (error.reason, error.field) == ("INVALID_ARGUMENT", field)


async def test_a_plan_answers_with_every_number(world):
    answer = (await world.model.PlanMemory(rpc.PlanMemoryRequest(sessions=3, kv_type="q8_0"))).plan
    assert (answer.total_bytes, answer.fits, answer.explanation) == (37, True, "it fits")


async def test_tokenize_and_detokenize(world):
    tokens = await world.tokenizer.Tokenize(tokenizer_service_pb2.TokenizeRequest(text="hé"))
    assert bytes(tokens.ids) == "hé".encode()
    assert (await world.tokenizer.Tokenize(tokenizer_service_pb2.TokenizeRequest())).ids == []
    text = await world.tokenizer.Detokenize(tokenizer_service_pb2.DetokenizeRequest(ids=tokens.ids))
    assert text.text == "hé"
    assert (await world.tokenizer.Detokenize(tokenizer_service_pb2.DetokenizeRequest())).text == ""
    for ids in ([-1], [257], [0, 2**31 - 1]):
        error = await refusal(world.tokenizer.Detokenize(tokenizer_service_pb2.DetokenizeRequest(ids=ids)))
        assert (error.reason, error.field) == ("INVALID_ARGUMENT", "ids")
    error = await refusal(
        world.tokenizer.Detokenize(tokenizer_service_pb2.DetokenizeRequest(ids=[1] * 1_048_577))
    )
    assert (error.reason, error.field) == ("INVALID_ARGUMENT", "ids")


async def test_draining_refuses_new_work_and_says_so(world):
    world.host.drain()
    error = await refusal(world.tokenizer.Tokenize(tokenizer_service_pb2.TokenizeRequest(text="hi")))
    assert (error.reason, error.retry_after_s) == ("UNAVAILABLE", 1.0)
    assert not world.host.ready()


async def test_a_failed_engine_is_not_healthy(world):
    assert world.host.ready()
    assert world.host.healthy()
    world.engine.failed = True
    assert not world.host.ready()
    assert not world.host.healthy()


def test_entry_of_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        entry_of(tmp_path / "no.gguf")


async def test_draining_while_a_model_loads_stays_draining(world):
    write_gguf(world.folder / "other.gguf")
    world.fake.load_s = 0.1
    call = world.model.LoadModel(rpc.LoadModelRequest(name="other"))
    while len(world.fake.loads) < 2:
        await asyncio.sleep(0.005)
    world.host.drain()
    assert (await refusal(call)).reason == "UNAVAILABLE"
    assert world.host.state is State.DRAINING
    assert world.fake.models[-1].closed


async def test_a_key_that_may_only_use_models_cannot_change_them(world, tmp_path, monkeypatch):
    secret = new_secret()
    path = tmp_path / "keys.toml"
    write_keys(path, [Key("user", hash_of(secret))])
    monkeypatch.setattr(world.services.gate, "_keys", KeyFile(path))
    metadata = (("authorization", f"Bearer {secret}"),)
    answer = await world.model.ListModels(rpc.ListModelsRequest(), metadata=metadata)
    assert [model.name for model in answer.models] == ["tiny"]
    calls = [
        (world.model.LoadModel, rpc.LoadModelRequest(name="tiny")),
        (world.model.UnloadModel, rpc.UnloadModelRequest(name="tiny")),
        (world.model.CopyModel, rpc.CopyModelRequest(source="tiny", destination="other")),
        (world.model.DeleteModel, rpc.DeleteModelRequest(name="tiny")),
        (world.model.CreateModel, rpc.CreateModelRequest(name="other")),
        (world.model.PullModel, rpc.PullModelRequest(name="other")),
        (world.quantize.Quantize, quantize_service_pb2.QuantizeRequest(source="tiny", output="small")),
        (world.quantize.ListJobs, quantize_service_pb2.ListJobsRequest()),
    ]
    for method, request in calls:
        call = method(request, metadata=metadata)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await (anext(call.__aiter__()) if hasattr(call, "__aiter__") else call)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED, request
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            call = method(request)
            await (anext(call.__aiter__()) if hasattr(call, "__aiter__") else call)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED, request


async def test_another_context_never_loads_a_model_again(world):
    for context_tokens in (16, 64, 2**20, None):
        options = pb.GenerationOptions(max_tokens=2, context_tokens=context_tokens)
        request = pb.GenerateRequest(text="hi", options=options)
        assert [event async for event in world.generate.Generate(request)][-1].HasField("done")
    assert len(world.fake.loads) == 1
