"""Counting, cutting and rendering without generating: input_tokens, /tokenize, /detokenize, /apply-template."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from daemon.gateway.backend import Backend, CallContext
from daemon.gateway.body import read_json
from daemon.gateway.fields import check_fields, refuse
from daemon.gateway.replies import JsonResponse
from daemon.gateway.routing import Routes
from daemon.gateway.schema import ChatRequestFields, DetokenizeRequest, TokenizeRequest, read_fields
from daemon.gateway.translate import conversation
from quantd.v1 import tokenizer_service_pb2 as rpc


def make_routes(backend: Backend) -> Routes:
    """Routes over `backend`."""
    routes = Routes()

    async def render(request: Request, body: dict[str, Any]) -> rpc.RenderChatResponse:
        check_fields(body)
        message = conversation(read_fields(ChatRequestFields, {"model": "", **body}))
        return await backend.render_chat(rpc.RenderChatRequest(request=message), _context(request))

    @routes.post("/v1/chat/completions/input_tokens", body=ChatRequestFields)
    async def input_tokens(request: Request) -> Response:
        """Count the tokens of a conversation, with its template and its tools."""
        rendered = await render(request, await read_json(request))
        return JsonResponse({"object": "response.input_tokens", "input_tokens": len(rendered.ids)})

    @routes.post("/apply-template", body=ChatRequestFields)
    async def apply_template(request: Request) -> Response:
        """Render a conversation with the model's chat template."""
        rendered = await render(request, await read_json(request))
        return JsonResponse({"prompt": rendered.prompt})

    @routes.post("/tokenize", body=TokenizeRequest)
    async def tokenize(request: Request) -> Response:
        """Cut a text (`content` or `prompt`) or a conversation (`messages`) into token ids."""
        body = await read_json(request)
        asked = read_fields(TokenizeRequest, body)
        texts = [text for text in (asked.content, asked.prompt) if text is not None]
        if len(texts) + (asked.messages is not None) != 1:
            raise refuse("content", "exactly one of content, prompt and messages must be given")
        context = _context(request)
        if asked.messages is not None:
            ids = list((await render(request, body)).ids)
        else:
            add_special = asked.add_special if asked.add_special_tokens is None else asked.add_special_tokens
            message = rpc.TokenizeRequest(
                model=asked.model,
                text=texts[0],
                no_special=not add_special,
                parse_special=asked.parse_special,
            )
            ids = list((await backend.tokenize(message, context)).ids)
        answer: dict[str, Any] = {"tokens": ids, "count": len(ids)}
        if asked.with_pieces or asked.return_token_strs:
            pieces = [await _piece(asked.model, token_id, context) for token_id in ids]
            if asked.return_token_strs:
                answer["token_strs"] = pieces
            if asked.with_pieces:
                answer["tokens"] = [
                    {"id": token_id, "piece": piece} for token_id, piece in zip(ids, pieces, strict=True)
                ]
        return JsonResponse(answer)

    async def _piece(model: str, token_id: int, context: CallContext) -> str:
        message = rpc.DetokenizeRequest(model=model, ids=[token_id])
        return (await backend.detokenize(message, context)).text

    @routes.post("/detokenize", body=DetokenizeRequest)
    async def detokenize(request: Request) -> Response:
        """Join token ids to a text."""
        asked = read_fields(DetokenizeRequest, await read_json(request))
        message = rpc.DetokenizeRequest(model=asked.model, ids=asked.tokens)
        text = (await backend.detokenize(message, _context(request))).text
        return JsonResponse({"content": text, "prompt": text})

    return routes


def _context(request: Request) -> CallContext:
    return CallContext(request_id=request.state.request_id, credential=request.state.credential)
