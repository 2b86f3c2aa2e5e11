"""Each row of the compatibility table is what it says, and the table on the page is this one."""

import importlib.util
import re

import httpx2
import pytest

from daemon.gateway.app import create_app
from tests.compatibility.registry import DONE, ENDPOINTS, FIELDS, REFUSED
from tests.conftest import REPOSITORY
from tests.gateway.conftest import FakeBackend
from tests.gateway.deltas import full_answer

ROWS = [(path, row) for path, rows in FIELDS.items() for row in rows]
BODIES = {endpoint.path: endpoint.body for endpoint in ENDPOINTS if endpoint.body is not None}
METHODS = {endpoint.path: endpoint.method for endpoint in ENDPOINTS}


BACKEND = FakeBackend()
APP = create_app(BACKEND)


async def ask(path, body, method="POST"):
    """(answer, messages that the backend got)"""
    BACKEND.texts, BACKEND.requests = full_answer(), []
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=APP), base_url="http://127.0.0.1"
    ) as client:
        answer = await client.request(method, path, json=body)
    return answer, sorted(request.SerializeToString(deterministic=True) for request in BACKEND.requests)


def with_field(body, field, value):
    """The body with a field, which may stand in an object of the body."""
    outer, dot, inner = field.partition(".")
    return {**body, outer: {**body.get(outer, {}), inner: value} if dot else value}


def shown(answer):
    """An answer without what differs from request to request."""
    return re.sub(
        r"(chatcmpl|cmpl|resp|msg|rs|fc|rerank)[-_][0-9a-f]{16}|\"created_at\":(\d+|\"[^\"]*\")|\"\w+_duration\":\d+",
        "",
        answer.text,
    )


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: f"{endpoint.method} {endpoint.path}")
async def test_endpoints(endpoint):
    answer, _ = await ask(endpoint.path, endpoint.body, endpoint.method)
    assert answer.status_code == endpoint.status, answer.text


@pytest.mark.parametrize(("path", "row"), ROWS, ids=lambda value: getattr(value, "field", value))
async def test_fields(path, row):
    needs = dict(row.needs)
    base = {**BODIES[path], **needs}
    before, sent_before = await ask(path, base, METHODS[path])
    after, sent_after = await ask(path, with_field(base, row.field, row.value), METHODS[path])
    assert before.status_code == 200
    if row.outcome == REFUSED:
        assert after.status_code == 400
        assert not sent_after
        if path.startswith("/api/"):
            assert row.field in after.json()["error"]
        elif path == "/v1/messages":
            assert row.field in after.json()["error"]["message"]
        else:
            assert after.json()["error"]["param"] == (row.param or row.field)
        return
    assert after.status_code == 200, after.text
    changes = shown(after) != shown(before) if row.in_answer else sent_after != sent_before
    assert changes == (row.outcome == DONE and row.field != "model")


def documented_fields():
    """Fields by endpoint, as the official client's own types have them."""
    from openai.types import completion_create_params as text
    from openai.types import embedding_create_params as embedding
    from openai.types.chat import completion_create_params as chat
    from openai.types.responses import response_create_params as responses

    return {
        "/v1/chat/completions": chat.CompletionCreateParamsBase.__annotations__,
        "/v1/completions": text.CompletionCreateParamsBase.__annotations__,
        "/v1/embeddings": embedding.EmbeddingCreateParams.__annotations__,
        "/v1/responses": responses.ResponseCreateParamsBase.__annotations__,
    }


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
)
def test_no_documented_field_is_forgotten(path):
    assert set(documented_fields()[path]) <= {row.field for row in FIELDS[path]}


def test_the_page_is_up_to_date():
    spec = importlib.util.spec_from_file_location("compatibility", REPOSITORY / "ops" / "compatibility.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = (REPOSITORY / "ops" / "compatibility.md").read_text(encoding="utf-8")
    assert page == script.render(), "run: python ops/compatibility.py"
