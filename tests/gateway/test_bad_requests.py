"""Bad input: an exact 4xx in OpenAI's shape that names the field, never a 5xx, never the input again."""

from __future__ import annotations

import json

import httpx2
import pytest

from daemon.gateway import body as body_module
from daemon.gateway.app import create_app

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
JSON = {"content-type": "application/json"}


def check(answer, status, param=None, code=None):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert len(answer.content) <= 4096
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["param"] == param
    if code:
        assert error["code"] == code


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"   ",
        b"{",
        b"{} {}",
        b"nonsense SECRET",
        '{"model": "demo"}'.encode("utf-16"),
        b'{"model": "\xff"}',
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b'{"x": [' + b"{}," * 70_000 + b"{}]}",
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"temperature": NaN}',
        b'{"temperature": Infinity}',
        b'{"temperature": 1e999}',
        b'{"model": "a", "model": "b"}',
        b'{"model": "demo", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b"[]",
        b'"text"',
        b"null",
        b"1",
    ],
)
async def test_bodies_that_are_no_plain_json_object(client, raw):
    answer = await client.post(CHAT, content=raw, headers=JSON)
    check(answer, 400)
    assert "SECRET" not in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/x-www-form-urlencoded"},
        {**JSON, "content-encoding": "gzip"},
        {**JSON, "content-encoding": "br"},
    ],
)
async def test_media_types(client, headers):
    check(await client.post(CHAT, content=b"{}", headers=headers), 415, code="unsupported_media_type")


async def test_body_size(client, make_chat, monkeypatch):
    monkeypatch.setattr(body_module, "MAX_BODY_BYTES", 1000)
    body = json.dumps(make_chat(user="x" * 1000)).encode()
    check(await client.post(CHAT, content=body, headers=JSON), 413)

    async def chunks():
        for _ in range(20):
            yield b" " * 100

    check(await client.post(CHAT, content=chunks(), headers=JSON), 413)
    assert (await client.post(CHAT, json=make_chat())).status_code == 200


async def test_slow_body(client, monkeypatch):
    import asyncio

    monkeypatch.setattr(body_module, "BODY_TIMEOUT_S", 0.05)

    async def chunks():
        yield b"{"
        await asyncio.sleep(0.5)
        yield b"}"

    check(await client.post(CHAT, content=chunks(), headers=JSON), 408)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"model": 1}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "x"}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [1] * 10_000}, "messages[0]"),
        ({"messages": [{}]}, "messages[0].role"),
        ({"messages": [{"role": 1, "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [1]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "x"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}
                ]
            },
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "user", "content": "x", "name": "a b"}]}, "messages[0].name"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [1]}]},
            "messages[0].tool_calls[0]",
        ),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 1.0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 2**63}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": []}, "top_p"),
        ({"top_k": 2**31}, "top_k"),
        ({"seed": 2**64}, "seed"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"stop": 1}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ["a"] * 10_000}, "stop"),
        ({"logit_bias": {"": 1}}, "logit_bias"),
        ({"logit_bias": {"1": True}}, "logit_bias"),
        ({"logit_bias": {"1": 1e300}}, "logit_bias"),
        ({"logit_bias": [[1]]}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1": "x"}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(2000)}}, "logit_bias"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"n": True}, "n"),
        ({"tools": {}}, "tools"),
        ({"tools": [1]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "x", "parameters": 1}}]},
            "tools[0].function.parameters",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "x", "strict": 1}}]},
            "tools[0].function.strict",
        ),
        ({"tool_choice": "always"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "custom"}}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function.name"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "tool_choice.allowed_tools.mode"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"reasoning_effort": "low", "reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"functions": [1]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 1}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "grammar", "grammar": "x", "syntax": "y"}}, "response_format.syntax"),
        ({"response_format": {"type": "regex"}}, "response_format.regex"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"guided_choice": [1]}, "guided_choice[0]"),
        ({"store": True}, "store"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"verbosity": "low"}, "verbosity"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"user": 1}, "user"),
        ({"metadata": "x"}, "metadata"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
        ),
        ({"response_format": "nonsense"}, "response_format"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"audio": {}}, "audio"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"chat_template_kwargs": 1}, "chat_template_kwargs"),
        ({"grammar": 1}, "grammar"),
    ],
)
async def test_chat_fields(client, backend, make_chat, changes, param):
    body = {
        key: value for key, value in make_chat(**changes).items() if value is not None or key == "messages"
    }
    check(await client.post(CHAT, json=body), 400, param)
    assert backend.requests == []


@pytest.mark.parametrize(
    "prompt",
    [None, "", [], [[]], [""], ["a", 1], ["a"] * 65, [1, "a"], [-1], [2**63], [1.5], [True], [[[1]]], 1, {}],
)
async def test_prompts(client, backend, prompt):
    body = {"model": "demo", "prompt": prompt}
    check(await client.post(TEXT, json=body), 400, "prompt")
    assert backend.requests == []


@pytest.mark.parametrize(
    "changes",
    [
        {"best_of": True},
        {"best_of": 2, "stream": True},
        {"suffix": 1},
        {"n": "2"},
        {"logprobs": True},
        {"echo": 1},
    ],
)
async def test_completion_fields(client, changes):
    body = {"model": "demo", "prompt": "x", **changes}
    check(await client.post(TEXT, json=body), 400, next(iter(changes)))


async def test_what_asks_for_nothing_is_taken(client, make_chat):
    body = make_chat(
        n=1,
        tools=[],
        tool_choice="none",
        response_format={"type": "text"},
        user="x",
        store=False,
        metadata={},
        service_tier="auto",
        something_new={"a": [1]},
        max_tokens=5,
        max_completion_tokens=5,
        stop=None,
        temperature=0,
        logprobs=False,
    )
    assert (await client.post(CHAT, json=body)).status_code == 200


async def test_parts_and_names(client, backend, make_chat):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts, "name": "Ann"},
        {"role": "tool", "content": "\u0000", "tool_call_id": "1"},
    ]
    answer = await client.post(CHAT, json=make_chat(messages=messages))
    assert answer.status_code == 200
    sent = backend.requests[0].messages
    assert [(m.role, m.content, m.name) for m in sent] == [
        ("developer", "Be brief.", ""),
        ("user", "a\nb", "Ann"),
        ("tool", "\u0000", ""),
    ]


@pytest.mark.parametrize("model", ["nope", "../etc/passwd", "x" * 10_000, "a\r\nb", "\u0000"])
async def test_unknown_models(client, make_chat, model):
    check(await client.post(CHAT, json=make_chat(model=model)), 404, "model", "model_not_found")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("POST", "//v1/chat/completions", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("GET", "/v1/models/..%2f..%2fetc", 404),
        ("GET", "/metrics", 404),
        ("GET", CHAT, 405),
        ("PUT", TEXT, 405),
        ("OPTIONS", CHAT, 405),
        ("DELETE", "/v1/models/demo", 405),
    ],
)
async def test_paths_and_methods(client, method, path, status):
    answer = await client.request(method, path)
    check(answer, status)
    if status == 405:
        assert answer.headers["allow"]


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:11434"},
        {"host": "127.0.0.1.evil.example"},
        {"host": ""},
        {"host": "[::1"},
        {"host": "0.0.0.0"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"host": "localhost", "origin": "https://localhost.evil.example"},
    ],
)
async def test_foreign_hosts_and_origins(client, make_chat, headers):
    for answer in (
        await client.get("/health", headers=headers),
        await client.post(CHAT, json=make_chat(), headers=headers),
    ):
        check(answer, 403)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "localhost:11434"},
        {"host": "[::1]:80"},
        {"host": "127.0.0.5"},
        {"origin": "http://localhost:3000"},
    ],
)
async def test_hosts_of_this_machine(client, headers):
    assert (await client.get("/health", headers=headers)).status_code == 200


async def test_any_host_when_told_so(backend):
    transport = httpx2.ASGITransport(app=create_app(backend, allowed_hosts=None))
    async with httpx2.AsyncClient(transport=transport, base_url="http://nuc.lan") as client:
        assert (await client.get("/health")).status_code == 200


async def test_heads_are_bounded(client):
    check(await client.get("/health?" + "x" * 9000), 414)
    check(await client.get("/health", headers={f"x-{i}": "1" for i in range(101)}), 431)
    check(await client.get("/health", headers={"x-big": "1" * 17_000}), 431)


async def test_request_ids(client, backend, make_chat):
    answers = [
        await client.post(CHAT, json=make_chat(), headers={"x-request-id": "my-id.1"}) for _ in range(2)
    ]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert all(request_id.startswith("my-id.1-") for request_id in ids)
    assert len(set(ids)) == 2  # a client cannot give two requests one id
    assert [context.request_id for context in backend.contexts] == ids
    for bad in ("a b", "x" * 65, "\u001b[31m", ""):
        answer = await client.get("/health", headers={"x-request-id": bad})
        assert len(answer.headers["x-request-id"]) == 16


PAGES = ("https://chat.example", "chrome-extension://*")


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3000", 200),
        ("https://chat.example", 200),
        ("chrome-extension://abcdef", 200),
        ("https://chat.example.evil", 403),
        ("https://evil.example", 403),
        ("null", 403),
    ],
)
async def test_pages_that_may_ask(backend, make_chat, origin, status):
    transport = httpx2.ASGITransport(app=create_app(backend, allowed_origins=PAGES))
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        asks = {"origin": origin, "access-control-request-method": "POST"}
        before = await client.options(
            CHAT, headers={**asks, "access-control-request-headers": "content-type"}
        )
        answer = await client.post(CHAT, json=make_chat(), headers={"origin": origin})
    assert answer.status_code == status
    assert answer.headers.get("access-control-allow-origin") == (origin if status == 200 else None)
    assert before.status_code == (204 if status == 200 else 403)
    if status == 200:
        assert "POST" in before.headers["access-control-allow-methods"]
        assert "Authorization" in before.headers["access-control-allow-headers"]


async def test_a_program_without_an_origin_gets_no_words_for_pages(client, make_chat):
    answer = await client.post(CHAT, json=make_chat())
    assert "access-control-allow-origin" not in answer.headers
    assert (await client.options(CHAT)).status_code == 405
