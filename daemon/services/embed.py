"""EmbeddingService: texts to vectors.  Checks, limits and the order in which an encoder is used live here.

    request -> checks -> tokens (text workers) -> a place in the model's line -> steps in a thread -> vectors

An encoder computes for one request at a time: the line in front of it has one place, bounds who waits and for how long, and
charges the caller's key.  The host's admission is held until the last step has ended, so that no model goes while it computes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.access.line import Ticket
from daemon.access.lines import Lines
from daemon.errors import ApiError, to_api_error
from daemon.keep_alive import from_ms
from daemon.log import get_logger
from daemon.services.call import Call
from daemon.services.host import ModelHost, Served
from daemon.services.options import MAX_TEXT_BYTES, invalid
from daemon.services.prompt import check_ids
from quantd.v1 import embed_pb2 as pb
from quantd.v1 import embedding_service_pb2 as rpc
from runtime.errors import ContextLengthError

log = get_logger("quantd.requests")

MAX_INPUTS = 512
MAX_TOTAL_TOKENS = 262_144
_EncodedText = tuple[list[int], bool]  # token ids, whether the text was cut


class EmbeddingService:
    """Embeddings from the served encoders."""

    def __init__(self, host: ModelHost, lines: Lines | None = None) -> None:
        """`lines`: those of all models, which all services of a daemon share."""
        self._host = host
        self._lines = lines or Lines()

    async def embed(self, request: rpc.EmbedRequest, call: Call) -> rpc.EmbedResponse:
        """Embeds texts; the vectors come in the order of the inputs."""
        metrics = self._host.metrics
        started_s = time.monotonic()
        ticket: Ticket | None = None
        try:
            _check_inputs(request)
            keep_alive_s = from_ms(request.keep_alive_ms) if request.HasField("keep_alive_ms") else None
            async with self._host.admit(
                request.model, deadline=call.deadline, keep_alive_s=keep_alive_s
            ) as served:
                _check_model(request, served)
                encoded = await asyncio.get_running_loop().run_in_executor(
                    self._host.text_workers, _encode, request, served.model
                )
                num_tokens = sum(len(ids) for ids, _ in encoded)
                line = self._lines.of(served.bridge, max_running=1)
                ticket = line.join(call.caller, priority=call.caller.key.priority, prompt_tokens=num_tokens)
                async for _ in ticket.positions(call.deadline, tell=False):
                    pass
                vectors = await _compute([ids for ids, _ in encoded], served.model, call)
        except Exception as failure:
            reason = to_api_error(failure).reason
            if ticket is not None and ticket.admitted_s is not None:
                metrics.failed(reason)
            else:
                metrics.rejected(reason)
            raise
        finally:
            if ticket is not None:
                ticket.leave()
        response = await asyncio.to_thread(_response, request, served.name, vectors, encoded)
        total_s = time.monotonic() - started_s
        metrics.embedded(served.name, num_inputs=len(encoded), prompt_tokens=num_tokens, seconds=total_s)
        log.info(
            "embeddings_finished",
            request_id=call.request_id,
            inputs=len(encoded),
            prompt_tokens=num_tokens,
            queue_ms=round(ticket.waited_s * 1e3, 1),
            total_ms=round(total_s * 1e3, 1),
        )
        return response


def _check_inputs(request: rpc.EmbedRequest) -> None:
    """Refuses what is wrong with any model, before one is loaded."""
    if not 1 <= len(request.input) <= MAX_INPUTS:
        raise invalid("input", f"1 to {MAX_INPUTS} texts in a request, not {len(request.input)}")
    for index, one in enumerate(request.input):
        field = f"input[{index}]"
        kind = one.WhichOneof("input")
        if kind is None or not (one.text if kind == "text" else one.tokens.ids):
            raise invalid(field, "must not be empty")
        if kind == "text" and len(one.text.encode()) > MAX_TEXT_BYTES:
            raise invalid(field, f"at most {MAX_TEXT_BYTES} bytes")


def _check_model(request: rpc.EmbedRequest, served: Served) -> None:
    """Refuses models that generate, and what their vectors and vocabularies do not have."""
    model = served.model
    if model.generates:
        raise ApiError(
            "INVALID_ARGUMENT",
            f"The model {served.name!r} generates text; it gives no embeddings. Name an embedding model (bert, nomic-bert).",
            field="model",
        )
    n_embd = model.config.n_embd
    if request.HasField("dimensions") and not 1 <= request.dimensions <= n_embd:
        raise invalid("dimensions", f"1 to {n_embd} with this model, not {request.dimensions}")


def _encode(request: rpc.EmbedRequest, model: Any) -> list[_EncodedText]:
    """Token ids of every input, bounded one by one and together.  Runs in a text worker."""
    limit: int = model.max_embedding_tokens
    encoded: list[_EncodedText] = []
    total = 0
    for index, one in enumerate(request.input):
        field = f"input[{index}]"
        if one.WhichOneof("input") == "text":
            ids = model.tokenizer.encode(one.text)
            if not ids:
                raise invalid(field, "gives no tokens")
        else:
            ids = list(one.tokens.ids)
            check_ids(field, ids, model.config.n_vocab)
        truncated = len(ids) > limit
        if truncated:
            if not request.truncate:
                raise ContextLengthError(
                    field,
                    f"{field}: {len(ids)} tokens; the model takes {limit}. Shorten the text, or let it be truncated.",
                    prompt_tokens=len(ids),
                    context_tokens=limit,
                )
            # The model's last token stays the last one: it was trained to find it there.
            ends = ids[-1] == model.tokenizer.eos_id
            ids = [*ids[: limit - 1], ids[-1]] if ends else ids[:limit]
        total += len(ids)
        if total > MAX_TOTAL_TOKENS:
            raise invalid(
                "input", f"at most {MAX_TOTAL_TOKENS} tokens in a request; send fewer texts at once"
            )
        encoded.append((ids, truncated))
    return encoded


async def _compute(sequences: Sequence[Sequence[int]], model: Any, call: Call) -> NDArray[np.float32]:
    """Vectors (n_inputs, n_embd), one step after the other: between two, a caller that left or ran out of time ends it."""
    parts = []
    for several in _steps(sequences, model.max_embedding_tokens):
        if call.deadline is not None and time.monotonic() >= call.deadline:
            raise ApiError("DEADLINE_EXCEEDED", "The time for this request ran out.")
        parts.append(await _to_the_end(model, several))
    vectors: NDArray[np.float32] = np.concatenate(parts)
    if not np.isfinite(vectors).all():
        raise ApiError("NON_FINITE_LOGITS", "The model computed numbers that are not finite.")
    return vectors


async def _to_the_end(model: Any, sequences: list[Sequence[int]]) -> NDArray[np.float32]:
    """One step in a thread.  A cancelled caller leaves when the step has ended: its model cannot go before."""
    step = asyncio.ensure_future(asyncio.to_thread(model.embed, sequences))
    try:
        vectors: NDArray[np.float32] = await asyncio.shield(step)
    except asyncio.CancelledError:
        while not step.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([step])
        if not step.cancelled():
            step.exception()  # nobody waits for it any more
        raise
    return vectors


def _steps(sequences: Sequence[Sequence[int]], max_tokens: int) -> Iterator[list[Sequence[int]]]:
    """Yield the sequences in order, at most `max_tokens` together; what is embedded together changes no vector."""
    part: list[Sequence[int]] = []
    num_tokens = 0
    for sequence in sequences:
        if part and num_tokens + len(sequence) > max_tokens:
            yield part
            part, num_tokens = [], 0
        part.append(sequence)
        num_tokens += len(sequence)
    yield part


def _shortened(vectors: NDArray[np.float32], dimensions: int) -> NDArray[np.float32]:
    """The first `dimensions` values (n_inputs, dimensions) of each vector, of length 1 again (Matryoshka embeddings)."""
    kept = vectors[:, :dimensions]
    lengths = np.linalg.norm(kept, axis=1, keepdims=True)
    return (kept / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def _response(
    request: rpc.EmbedRequest, name: str, vectors: NDArray[np.float32], encoded: Sequence[_EncodedText]
) -> rpc.EmbedResponse:
    """The answer from the vectors (n_inputs, n_embd)."""
    if request.HasField("dimensions"):
        vectors = _shortened(vectors, request.dimensions)
    response = rpc.EmbedResponse(model=name)
    for vector, (ids, truncated) in zip(vectors, encoded, strict=True):
        response.embeddings.append(
            pb.Embedding(values=vector.tolist(), num_tokens=len(ids), truncated=truncated)
        )
        response.prompt_tokens += len(ids)
    return response
