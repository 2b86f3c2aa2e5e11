"""The HTTP application."""

from __future__ import annotations

from collections.abc import Collection

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from daemon.errors import ApiError
from daemon.gateway import (
    routes_anthropic,
    routes_embed,
    routes_embeddings,
    routes_ollama,
    routes_ollama_store,
    routes_openai,
    routes_page,
    routes_status,
    routes_tokens,
)
from daemon.gateway.backend import Backend
from daemon.gateway.events import ClientGoneError
from daemon.gateway.guard import LOOPBACK_HOSTS, Guard
from daemon.gateway.replies import error_response
from daemon.gateway.respond import Responder
from daemon.gateway.sse import PING_S, SEND_TIMEOUT_S
from daemon.version import version

# An error before the first token is a real status if it comes within this time; long prompts take longer than that.
FIRST_EVENT_S = 5.0


def create_app(
    backend: Backend,
    *,
    metrics_app: ASGIApp | None = None,
    allowed_hosts: Collection[str] | None = LOOPBACK_HOSTS,
    allowed_origins: Collection[str] = (),
    kv_budget_bytes: int | None = None,
    first_event_s: float = FIRST_EVENT_S,
    ping_s: float = PING_S,
    send_timeout_s: float = SEND_TIMEOUT_S,
) -> ASGIApp:
    """The gateway over `backend`.

    `metrics_app` answers /metrics; without it there is no such page.  `allowed_hosts` are the host names under which it may
    be asked (None: any; the default is right for a loopback listener), `allowed_origins` those of web pages beside this
    machine's own.  `kv_budget_bytes` is the configured budget that /api/info tells (None: the size of the arena).
    """
    responder = Responder(first_event_s, ping_s, send_timeout_s)
    declared = [
        route
        for routes in (
            routes_openai.make_routes(backend, responder),
            routes_anthropic.make_routes(backend, responder),
            routes_tokens.make_routes(backend),
            routes_embeddings.make_routes(backend),
            routes_embed.make_routes(backend),
            routes_ollama.make_routes(backend, responder, version=version()),
            routes_ollama_store.make_routes(backend, send_timeout_s=send_timeout_s),
            routes_status.make_routes(backend, version=version(), kv_budget_bytes=kv_budget_bytes),
        )
        for route in routes.declared
    ]
    declared += routes_page.make_routes(declared, version=version()).declared
    served = [route.route() for route in declared]
    if metrics_app is not None:
        served.append(Route("/metrics", _Mounted(metrics_app)))
    app = Starlette(
        routes=served,
        exception_handlers={
            ApiError: _answer_failure,
            HTTPException: _answer_http_exception,
            Exception: _answer_failure,
        },
    )
    app.router.redirect_slashes = False
    return Guard(app, allowed_hosts=allowed_hosts, allowed_origins=allowed_origins)


class _Mounted:
    """An ASGI application at exactly one path."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


async def _answer_failure(request: Request, failure: Exception) -> Response:
    if isinstance(failure, ClientGoneError):
        return Response(status_code=499)  # nobody reads it
    return error_response(failure, request.state.request_id)


async def _answer_http_exception(request: Request, failure: Exception) -> Response:
    """What the framework refuses by itself: unknown paths and methods."""
    assert isinstance(failure, HTTPException)
    if failure.status_code == 405:
        allowed = (failure.headers or {}).get("Allow", "")
        error = ApiError(
            "METHOD_NOT_ALLOWED", f"This path takes {allowed}." if allowed else "Not this method."
        )
        response = error_response(error, request.state.request_id)
        if allowed:
            response.headers["Allow"] = allowed
        return response
    if failure.status_code == 404:
        return error_response(ApiError("NOT_FOUND", "There is no such path."), request.state.request_id)
    return error_response(ApiError("INVALID_ARGUMENT", "The request is malformed."), request.state.request_id)
