"""Ollama's API: the models of the store, and the blobs that they are made of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from daemon.errors import ApiError
from daemon.gateway.backend import Backend, CallContext
from daemon.gateway.body import BODY_TIMEOUT_S, read_json
from daemon.gateway.events import unless_gone
from daemon.gateway.fields import refuse
from daemon.gateway.ollama_answer import failure_message, failure_response, json_line
from daemon.gateway.ollama_request import options_message
from daemon.gateway.replies import JsonResponse
from daemon.gateway.routes_ollama import context_of, model_name
from daemon.gateway.routing import Routes
from daemon.gateway.sse import line_response
from daemon.gateway.translate_chat import messages
from quantd.v1 import model_service_pb2 as rpc

_PART_BYTES = 1 << 20
_REFUSED = ("draft_files", "draft_quantize")


def make_routes(backend: Backend, *, send_timeout_s: float) -> Routes:
    """Routes over `backend`; a client that reads nothing of a download for `send_timeout_s` loses the connection."""
    routes = Routes(answer_failure=failure_response)

    @routes.post("/api/copy")
    async def copy(request: Request) -> Response:
        """Give a model a second name."""
        body = await read_json(request, any_media_type=True)
        message = rpc.CopyModelRequest(
            source=model_name(body, "source"), destination=model_name(body, "destination")
        )
        await backend.copy_model(message, context_of(request))
        return Response()

    @routes.delete("/api/delete")
    async def delete(request: Request) -> Response:
        """Forget a name."""
        name = model_name(await read_json(request, any_media_type=True))
        await backend.delete_model(rpc.DeleteModelRequest(name=name), context_of(request))
        return Response()

    @routes.post("/api/create")
    async def create(request: Request) -> Response:
        """Make a model from another one or from blobs, told in lines of JSON unless `stream` is false."""
        body = await read_json(request, any_media_type=True)
        context = context_of(request)
        return await _told(
            request, body, backend.create_model(_creation(body), context), context, send_timeout_s
        )

    @routes.post("/api/pull")
    async def pull(request: Request) -> Response:
        """Download a model, told in lines of JSON unless `stream` is false."""
        body = await read_json(request, any_media_type=True)
        context = context_of(request)
        events = backend.pull_model(rpc.PullModelRequest(name=model_name(body)), context)
        return await _told(request, body, events, context, send_timeout_s)

    @routes.head("/api/blobs/{digest}")
    async def has_blob(request: Request, digest: str) -> Response:
        """Say whether a blob is there."""
        answer = await backend.has_blob(rpc.HasBlobRequest(digest=_digest(digest)), context_of(request))
        return Response(status_code=200 if answer.exists else 404)

    @routes.post("/api/blobs/{digest}")
    async def upload(request: Request, digest: str) -> Response:
        """Store a blob, whose bytes are the body."""
        parts = _parts(request, _digest(digest))
        async with aclosing(parts):
            await backend.upload_blob(parts, context_of(request))
        return Response(status_code=201)

    return routes


async def _told(
    request: Request, body: dict[str, Any], events: Any, context: CallContext, send_timeout_s: float
) -> Response:
    """Work with progress as lines of JSON; what is refused before the first of them has a status of its own."""
    try:
        first = await unless_gone(request, _first(events))
        if body.get("stream") is False:
            await unless_gone(request, _read_out(events))
            return JsonResponse({"status": "success"})
    except BaseException:
        await events.aclose()
        raise
    return line_response(_lines(first, events, context.request_id), send_timeout_s=send_timeout_s)


def _digest(text: str) -> str:
    return text.replace("sha256-", "sha256:", 1)


async def _first(events: Any) -> Any:
    return await anext(events, None)


async def _read_out(events: Any) -> None:
    async for _ in events:
        pass


async def _lines(first: Any, events: Any, request_id: str) -> AsyncIterator[bytes]:
    try:
        async with aclosing(events):
            if first is not None and first.WhichOneof("event") == "progress":
                yield json_line(_progress(first.progress))
            async for event in events:
                if event.WhichOneof("event") == "progress":
                    yield json_line(_progress(event.progress))
        yield json_line({"status": "success"})
    except Exception as failure:  # noqa: BLE001 - the status is sent; the stream itself must say it
        yield json_line({"error": failure_message(failure, request_id)})


def _progress(progress: rpc.PullProgress | rpc.CreateProgress) -> dict[str, Any]:
    line: dict[str, Any] = {"status": progress.status}
    if isinstance(progress, rpc.PullProgress) and progress.digest:
        line["digest"] = progress.digest
    if "digest" in line or progress.total_bytes:
        line |= {"total": progress.total_bytes, "completed": progress.completed_bytes}
    return line


def _creation(body: dict[str, Any]) -> rpc.CreateModelRequest:
    for field in _REFUSED:
        if body.get(field):
            raise refuse(field, "is not supported by this server")
    message = rpc.CreateModelRequest(name=model_name(body))
    if body.get("from"):
        setattr(message, "from", model_name(body, "from"))
    for field, found in (("files", message.files), ("adapters", message.adapter_files)):
        files = body.get(field) or {}
        if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
            raise refuse(field, "must be an object of file names and digests")
        for name, digest in files.items():
            found.add(file=name, digest=_digest(digest))
    for field in ("quantize", "quantization"):  # the second is its older name
        if body.get(field):
            if not isinstance(body[field], str):
                raise refuse(field, "must be the name of a recipe, such as q4_K_M")
            message.quantize = body[field]
    if body.get("messages"):
        message.messages.extend(messages(body["messages"]))
    for field in ("template", "system"):
        text = body.get(field)
        if text is not None:
            if not isinstance(text, str):
                raise refuse(field, "must be a text")
            setattr(message, field, text)
    licenses = body.get("license") or []
    licenses = [licenses] if isinstance(licenses, str) else licenses
    if not isinstance(licenses, list) or not all(isinstance(text, str) for text in licenses):
        raise refuse("license", "must be a text or a list of texts")
    message.licenses.extend(licenses)
    if body.get("parameters"):
        message.parameters.CopyFrom(options_message(body["parameters"], "parameters"))
    return message


async def _parts(request: Request, digest: str) -> AsyncGenerator[rpc.UploadBlobRequest, None]:
    """The body in messages of a bounded size; each part must come in time, however many there are."""
    yield rpc.UploadBlobRequest(digest=digest)
    chunks = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                chunk = await anext(chunks, None)
        except TimeoutError:
            raise ApiError(
                "REQUEST_TIMEOUT", f"The body brought nothing for {BODY_TIMEOUT_S:g} seconds."
            ) from None
        if chunk is None:
            return
        for start in range(0, len(chunk), _PART_BYTES):
            yield rpc.UploadBlobRequest(data=chunk[start : start + _PART_BYTES])
