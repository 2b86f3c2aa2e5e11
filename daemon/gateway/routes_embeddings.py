"""Vectors of texts: /v1/embeddings as OpenAI has it, and /v1/rerank by the cosine between a query and documents."""

from __future__ import annotations

import array
import asyncio
import base64
import operator
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from daemon.errors import ApiError
from daemon.gateway.backend import Backend, CallContext
from daemon.gateway.body import read_json
from daemon.gateway.fields import check_fields, refuse
from daemon.gateway.replies import JsonResponse
from daemon.gateway.routing import Routes
from daemon.gateway.schema import Body, Int32, Prompt, read_fields
from quantd.v1 import embed_pb2 as pb
from quantd.v1 import embedding_service_pb2 as rpc

Document = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}},
            ]
        }
    ),
]


class EmbeddingsRequest(Body):
    """POST /v1/embeddings."""

    model: str
    input: Prompt
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Int32 | None = None


class RerankRequest(Body):
    """POST /v1/rerank."""

    model: str
    query: str
    documents: list[Document]
    top_n: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    return_documents: bool = False


def make_routes(backend: Backend) -> Routes:
    """Routes over `backend`."""
    routes = Routes()

    @routes.post("/v1/embeddings", body=EmbeddingsRequest)
    async def embeddings(request: Request) -> Response:
        """Give the vectors of texts or token ids, each of length 1."""
        body = await read_json(request)
        check_fields(body)
        asked = read_fields(EmbeddingsRequest, body)
        message = rpc.EmbedRequest(model=asked.model, input=_inputs(asked.input))
        if asked.dimensions is not None:
            message.dimensions = asked.dimensions
        answer = await backend.embed(message, _context(request))
        # Many long vectors take a while to write as text.
        return await asyncio.to_thread(_embeddings_response, answer, asked.encoding_format == "base64")

    @routes.post("/v1/rerank", body=RerankRequest)
    @routes.post("/rerank", body=RerankRequest)
    async def rerank(request: Request) -> Response:
        """Order documents by the cosine between their vectors and the query's; texts that are too long are cut."""
        asked = read_fields(RerankRequest, await read_json(request))
        texts = _documents(asked.documents)
        message = rpc.EmbedRequest(
            model=asked.model,
            input=[pb.EmbedInput(text=text) for text in (asked.query, *texts)],
            truncate=True,
        )
        context = _context(request)
        try:
            answer = await backend.embed(message, context)
        except ApiError as failure:
            raise _as_rerank(failure) from None
        scores = await asyncio.to_thread(_scores, answer)
        order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))[: asked.top_n]
        results: list[dict[str, Any]] = []
        for index in order:
            result: dict[str, Any] = {"index": index, "relevance_score": scores[index]}
            if asked.return_documents:
                result["document"] = {"text": texts[index]}
            results.append(result)
        usage = {"prompt_tokens": answer.prompt_tokens, "total_tokens": answer.prompt_tokens}
        return JsonResponse(
            {"id": f"rerank-{context.request_id}", "model": answer.model, "usage": usage, "results": results}
        )

    return routes


def _inputs(value: Any) -> list[pb.EmbedInput]:
    """A text, token ids, or a list of either; how many and how long is the service's business."""
    several = value if isinstance(value, list) and value and isinstance(value[0], str | list) else [value]
    is_one = several is not value
    return [_input(one, "input" if is_one else f"input[{index}]") for index, one in enumerate(several)]


def _input(value: Any, field: str) -> pb.EmbedInput:
    if isinstance(value, str):
        return pb.EmbedInput(text=value)
    if not isinstance(value, list) or not all(type(one) is int and 0 <= one < 2**31 for one in value):
        raise refuse(field, "must be a string, token ids, or a list of these")
    message = pb.EmbedInput()
    message.tokens.ids.extend(value)
    return message


def _documents(values: Sequence[Any]) -> list[str]:
    """The texts of documents, which are strings or objects with a text."""
    texts = []
    for index, value in enumerate(values):
        text = value.get("text") if isinstance(value, dict) else value
        if not isinstance(text, str) or not text:
            raise refuse(
                f"documents[{index}]", "must be a string that is not empty, or an object with such a text"
            )
        texts.append(text)
    if not texts:
        raise refuse("documents", "must not be empty")
    return texts


def _as_rerank(failure: ApiError) -> ApiError:
    """A failure with the names that the client used: the query is the first input, the documents follow."""
    found = re.fullmatch(r"input(?:\[(\d+)\])?", failure.field)
    if found is None:
        return failure
    if found[1] is None:
        field = "documents"
    else:
        field = "query" if found[1] == "0" else f"documents[{int(found[1]) - 1}]"
    message = str(failure).replace(failure.field, field, 1)
    return ApiError(
        failure.reason, message, field=field, retry_after_s=failure.retry_after_s, details=failure.details
    )


def _embeddings_response(answer: rpc.EmbedResponse, as_base64: bool) -> JsonResponse:
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _base64(one.values) if as_base64 else list(one.values),
        }
        for index, one in enumerate(answer.embeddings)
    ]
    usage = {"prompt_tokens": answer.prompt_tokens, "total_tokens": answer.prompt_tokens}
    return JsonResponse({"object": "list", "data": data, "model": answer.model, "usage": usage})


def _base64(values: Sequence[float]) -> str:
    """32-bit floats, little-endian, as OpenAI's client reads them."""
    numbers = array.array("f", values)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()


def _scores(answer: rpc.EmbedResponse) -> list[float]:
    """The cosine of the first vector with each of the others; all have length 1."""
    query = list(answer.embeddings[0].values)
    return [sum(map(operator.mul, query, one.values)) for one in answer.embeddings[1:]]


def _context(request: Request) -> CallContext:
    return CallContext(request_id=request.state.request_id, credential=request.state.credential)
