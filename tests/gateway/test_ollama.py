"""Ollama's API: lines of JSON, its options and its words for failures."""

import json

import pytest

from daemon.errors import ApiError
from quantd.v1 import generate_pb2 as pb
from tests.gateway.deltas import full_answer

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def chat(**changes):
    return {"model": "demo", "messages": [{"role": "user", "content": "Hi"}], **changes}


async def lines_of(client, url, body):
    answer = await client.post(url, json=body)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_it_says_what_clients_look_for(client):
    answer = await client.get("/")
    assert (answer.status_code, answer.text) == (200, "Ollama is running")
    assert (await client.head("/")).status_code == 200
    assert (await client.head("/api/version")).status_code == 200
    assert isinstance((await client.get("/api/version")).json()["version"], str)
    models = (await client.get("/api/tags")).json()["models"]
    assert [model["name"] for model in models] == ["demo", "other"]
    assert models[0]["modified_at"] == "2023-11-14T22:13:20.000000Z"
    assert models[0]["details"]["family"] == "llama"
    assert models[0]["details"]["quantization_level"] == "Q4_K_M"
    # /v1/models says the same
    assert (await client.get("/v1/models/demo")).json()["meta"]["quantization"] == "Q4_K_M"


async def test_a_chat_as_lines(client, backend):
    lines = await lines_of(client, "/api/chat", chat())
    assert "".join(line["message"]["content"] for line in lines) == "Hello, wörld!"
    assert [line["done"] for line in lines] == [False] * 4 + [True]
    last = lines[-1]
    assert (last["done_reason"], last["prompt_eval_count"], last["eval_count"]) == ("stop", 5, 4)
    for name in ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration"):
        assert isinstance(last[name], int)
    backend.finish = pb.FINISH_REASON_LENGTH
    whole = (await client.post("/api/chat", json=chat(stream=False))).json()
    assert whole["message"] == {"role": "assistant", "content": "Hello, wörld!"}
    assert (whole["done"], whole["done_reason"]) == (True, "length")


async def test_thoughts_and_calls(client, backend):
    backend.texts, backend.finish = full_answer(), pb.FINISH_REASON_TOOL_CALLS
    whole = (await client.post("/api/chat", json=chat(stream=False, tools=TOOLS, think=True))).json()
    said = whole["message"]
    assert said["thinking"] == "Hm, so."
    assert said["tool_calls"][0]["function"] == {"index": 0, "name": "add", "arguments": {"a": 1}}
    assert whole["done_reason"] == "stop"
    assert backend.requests[0].reasoning_effort == "medium"
    lines = await lines_of(client, "/api/chat", chat(tools=TOOLS))
    assert "".join(line["message"].get("thinking", "") for line in lines) == "Hm, so."
    calls = [call for line in lines for call in line["message"].get("tool_calls", [])]
    assert calls == said["tool_calls"]


async def test_answers_of_tools_find_their_calls(client, backend):
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "tool_calls": [call, {"function": {"name": "sub", "arguments": {}}}]},
        {"role": "tool", "tool_name": "sub", "content": "0"},
        {"role": "tool", "content": "1"},
    ]
    await client.post("/api/chat", json=chat(messages=messages))
    sent = backend.requests[0].messages
    assert [one.id for one in sent[1].tool_calls] == ["call_1_0", "call_1_1"]
    assert (sent[1].tool_calls[0].arguments, sent[2].name) == ('{"a": 1}', "sub")
    assert [one.tool_call_id for one in sent[2:]] == ["call_1_1", "call_1_0"]


async def test_options(client, backend):
    options = {
        "temperature": 0,
        "top_k": 3.0,
        "seed": -1,
        "num_predict": 7,
        "num_ctx": 128,
        "repeat_last_n": -1,
        "stop": ["x"],
        "num_gpu": 99,
        "mirostat": 2,
    }
    await client.post("/api/chat", json=chat(options=options, keep_alive="5m", format="json", think=False))
    sent = backend.requests[0]
    assert (sent.options.max_tokens, sent.options.context_tokens, list(sent.options.stop)) == (7, 128, ["x"])
    assert (sent.options.sampling.temperature, sent.options.sampling.top_k) == (0, 3)
    assert not sent.options.sampling.HasField("seed")
    assert not sent.options.sampling.HasField("top_p")
    assert sent.options.sampling.repeat_last_n == 4096
    assert (sent.keep_alive_ms, sent.reasoning_effort) == (300_000, "none")
    assert sent.options.constraint.json_object
    await client.post("/api/chat", json=chat(format={"type": "integer"}, keep_alive=-1))
    assert json.loads(backend.requests[1].options.constraint.json_schema) == {"type": "integer"}
    assert backend.requests[1].keep_alive_ms == -1


async def test_generate(client, backend):
    body = {"model": "demo", "prompt": "Hi", "system": "Be brief"}
    lines = await lines_of(client, "/api/generate", body)
    assert "".join(line["response"] for line in lines) == "Hello, wörld!"
    assert [(m.role, m.content) for m in backend.requests[0].messages] == [
        ("system", "Be brief"),
        ("user", "Hi"),
    ]
    raw = {"model": "demo", "prompt": "<s>Hi", "raw": True, "stream": False}
    assert (await client.post("/api/generate", json=raw)).json()["response"] == "Hello, wörld!"
    assert (backend.requests[1].text, backend.requests[1].parse_special) == ("<s>Hi", True)
    await client.post("/api/generate", json={"model": "demo", "prompt": "a", "suffix": "b"})
    assert (backend.requests[2].text, backend.requests[2].suffix) == ("a", "b")


async def test_a_model_without_template_continues_the_prompt(client, backend, monkeypatch):
    async def refuse(request, context):
        raise ApiError("NO_CHAT_TEMPLATE", "None.")
        yield

    monkeypatch.setattr(backend, "chat", refuse)
    body = {"model": "demo", "prompt": "Hi", "stream": False}
    assert (await client.post("/api/generate", json=body)).json()["response"] == "Hello, wörld!"
    assert backend.requests[0].text == "Hi"
    answer = await client.post("/api/chat", json=chat())
    assert (answer.status_code, answer.json()) == (400, {"error": "None."})


async def test_more_tokens_than_the_context_are_the_context(client, backend, monkeypatch):
    inner = backend.chat

    async def limited(request, context):
        if request.options.HasField("max_tokens"):
            raise ApiError("INVALID_ARGUMENT", "Too many.", field="options.max_tokens")
        async for event in inner(request, context):
            yield event

    monkeypatch.setattr(backend, "chat", limited)
    lines = await lines_of(client, "/api/chat", chat(options={"num_predict": 10**6}))
    assert lines[-1]["done"]


@pytest.mark.parametrize(
    ("url", "changes", "words"),
    [
        ("chat", {"format": "xml"}, "format"),
        ("chat", {"think": "maybe"}, "think"),
        ("chat", {"options": {"seed": "x"}}, "options.seed"),
        ("chat", {"options": {"stop": [1]}}, "options.stop"),
        ("chat", {"options": {"top_k": 1.5}}, "options.top_k"),
        ("chat", {"keep_alive": "soon"}, "keep_alive"),
        ("chat", {"model": ""}, "model"),
        ("chat", {"messages": [{"role": "user", "content": "x", "images": ["x"]}]}, "messages[0].images"),
        ("chat", {"messages": [{"content": "x"}]}, "messages[0].role"),
        ("generate", {"prompt": "x", "template": "y"}, "template"),
        ("generate", {"prompt": "x", "context": [1]}, "context"),
        ("generate", {"prompt": "x", "images": ["y"]}, "images"),
        ("generate", {"prompt": "x", "raw": True, "system": "y"}, "system"),
    ],
)
async def test_what_is_refused(client, backend, url, changes, words):
    answer = await client.post(f"/api/{url}", json=chat(**changes))
    assert answer.status_code == 400
    assert words in answer.json()["error"]
    assert not backend.requests


async def test_failures_in_its_words(client, backend):
    answer = await client.post("/api/chat", json=chat(model="nope"))
    assert answer.status_code == 404
    assert "nope" in answer.json()["error"]
    backend.texts = [ApiError("QUEUE_FULL", "No.")]
    answer = await client.post("/api/chat", json=chat())
    assert (answer.status_code, answer.json(), answer.headers["retry-after"]) == (503, {"error": "No."}, "1")
    backend.texts = ["Hello", ApiError("NON_FINITE_LOGITS", "Broken.")]
    lines = await lines_of(client, "/api/chat", chat())
    assert lines[-1] == {"error": "Broken."}
    assert not lines[-2]["done"]


async def test_any_media_type_but_not_from_a_page(client):
    body = json.dumps(chat(stream=False))
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert (await client.post("/api/chat", content=body, headers=form)).status_code == 200
    page = {**form, "Origin": "http://localhost"}
    assert (await client.post("/api/chat", content=body, headers=page)).status_code == 415


async def test_a_request_without_a_question_loads(client, backend):
    answer = (await client.post("/api/chat", json=chat(messages=[], stream=False))).json()
    assert (answer["done"], answer["done_reason"]) == (True, "load")
    lines = await lines_of(client, "/api/generate", {"model": "demo", "keep_alive": 0})
    assert (lines[0]["done_reason"], lines[0]["response"]) == ("unload", "")
    await client.post("/api/generate", json={"model": "demo", "keep_alive": "1m"})
    assert [type(one).__name__ for one in backend.requests] == ["UnloadModelRequest", "LoadModelRequest"]
    assert backend.requests[1].keep_alive_ms == 60_000


async def test_what_is_known_of_a_model(client):
    facts = (await client.post("/api/show", json={"model": "demo"})).json()
    assert facts["capabilities"] == ["completion", "tools", "thinking"]
    assert facts["model_info"] == {"general.architecture": "llama", "x.list": None}
    assert facts["parameters"] == 'temperature 0.5\nnum_predict 9\nstop "x"'
    assert 'SYSTEM """Be brief"""' in facts["modelfile"]
    running = (await client.get("/api/ps")).json()["models"]
    assert (running[0]["name"], running[0]["size"], running[0]["context_length"]) == ("demo", 1000, 512)
    assert running[0]["expires_at"].startswith("2100-")


async def test_models_of_the_store(client, backend):
    answers = [
        await client.post("/api/copy", json={"source": "demo", "destination": "b"}),
        await client.request("DELETE", "/api/delete", json={"model": "b"}),
        await client.post(
            "/api/create",
            json={
                "model": "c",
                "files": {"a.gguf": "sha256:aa"},
                "parameters": {"num_ctx": 64},
                "stream": False,
            },
        ),
    ]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert answers[2].json() == {"status": "success"}
    copied, deleted, made = backend.requests
    assert (copied.source, copied.destination, deleted.name) == ("demo", "b", "b")
    assert (made.files[0].file, made.files[0].digest) == ("a.gguf", "sha256:aa")
    assert made.parameters.context_tokens == 64


async def test_a_creation_as_lines(client, backend):
    body = {
        "model": "c",
        "from": "demo",
        "quantize": "q4_K_M",
        "adapters": {"adapter_config.json": "sha256-bb"},
        "messages": [{"role": "user", "content": "Hi"}],
        "license": "MIT",
    }
    assert await lines_of(client, "/api/create", body) == [
        {"status": "quantizing to q4_K_M", "total": 2, "completed": 1},
        {"status": "success"},
    ]
    made = backend.requests[0]
    assert (getattr(made, "from"), made.quantize, list(made.licenses)) == ("demo", "q4_K_M", ["MIT"])
    assert [(one.file, one.digest) for one in made.adapter_files] == [("adapter_config.json", "sha256:bb")]
    assert [(one.role, one.content) for one in made.messages] == [("user", "Hi")]
    for field, value in (
        ("draft_files", {"a": "b"}),
        ("adapters", ["a"]),
        ("messages", "Hi"),
        ("quantize", 4),
    ):
        answer = await client.post("/api/create", json={"model": "c", "from": "demo", field: value})
        assert (answer.status_code, field in answer.json()["error"]) == (400, True)


async def test_blobs(client, backend):
    assert (await client.head("/api/blobs/sha256:aa")).status_code == 200
    assert (await client.head("/api/blobs/sha256:bb")).status_code == 404
    assert (await client.post("/api/blobs/sha256:bb", content=b"weights" * 300_000)).status_code == 201
    assert backend.requests[0].digest == "sha256:bb"
    assert b"".join(part.data for part in backend.requests) == b"weights" * 300_000
    assert max(len(part.data) for part in backend.requests) <= 2 << 20


async def test_a_download_as_lines(client, backend):
    lines = await lines_of(client, "/api/pull", {"model": "x"})
    assert lines[0] == {"status": "Hello", "digest": "sha256:aa", "total": 9, "completed": 0}
    assert (len(lines), lines[-1]) == (5, {"status": "success"})
    assert (await client.post("/api/pull", json={"model": "x", "stream": False})).json() == lines[-1]
    backend.texts = ["Hello", ApiError("DOWNLOAD_FAILED", "Gone.")]
    assert (await lines_of(client, "/api/pull", {"model": "x"}))[-1] == {"error": "Gone."}
    backend.texts = [ApiError("DOWNLOAD_FAILED", "Gone.")]
    assert (await client.post("/api/pull", json={"model": "x"})).status_code == 502
