"""Health, info, metrics and the API page."""

from __future__ import annotations

import re

import httpx2

from daemon.errors import ApiError
from daemon.gateway.app import create_app
from daemon.gateway.backend import Health


async def test_health(client, backend):
    for path in ("/health", "/readyz", "/livez"):
        assert (await client.get(path)).status_code == 200
    backend.state = Health(live=True, ready=False, detail="the model is being loaded")
    assert (await client.get("/livez")).status_code == 200
    for path in ("/health", "/readyz"):
        answer = await client.get(path)
        assert answer.status_code == 503
        assert answer.json()["detail"] == "the model is being loaded"
    backend.state = Health(live=False, ready=False, detail="the engine failed")
    assert (await client.get("/livez")).status_code == 503


async def test_info(client, backend):
    facts = (await client.get("/api/info")).json()
    assert facts["kv_cache_size"] == 1 << 20
    assert (facts["model"], facts["sessions"], facts["context"]) == ("demo", 4, 512)
    transport = httpx2.ASGITransport(app=create_app(backend, kv_budget_bytes=12345))
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as other:
        assert (await other.get("/api/info")).json()["kv_cache_size"] == 12345

        async def none(request, context):
            raise ApiError("MODEL_NOT_FOUND", "There is no model ''.")

        backend.get_model = none
        facts = (await other.get("/api/info")).json()
        assert (facts["model"], facts["kv_cache_size"]) == (None, 12345)


async def test_metrics(backend):
    async def metrics(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"quantd_up 1\n"})

    transport = httpx2.ASGITransport(app=create_app(backend, metrics_app=metrics))
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.get("/metrics")
        assert (answer.status_code, answer.text) == (200, "quantd_up 1\n")
        assert answer.headers["x-request-id"]


async def test_api_page_works_offline(client):
    page = (await client.get("/docs")).text
    assert "/openapi.json" in page
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", page)
    description = (await client.get("/openapi.json")).json()
    assert description["openapi"].startswith("3.")
    paths = description["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/api/info"} <= set(paths)
    schema = paths["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"model", "messages"} == set(schema["required"])
    assert "temperature" in schema["properties"]
    assert "$ref" not in str(schema)
