"""The real daemon through the openai client and plain HTTP, and the gateway as a process of its own."""

import concurrent.futures
import json
import re
import urllib.error
import urllib.request

import openai
import pytest

from tests.e2e.harness import Daemon

QUESTION = [{"role": "user", "content": "What is 12 plus 7?"}]


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def gateway(served):
    """A gateway process in front of the daemon."""
    process = Daemon("--target", served.grpc, "--http", "127.0.0.1:0", command="gateway", wait=False)
    process.url = process.wait_for(r"(http://\S+)/v1$")[1]
    yield process
    process.kill()


def fetch(url, body=None, **headers):
    """Status, headers and body, for errors too."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as failure:
        with failure:
            return failure.code, failure.headers, failure.read()


def test_chat_completion(client):
    answer = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0, max_tokens=24)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_chat_stream_is_the_same_text(client):
    whole = client.chat.completions.create(model="demo", messages=QUESTION, seed=3, max_tokens=24)
    stream = client.chat.completions.create(
        model="demo",
        messages=QUESTION,
        seed=3,
        max_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in ("stop", "length")
    usage = chunks[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (
        whole.usage.prompt_tokens, whole.usage.completion_tokens
    )  # fmt: skip
    # The second time the prompt's full pages are there, whichever session had them.
    assert usage.prompt_tokens_details.cached_tokens == (usage.prompt_tokens - 1) // 32 * 32


def test_completions(client):
    whole = client.completions.create(model="demo", prompt="Once upon a time", temperature=0, max_tokens=16)
    stream = client.completions.create(
        model="demo", prompt="Once upon a time", temperature=0, max_tokens=16, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices) == whole.choices[0].text


def test_models(client):
    assert client.models.list().data[0].id == "demo"
    assert client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nope")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("change", "error", "param", "code"),
    [
        ({"temperature": 3}, openai.BadRequestError, "temperature", "invalid_value"),
        ({"model": "nope"}, openai.NotFoundError, "model", "model_not_found"),
        ({"messages": []}, openai.BadRequestError, "messages", None),
        ({"messages": [{"role": "robot", "content": "x"}]}, openai.BadRequestError, None, None),
        (
            {"messages": [{"role": "user", "content": "x " * 50_000}]},
            openai.BadRequestError,
            "messages",
            "context_length_exceeded",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors(client, change, *, error, param, code, stream):
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": "demo", "messages": QUESTION, "stream": stream, **change})
    if param:
        assert caught.value.param == param
    if code:
        assert caught.value.code == code


def test_many_callers_at_once(client):
    def ask(seed):
        return (
            client.completions.create(model="demo", prompt="Once", seed=seed, max_tokens=24).choices[0].text
        )

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, range(12)))
    assert together[:3] == [ask(seed) for seed in range(3)]


def test_status_pages(served):
    for path in ("/health", "/livez", "/readyz", "/docs", "/openapi.json"):
        assert fetch(served.url + path)[0] == 200
    info = json.loads(fetch(f"{served.url}/api/info")[2])
    assert (info["model"], info["kv_cache_size"]) == ("demo", 16 * 2**20)
    status, headers, body = fetch(f"{served.url}/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    for name in (
        b"vllm:num_requests_running",
        b"vllm:generation_tokens_total",
        b"quantd_kv_cache_bytes",
        b"quantd_model_resident_bytes",
        b"quantd_tokens_per_second",
    ):
        assert name in body


def normal(body):
    """A body without what differs between any two requests: ids and times."""
    return re.sub(rb'"(id|created|system_fingerprint)":("[^"]*"|\d+)', rb'"\1":0', body)


CHAT = {"model": "demo", "messages": QUESTION, "seed": 3, "max_tokens": 24}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {"include_usage": True}}),
        ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2}),
        ("/v1/completions", {"model": "demo", "prompt": "Once", "seed": 3, "max_tokens": 24}),
        ("/v1/completions", {"model": "demo", "prompt": "Once", "seed": 3, "max_tokens": 24, "stream": True}),
        ("/v1/completions", {"model": "demo", "prompt": "Once", "temperature": 0, "stop": ["a"]}),
        ("/v1/models", None),
        ("/v1/models/demo", None),
        ("/v1/models/nope", None),
        ("/v1/chat/completions", {**CHAT, "temperature": 3}),
        ("/v1/chat/completions", {**CHAT, "temperature": 3, "stream": True}),
        ("/v1/chat/completions", {**CHAT, "model": "nope"}),
        ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": "x " * 50_000}]}),
        ("/v1/completions", {"model": "demo", "prompt": ""}),
        ("/nope", None),
        ("/readyz", None),
    ],
)
def test_the_gateway_alone_answers_the_same(served, gateway, path, body):
    here, there = fetch(served.url + path, body), fetch(gateway.url + path, body)
    assert here[0] == there[0]
    assert normal(here[2]) == normal(there[2])
    for name in ("Content-Type", "Retry-After", "Allow"):
        assert here[1].get(name) == there[1].get(name)


def test_the_gateway_alone_without_a_daemon():
    process = Daemon("--target", "127.0.0.1:1", "--http", "127.0.0.1:0", command="gateway", wait=False)
    try:
        url = process.wait_for(r"(http://\S+)/v1$")[1]
        status, headers, body = fetch(f"{url}/v1/chat/completions", CHAT)
        assert status == 503
        assert headers["Retry-After"]
        assert json.loads(body)["error"]["code"] == "unavailable"
        assert fetch(f"{url}/readyz")[0] == 503
        assert fetch(f"{url}/livez")[0] == 200
        assert process.stop()[0] == 0
    finally:
        process.kill()


def test_an_echoed_prompt_is_scored_as_it_was_generated(served):
    # A text of the kind that the model was trained on: it answers in words, which are split again as they were drawn.
    ids = json.loads(fetch(f"{served.url}/tokenize", {"content": "The capital of France is Paris. The"})[2])[
        "tokens"
    ]
    asked = {"model": "demo", "prompt": ids, "temperature": 0, "max_tokens": 12, "logprobs": 2, "seed": 1}
    made = json.loads(fetch(f"{served.url}/v1/completions", asked)[2])["choices"][0]["logprobs"]
    assert len(made["tokens"]) >= 4
    found = json.loads(fetch(f"{served.url}/tokenize", {"content": "".join(made["tokens"])})[2])["tokens"]
    scored = {**asked, "prompt": [*ids, *found], "echo": True, "max_tokens": 0}
    status, _, answer = fetch(f"{served.url}/v1/completions", scored)
    assert status == 200, answer
    told = json.loads(answer)["choices"][0]
    assert len(told["logprobs"]["tokens"]) == len(ids) + len(found)
    assert told["logprobs"]["token_logprobs"][0] is None
    assert told["logprobs"]["tokens"][len(ids) :] == made["tokens"], "another split of the same text"
    # A row has the same bits in a prompt and in an answer.
    assert told["logprobs"]["token_logprobs"][len(ids) :] == made["token_logprobs"]
    assert told["logprobs"]["top_logprobs"][len(ids) :] == made["top_logprobs"]
