"""Embeddings and reranking over HTTP: the official client, and what is refused by name."""

import base64
import struct

import openai
import pytest

from daemon.errors import ApiError


@pytest.fixture
def ask(serve):
    with openai.OpenAI(base_url=f"{serve()}/v1", api_key="none", max_retries=0) as client:
        yield client


def vector(size):
    first = 1 / (1 + size)
    return pytest.approx([first, (1 - first**2) ** 0.5, 0, 0], rel=1e-6)


@pytest.mark.parametrize("form", ["float", "base64", None])
def test_the_official_client(ask, backend, form):
    options = {} if form is None else {"encoding_format": form}  # the client asks for base64 by itself
    answer = ask.embeddings.create(model="demo", input=["abc", "de"], dimensions=3, user="u", **options)
    assert [one.index for one in answer.data] == [0, 1]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 5
    assert answer.model == "demo"
    sent = backend.requests[0]
    assert [one.text for one in sent.input] == ["abc", "de"]
    assert sent.dimensions == 3
    assert not sent.truncate
    if form == "base64":
        values = [struct.unpack("<4f", base64.b64decode(one.embedding)) for one in answer.data]
    else:
        values = [one.embedding for one in answer.data]
    assert values == [vector(3), vector(2)]


@pytest.mark.parametrize(
    ("value", "sent"),
    [("abc", ["abc"]), (["a"], ["a"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
    ids=["text", "texts", "ids", "lists of ids"],
)
def test_inputs(ask, backend, value, sent):
    ask.embeddings.create(model="demo", input=value)
    request = backend.requests[0]
    assert [one.text or list(one.tokens.ids) for one in request.input] == sent
    assert not request.HasField("dimensions")


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"input": [True]}, "input"),
        ({"input": ["a", 5]}, "input[1]"),
        ({"input": [[1], [-1]]}, "input[1]"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"dimensions": "3"}, "dimensions"),
        ({"user": 5}, "user"),
        ({"model": 5}, "model"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value)[:30],
)
async def test_bad_fields(client, backend, changes, param):
    answer = await client.post("/v1/embeddings", json={"model": "demo", "input": "x", **changes})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert not backend.requests


def test_errors_keep_their_field(ask, backend):
    backend.texts = [ApiError("CONTEXT_LENGTH_EXCEEDED", "input[1]: too long", field="input[1]")]
    with pytest.raises(openai.BadRequestError) as caught:
        ask.embeddings.create(model="demo", input=["a", "b"])
    assert (caught.value.param, caught.value.code) == ("input[1]", "context_length_exceeded")


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank"])
async def test_rerank(client, backend, path):
    body = {"model": "demo", "query": "abc", "documents": ["abcdefghi", {"text": "abc"}, "ab", "abc"]}
    answer = (await client.post(path, json=body)).json()
    assert [one["index"] for one in answer["results"]] == [1, 3, 2, 0]
    assert answer["results"][0]["relevance_score"] == pytest.approx(1)
    assert set(answer["results"][0]) == {"index", "relevance_score"}
    assert answer["usage"]["total_tokens"] == 20
    assert backend.requests[0].truncate
    answer = (await client.post(path, json={**body, "top_n": 1, "return_documents": True})).json()
    assert [one["document"] for one in answer["results"]] == [{"text": "abc"}]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"documents": []}, "documents"),
        ({"documents": ["a", {"title": "b"}]}, "documents[1]"),
        ({"query": None}, "query"),
        ({"top_n": 0}, "top_n"),
    ],
    ids=["none", "no text", "no query", "none wanted"],
)
async def test_rerank_refuses_by_name(client, backend, changes, param):
    body = {"model": "demo", "query": "a", "documents": ["b"], **changes}
    answer = await client.post("/v1/rerank", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert not backend.requests


@pytest.mark.parametrize(
    ("field", "param"),
    [("input[0]", "query"), ("input[2]", "documents[1]"), ("input", "documents"), ("model", "model")],
)
async def test_rerank_names_what_the_client_sent(client, backend, field, param):
    backend.texts = [ApiError("INVALID_ARGUMENT", f"{field}: no", field=field)]
    answer = await client.post("/v1/rerank", json={"model": "demo", "query": "a", "documents": ["b", "c"]})
    error = answer.json()["error"]
    assert (error["param"], error["message"]) == (param, f"{param}: no")


async def test_ollamas_embed(client, backend):
    body = {"model": "demo", "input": ["abc", "de"], "keep_alive": "5m", "dimensions": 4}
    answer = (await client.post("/api/embed", json=body)).json()
    assert answer["embeddings"] == [vector(3), vector(2)]
    assert answer["prompt_eval_count"] == 5
    assert answer["total_duration"] > 0
    assert backend.requests[0].truncate
    assert backend.requests[0].keep_alive_ms == 300_000
    await client.post(
        "/api/embed", json={"model": "demo", "input": "abc", "truncate": False, "keep_alive": -1}
    )
    assert not backend.requests[1].truncate
    assert backend.requests[1].keep_alive_ms == -1
    answer = (await client.post("/api/embeddings", json={"model": "demo", "prompt": "abc"})).json()
    assert answer == {"embedding": vector(3)}
    assert (await client.post("/api/embed", json={"model": "demo", "input": []})).json()["embeddings"] == []
    assert (await client.post("/api/embeddings", json={"model": "demo"})).json() == {"embedding": []}
    assert len(backend.requests) == 3


async def test_ollamas_errors(client, backend):
    answer = await client.post("/api/embed", json={"model": "demo", "input": "a", "keep_alive": "long"})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("keep_alive")
    backend.texts = [ApiError("MODEL_NOT_FOUND", "There is no such model.")]
    answer = await client.post("/api/embeddings", json={"model": "x", "prompt": "a"})
    assert (answer.status_code, answer.json()) == (404, {"error": "There is no such model."})
