"""Routes, declared once: Starlette serves them, and FastAPI writes the API page's document of them when it is asked for.

FastAPI reads each handler's signature, and with its models takes as long to import as a model takes to load.  Nothing that
answers a request needs it: bodies are read by hand (daemon/gateway/body.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from daemon.gateway.events import ClientGoneError

if TYPE_CHECKING:
    from pydantic import BaseModel

# Takes the request, and by their names the parameters of its path.
Handler = Callable[..., Awaitable[Response]]
AnyHandler = TypeVar("AnyHandler", bound=Handler)
# The answer to what a handler raised, told in the words of one API.
AnswerFailure = Callable[[Exception, str], Response]


@dataclass(frozen=True, slots=True)
class Declared:
    """One route."""

    method: str
    path: str
    handler: Handler  # its docstring describes it on the API page
    body: type[BaseModel] | None  # what it reads, for the API page
    in_schema: bool  # stands on the API page
    answer_failure: AnswerFailure | None  # None: as the application does

    def route(self) -> Route:
        """The same for Starlette."""
        route = Route(self.path, self._endpoint(), methods=[self.method], include_in_schema=False)
        route.methods = {self.method}  # a GET alone does not answer HEAD
        return route

    def _endpoint(self) -> Callable[[Request], Awaitable[Response]]:
        handler, answer_failure = self.handler, self.answer_failure

        async def answer(request: Request) -> Response:
            return await handler(request, **request.path_params)

        if answer_failure is None:
            return answer

        async def answer_in_its_words(request: Request) -> Response:
            try:
                return await handler(request, **request.path_params)
            except ClientGoneError:
                raise
            except Exception as failure:  # noqa: BLE001 - the border of this API
                return answer_failure(failure, request.state.request_id)

        return answer_in_its_words


class Routes:
    """The routes of one API, in order; the decorators add to them."""

    def __init__(self, prefix: str = "", *, answer_failure: AnswerFailure | None = None) -> None:
        """All paths begin with `prefix`; `answer_failure` tells of failures in this API's words."""
        self.declared: list[Declared] = []
        self._prefix = prefix
        self._answer_failure = answer_failure

    def get(self, path: str, **more: Any) -> Callable[[AnyHandler], AnyHandler]:
        """A route for GET."""
        return self.add("GET", path, **more)

    def head(self, path: str, **more: Any) -> Callable[[AnyHandler], AnyHandler]:
        """A route for HEAD."""
        return self.add("HEAD", path, **more)

    def post(self, path: str, **more: Any) -> Callable[[AnyHandler], AnyHandler]:
        """A route for POST."""
        return self.add("POST", path, **more)

    def delete(self, path: str, **more: Any) -> Callable[[AnyHandler], AnyHandler]:
        """A route for DELETE."""
        return self.add("DELETE", path, **more)

    def add(
        self, method: str, path: str, *, body: type[BaseModel] | None = None, in_schema: bool = True
    ) -> Callable[[AnyHandler], AnyHandler]:
        """A route whose handler is what this decorates."""

        def declare(handler: AnyHandler) -> AnyHandler:
            self.declared.append(
                Declared(method, self._prefix + path, handler, body, in_schema, self._answer_failure)
            )
            return handler

        return declare
