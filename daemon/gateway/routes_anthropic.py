"""/v1/messages: Anthropic's Messages API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from daemon.errors import retry_after_header
from daemon.gateway.anthropic_answer import MessageShape, MessageWriter, error_body
from daemon.gateway.anthropic_request import MessagesRequest, messages_message, read_messages
from daemon.gateway.backend import Backend, CallContext
from daemon.gateway.body import read_json
from daemon.gateway.events import ClientGoneError, EventSource
from daemon.gateway.replies import JsonResponse
from daemon.gateway.respond import Responder
from daemon.gateway.routing import Routes
from quantd.v1 import tokenizer_service_pb2


def make_routes(backend: Backend, responder: Responder) -> Routes:
    """Routes over `backend`; failures are told in Anthropic's words."""
    routes = Routes(prefix="/v1/messages")

    @routes.post("", body=MessagesRequest)
    async def messages(request: Request) -> Response:
        """Answer a conversation in Anthropic's form."""

        async def answer() -> Response:
            asked = read_messages(await read_json(request))
            message = messages_message(asked)
            context = CallContext(request_id=request.state.request_id, credential=request.state.credential)
            shape = MessageShape(request_id=context.request_id, model=asked.model)
            source = EventSource(backend.chat(message, context))
            if asked.stream:
                return await responder.stream(request, source, MessageWriter(shape, context.request_id))
            return await responder.whole(request, source, shape.whole)

        return await _in_its_words(request, answer)

    @routes.post("/count_tokens", body=MessagesRequest)
    async def count_tokens(request: Request) -> Response:
        """Count the tokens of a conversation in Anthropic's form."""

        async def answer() -> Response:
            message = messages_message(read_messages(await read_json(request), counts=True))
            context = CallContext(request_id=request.state.request_id, credential=request.state.credential)
            rendered = await backend.render_chat(
                tokenizer_service_pb2.RenderChatRequest(request=message), context
            )
            return JsonResponse({"input_tokens": len(rendered.ids)})

        return await _in_its_words(request, answer)

    return routes


async def _in_its_words(request: Request, answer: Callable[[], Awaitable[Response]]) -> Response:
    try:
        return await answer()
    except ClientGoneError:
        raise
    except Exception as failure:  # noqa: BLE001 - the border of this API
        error, body = error_body(failure, request.state.request_id)
        retry_after = retry_after_header(error)
        headers = {} if retry_after is None else {"Retry-After": retry_after}
        return JsonResponse(body, status_code=error.http_status, headers=headers)
