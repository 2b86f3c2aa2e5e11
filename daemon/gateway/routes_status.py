"""Health, and facts about the server."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from daemon.errors import ApiError
from daemon.gateway.backend import Backend, CallContext
from daemon.gateway.replies import JsonResponse
from daemon.gateway.routing import Routes
from quantd.v1 import model_service_pb2


def make_routes(backend: Backend, *, version: str, kv_budget_bytes: int | None) -> Routes:
    """Routes over `backend`; `kv_budget_bytes` is the configured budget, None to tell the size of the arena."""
    routes = Routes()

    @routes.get("/health")
    async def health(_: Request) -> Response:
        """Say whether a request would be answered now: 200, otherwise 503."""
        state = await backend.health()
        return _state("ok" if state.ready else "unavailable", state.detail, ok=state.ready)

    @routes.get("/readyz")
    async def readyz(_: Request) -> Response:
        """Say whether a request would be answered now: 200, otherwise 503 (loading, draining, failed)."""
        state = await backend.health()
        return _state("ready" if state.ready else "not ready", state.detail, ok=state.ready)

    @routes.get("/livez")
    async def livez(_: Request) -> Response:
        """Say whether the process works: 200, otherwise 503 and it should be replaced."""
        state = await backend.health()
        return _state("live" if state.live else "failed", state.detail, ok=state.live)

    @routes.get("/api/info")
    async def info(request: Request) -> Response:
        """Tell the version, the model being served, and how its memory is shared out."""
        context = CallContext(request_id=request.state.request_id, credential=request.state.credential)
        facts = {"version": version, "model": None, "kv_cache_size": kv_budget_bytes}
        try:
            model = (await backend.get_model(model_service_pb2.GetModelRequest(), context)).model
        except ApiError as failure:
            if failure.reason == "MODEL_NOT_FOUND":
                return JsonResponse(facts)
            raise
        plan = (await backend.plan_memory(model_service_pb2.PlanMemoryRequest(), context)).plan
        return JsonResponse(
            {
                **facts,
                "model": model.name,
                "kv_cache_size": plan.kv_arena_bytes if kv_budget_bytes is None else kv_budget_bytes,
                "kv_arena_bytes": plan.kv_arena_bytes,
                "kv_type": plan.kv_type,
                "sessions": plan.sessions,
                "context": model.session_context_tokens,
                "context_train": model.context_length,
            }
        )

    return routes


def _state(status: str, detail: str, *, ok: bool) -> Response:
    return JsonResponse({"status": status, "detail": detail}, status_code=200 if ok else 503)
