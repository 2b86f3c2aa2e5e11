"""The store over gRPC: show, copy, delete, create, blobs, pull; and what a name adds to requests."""

import asyncio
import hashlib
import sys

import grpc
import numpy as np
import pytest

from daemon.errors import from_rpc_error
from daemon.services import quantize
from daemon.services.catalog import Catalog
from daemon.services.folder import ModelFolder
from daemon.store.go_template import is_go_template
from daemon.store.models import ModelStore
from daemon.store.places import Places
from quant.convert.lora import Adapter
from quant.quantizer import Quantizer
from quantd.v1 import generate_pb2 as pb
from quantd.v1 import model_service_pb2 as rpc
from quantd.v1 import quantize_service_pb2 as rpc_quantize
from runtime.gguf import ModelFile
from tests.daemon.fakes import write_gguf
from tests.quant import hugging_face as hf
from tests.quant.test_lora import write_adapter
from tests.store.server import Files, Hub

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


@pytest.fixture
def gguf(tmp_path):
    path = tmp_path / "elsewhere.gguf.part"
    write_gguf(path)
    return path.read_bytes()


async def upload(world, data, digest=None, chunk=1000):
    digest = digest or f"sha256:{hashlib.sha256(data).hexdigest()}"

    async def parts():
        for start in range(0, len(data) or 1, chunk):
            yield rpc.UploadBlobRequest(digest="" if start else digest, data=data[start : start + chunk])

    return await world.model.UploadBlob(parts())


async def create(world, gguf, name="mine", **fields):
    await upload(world, gguf)
    digest = f"sha256:{hashlib.sha256(gguf).hexdigest()}"
    request = rpc.CreateModelRequest(name=name, files=[rpc.ModelFileBlob(digest=digest)], **fields)
    return (await made(world, request))[-1].model


async def made(world, request):
    """The events of a creation."""
    return [event async for event in world.model.CreateModel(request)]


async def names(world):
    return [model.name for model in (await world.model.ListModels(rpc.ListModelsRequest())).models]


async def test_blobs_are_uploaded_and_checked(world, gguf):
    digest = f"sha256:{hashlib.sha256(gguf).hexdigest()}"
    assert not (await world.model.HasBlob(rpc.HasBlobRequest(digest=digest))).exists
    assert (await upload(world, gguf)).size_bytes == len(gguf)
    answer = await world.model.HasBlob(rpc.HasBlobRequest(digest=digest))
    assert (answer.exists, answer.size_bytes) == (True, len(gguf))
    assert (await upload(world, gguf)).size_bytes == len(gguf)
    assert (await refusal(upload(world, b"x", "sha256:" + "0" * 64))).reason == "DIGEST_MISMATCH"
    assert (await refusal(upload(world, b"x", "sha256:../x"))).field == "digest"
    assert (await refusal(upload(world, bytes(2**21 + 1), chunk=2**22))).field == "data"
    left = sorted(path.name for path in (world.folder / "store" / "blobs").iterdir())
    assert left == [digest.replace(":", "-")]


async def test_a_model_is_made_shown_copied_and_deleted(world, gguf):
    parameters = pb.GenerationOptions(stop=["END"], sampling=pb.SamplingParams(temperature=0.25))
    model = await create(
        world, gguf, template=TEMPLATE, system="Be kind.", parameters=parameters, licenses=["MIT", "other"]
    )
    assert (model.name, model.architecture, model.loaded) == ("mine:latest", "llama", False)
    assert model.digest == f"sha256:{hashlib.sha256(gguf).hexdigest()}"
    shown = await world.model.ShowModel(rpc.ShowModelRequest(name="mine", verbose=True))
    assert (shown.template, shown.template_is_override, shown.system) == (TEMPLATE, True, "Be kind.")
    assert list(shown.licenses) == ["MIT", "other"]
    assert shown.parameters == parameters
    assert shown.metadata_json["llama.context_length"] == "512"
    assert shown.metadata_json["tokenizer.ggml.tokens"] == '["a", "b", "c"]'
    assert [(one.name, one.type, list(one.shape)) for one in shown.tensors] == [
        ("token_embd.weight", "F16", [32, 4])
    ]
    await world.model.CopyModel(rpc.CopyModelRequest(source="mine:latest", destination="owner/other:v2"))
    assert await names(world) == ["tiny", "mine:latest", "owner/other:v2"]
    derived = rpc.CreateModelRequest(name="derived", system="", parameters=pb.GenerationOptions(max_tokens=5))
    setattr(derived, "from", "owner/other:v2")
    await made(world, derived)
    shown = await world.model.ShowModel(rpc.ShowModelRequest(name="derived"))
    assert (shown.system, shown.template, list(shown.parameters.stop), shown.parameters.max_tokens) == (
        "", TEMPLATE, ["END"], 5,
    )  # fmt: skip
    assert shown.metadata_json["tokenizer.ggml.tokens"] == "null"
    for name in ("mine", "derived"):
        assert (await world.model.DeleteModel(rpc.DeleteModelRequest(name=name))).freed_bytes < len(gguf)
    assert (await world.model.DeleteModel(rpc.DeleteModelRequest(name="owner/other:v2"))).freed_bytes >= len(
        gguf
    )
    assert await names(world) == ["tiny"]
    assert list((world.folder / "store" / "blobs").iterdir()) == []


async def test_a_deleted_name_is_gone_though_another_keeps_its_weights_in_memory(world, gguf):
    await create(world, gguf)
    await world.model.CopyModel(rpc.CopyModelRequest(source="mine", destination="yours"))
    await world.model.LoadModel(rpc.LoadModelRequest(name="mine"))
    await world.model.DeleteModel(rpc.DeleteModelRequest(name="mine"))
    left = await names(world)
    assert "yours:latest" in left
    assert "mine:latest" not in left


async def test_a_file_of_the_folder_is_shown_copied_and_not_deleted(world):
    write_gguf(world.folder / "plain.gguf")
    shown = await world.model.ShowModel(rpc.ShowModelRequest(name="plain:latest"))
    assert (shown.model.name, shown.template, shown.model.digest) == ("plain", "{{ messages }}", "")
    await world.model.CopyModel(rpc.CopyModelRequest(source="plain", destination="copied"))
    (world.folder / "plain.gguf").unlink()
    assert await names(world) == ["tiny", "copied:latest"]
    error = await refusal(world.model.DeleteModel(rpc.DeleteModelRequest(name="tiny")))
    assert error.reason == "PERMISSION_DENIED"
    error = await refusal(world.model.CopyModel(rpc.CopyModelRequest(source="copied", destination="tiny")))
    assert (error.reason, error.field) == ("OUTPUT_EXISTS", "destination")


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "/etc/passwd", "a/../b", ".x", "-x", "x:../y", "x" * 300, "x y"]
)
async def test_hostile_names(world, gguf, name):
    await create(world, gguf)
    for call, field in (
        (world.model.CopyModel(rpc.CopyModelRequest(source="mine", destination=name)), "destination"),
        (made(world, rpc.CreateModelRequest(name=name)), "name"),
    ):
        error = await refusal(call)
        assert (error.reason, error.field) == ("INVALID_ARGUMENT", field)
    for call in (
        world.model.CopyModel(rpc.CopyModelRequest(source=name or "no", destination="y")),
        world.model.DeleteModel(rpc.DeleteModelRequest(name=name)),
        world.model.ShowModel(rpc.ShowModelRequest(name=name or "no")),
    ):
        assert (await refusal(call)).reason == "MODEL_NOT_FOUND"
    error = await refusal(world.model.PullModel(rpc.PullModelRequest(name=name)).read())
    assert error.reason == "INVALID_ARGUMENT"
    assert not (world.folder.parent / "x").exists()


async def test_what_cannot_be_made(world, gguf):
    bad = b"no model at all"
    await upload(world, bad)
    sound, unsound = (f"sha256:{hashlib.sha256(data).hexdigest()}" for data in (gguf, bad))
    await upload(world, gguf)
    blob = rpc.ModelFileBlob
    for fields, reason, field in (
        ({}, "INVALID_ARGUMENT", "from"),
        ({"from": "nope"}, "MODEL_NOT_FOUND", "from"),
        ({"files": [blob(digest="sha256:" + "1" * 64)]}, "MODEL_NOT_FOUND", "files[0].digest"),
        ({"files": [blob(digest="x")]}, "INVALID_ARGUMENT", "files[0].digest"),
        ({"files": [blob(digest=unsound)]}, "INVALID_MODEL_FILE", ""),
        ({"files": [blob(digest=sound, file="../x")]}, "INVALID_ARGUMENT", "files[0].file"),
        ({"files": [blob(digest=sound)] * 2}, "INVALID_ARGUMENT", "files"),
        ({"files": [blob(digest=sound)], "template": "{% for %}"}, "TEMPLATE_ERROR", ""),
        ({"files": [blob(digest=sound)], "system": "x" * (2**20 + 1)}, "INVALID_ARGUMENT", "system"),
        ({"files": [blob(digest=sound)], "licenses": ["x"] * 17}, "INVALID_ARGUMENT", "licenses"),
        ({"files": [blob(digest=sound)], "quantize": "--help"}, "INVALID_ARGUMENT", "quantize"),
        ({"files": [blob(digest=sound)], "quantize": "Q9_Z"}, "UNSUPPORTED_RECIPE", "quantize"),
        (
            {"files": [blob(digest=sound)], "messages": [pb.ChatMessage(role="robot", content="x")]},
            "INVALID_ARGUMENT",
            "messages[0].role",
        ),
        (
            {"files": [blob(digest=sound)], "messages": [pb.ChatMessage(role="user")] * 65},
            "INVALID_ARGUMENT",
            "messages",
        ),
        (
            {"files": [blob(digest=sound)], "adapter_files": [blob(digest=sound, file="x")]},
            "INVALID_ARGUMENT",
            "adapter_files",
        ),
        (
            {
                "files": [blob(digest=sound)],
                "adapter_files": [
                    blob(digest=sound, file="adapter_config.json"),
                    blob(digest=sound, file="adapter_model.safetensors"),
                ],
            },
            "UNSUPPORTED_MODEL",
            "adapter_files",
        ),
        ({"files": [blob(digest=unsound, file="config.json")]}, "INVALID_MODEL_FILE", "from"),
        (
            {"files": [blob(digest=sound)], "parameters": pb.GenerationOptions(stop=["x"] * 17)},
            "INVALID_ARGUMENT",
            "options.stop",
        ),
    ):
        error = await refusal(made(world, rpc.CreateModelRequest(name="new", **fields)))
        assert (error.reason, error.field) == (reason, field), error.message
        assert str(world.folder) not in error.message
    assert await names(world) == ["tiny"]
    left = {path.name for path in (world.folder / "store" / "blobs").iterdir()}
    assert left == {sound.replace(":", "-"), unsound.replace(":", "-")}


async def test_a_hugging_face_folder_becomes_a_quantized_model_with_an_adapter(world):
    weights = {name: x.astype(np.float16) for name, x in hf.decoder_weights(hf.LLAMA).items()}
    folder = hf.write_folder(world.folder / "tiny-hf", hf.LLAMA, weights)
    write_adapter(world.folder / "adapter", weights)

    async def uploaded(path):
        data = path.read_bytes()
        await upload(world, data, chunk=1 << 20)
        return rpc.ModelFileBlob(file=path.name, digest=f"sha256:{hashlib.sha256(data).hexdigest()}")

    files = [await uploaded(path) for path in sorted(folder.iterdir())]
    adapter = [await uploaded(path) for path in sorted((world.folder / "adapter").iterdir())]
    request = rpc.CreateModelRequest(
        name="mine", files=files, adapter_files=adapter, quantize="q8_0", system="Be kind."
    )
    events = await made(world, request)
    said = [event.progress.status for event in events[:-1]]
    assert said[-2:] == ["computing the digest", "writing the manifest"]
    assert any(
        event.progress.completed_bytes == event.progress.total_bytes > 0
        for event in events
        if event.progress.status == "converting to q8_0"
    )
    assert (events[-1].model.name, events[-1].model.quantization) == ("mine:latest", "Q8_0")
    Quantizer(folder, world.folder / "same.gguf", "Q8_0", adapters=[Adapter(world.folder / "adapter")]).run()
    stored = world.host.find("mine")
    same, found = ModelFile.open(world.folder / "same.gguf"), ModelFile.open(stored.path)
    assert all(np.array_equal(found.data(name), same.data(name)) for name in same.tensors)
    (world.folder / "same.gguf").unlink()
    shown = await world.model.ShowModel(rpc.ShowModelRequest(name="mine"))
    assert (shown.system, shown.source) == (
        "Be kind.",
        "the uploaded files, converted to Q8_0, 1 adapter merged",
    )
    # From the folder by its name, as it is stored; and from that, smaller.
    request = rpc.CreateModelRequest(name="plain")
    setattr(request, "from", "tiny-hf")
    assert (await made(world, request))[-1].model.quantization == "F16"
    request = rpc.CreateModelRequest(name="small", quantize="Q4_0")
    setattr(request, "from", "plain")
    model = (await made(world, request))[-1].model
    assert (model.quantization, model.recipe) == ("Q4_0", "Q4_0")
    request = rpc.CreateModelRequest(name="smaller", quantize="Q4_0")
    setattr(request, "from", "small")
    error = await refusal(made(world, request))
    assert (error.reason, error.field) == ("UNSUPPORTED_MODEL", "from")
    assert "sha256" not in error.message or str(world.folder) not in error.message
    assert not [path for path in (world.folder / "store" / "blobs").iterdir() if "making" in path.name]


async def test_a_creation_that_is_cancelled_leaves_nothing(world, gguf, monkeypatch):
    def command(arguments):
        code = "import sys, time; open(sys.argv[3] + '.partial.1', 'w').close(); print('x', flush=True); time.sleep(60)"
        return [sys.executable, "-c", code, *arguments]

    monkeypatch.setattr(quantize, "child_command", command)
    await upload(world, gguf)
    blob = rpc.ModelFileBlob(digest=f"sha256:{hashlib.sha256(gguf).hexdigest()}")
    call = world.model.CreateModel(rpc.CreateModelRequest(name="new", files=[blob], quantize="Q4_0"))
    reading = asyncio.ensure_future(call.read())
    blobs = world.folder / "store" / "blobs"
    for _ in range(500):
        if any(path.name.startswith("making-") for path in blobs.iterdir()):
            break
        await asyncio.sleep(0.01)
    jobs = (await world.quantize.ListJobs(rpc_quantize.ListJobsRequest())).jobs
    assert [(job.source, job.running) for job in jobs] == [("the uploaded file", True)]
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    for _ in range(500):
        if len(list(blobs.iterdir())) == 1:
            break
        await asyncio.sleep(0.01)
    assert len(list(blobs.iterdir())) == 1
    assert await names(world) == ["tiny"]


async def test_messages_go_before_every_conversation(world, gguf):
    spoken = [("user", "Who are you?"), ("assistant", "Arr!")]
    messages = [pb.ChatMessage(role=role, content=text) for role, text in spoken]
    await create(world, gguf, system="Be a pirate.", messages=messages, template=TEMPLATE)
    shown = await world.model.ShowModel(rpc.ShowModelRequest(name="mine"))
    assert [(one.role, one.content) for one in shown.messages] == spoken
    for asked, prompt in (
        ([("user", "Hi")], "Be a pirate.Who are you?Arr!Hi"),
        ([("system", "Be rude."), ("user", "Hi")], "Be rude.Who are you?Arr!Hi"),
    ):
        request = pb.ChatRequest(model="mine")
        request.messages.extend(pb.ChatMessage(role=role, content=text) for role, text in asked)
        assert [event async for event in world.generate.Chat(request)][-1].HasField("done")
        assert bytes(world.fake.engines[-1].requests[-1].prompt_ids).decode() == prompt


async def test_a_name_brings_its_defaults_to_requests(world, gguf):
    parameters = pb.GenerationOptions(stop=["ll"], sampling=pb.SamplingParams(temperature=0.25, top_k=7))
    await create(world, gguf, system="Be kind.", parameters=parameters, template=TEMPLATE)

    async def ask(*messages, **options):
        request = pb.ChatRequest(model="mine", options=pb.GenerationOptions(**options))
        request.messages.extend(pb.ChatMessage(role=role, content=text) for role, text in messages)
        events = [event async for event in world.generate.Chat(request)]
        engine = world.fake.engines[-1]
        text = "".join(event.delta.text for event in events)
        return (
            events[0].started.model,
            text,
            bytes(engine.requests[-1].prompt_ids).decode(),
            engine.requests[-1],
        )

    name, text, prompt, seen = await ask(("user", "Hi"))
    assert (name, text, prompt) == ("mine:latest", "he", "Be kind.Hi")
    assert (seen.sampling.temperature, seen.sampling.top_k, seen.sampling.top_p) == (
        0.25,
        7,
        pytest.approx(0.95),
    )
    _, text, prompt, seen = await ask(
        ("system", "Be rude."), ("user", "Hi"), stop=["o"], sampling=pb.SamplingParams(temperature=1.0)
    )
    assert (text, prompt) == ("hell", "Be rude.Hi")
    assert (seen.sampling.temperature, seen.sampling.top_k) == (1.0, 7)


async def test_names_of_the_same_weights_share_one_model_in_memory(world, gguf):
    await create(world, gguf)
    await world.model.CopyModel(rpc.CopyModelRequest(source="mine", destination="other"))
    for name in ("mine", "other", "other:latest"):
        request = pb.GenerateRequest(model=name, text="hi")
        assert [event async for event in world.generate.Generate(request)][-1].HasField("done")
    assert len(world.fake.models) == 2
    await world.model.DeleteModel(rpc.DeleteModelRequest(name="mine"))
    await world.model.DeleteModel(rpc.DeleteModelRequest(name="other"))
    for _ in range(200):
        if world.fake.models[1].closed:
            break
        await asyncio.sleep(0.01)
    assert world.fake.models[1].closed, "a model without a name leaves memory"


async def test_a_pull_over_grpc(world, gguf):
    files = Files()
    hub = Hub(files)
    hub.add("owner/repo", {"m-Q4_K_M.gguf": gguf})
    world.services.library._places = Places(hub.url, hub.url)
    try:
        request = rpc.PullModelRequest(name="hf.co/owner/repo:Q4_K_M", ignore_memory=True, as_name="m")
        events = [event async for event in world.model.PullModel(request)]
        assert events[-1].model.name == "m:latest"
        assert events[-1].model.digest == f"sha256:{hashlib.sha256(gguf).hexdigest()}"
        done = [event.progress for event in events[:-1] if event.progress.digest]
        assert done[-1].completed_bytes == done[-1].total_bytes == len(gguf)
        for name, reason in (
            ("hf.co/owner/none", "MODEL_NOT_FOUND"),
            ("example.invalid/a/b", "PERMISSION_DENIED"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in world.model.PullModel(rpc.PullModelRequest(name=name)):
                    pass
            assert from_rpc_error(caught.value).reason == reason
    finally:
        hub.origin.close()
        files.origin.close()


def test_the_folder_goes_first_and_latest_may_be_left_out(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    catalog = Catalog(ModelFolder(tmp_path), ModelStore(tmp_path / "store"))
    assert catalog.find("a").path == catalog.find("a:latest").path == tmp_path / "a.gguf"
    assert catalog.find("a:other") is None
    assert catalog.find("../a") is None


@pytest.mark.parametrize(
    ("source", "go"),
    [
        ("{{ if .System }}<|system|>{{ .System }}{{ end }}{{ .Prompt }}", True),
        ("{{- range $i, $_ := .Messages }}{{ .Content }}{{- end }}", True),
        ("{{ .Prompt }}", True),
        (TEMPLATE, False),
        ("{{ bos_token }}{{ messages[0].content }}", False),
        ("plain text", False),
        ("", False),
    ],
)
def test_go_templates_are_told_from_jinja(source, go):
    assert is_go_template(source) is go
