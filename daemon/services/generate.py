"""GenerateService: from a request to an answer, for text and for conversations, streamed or whole."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from daemon.errors import ApiError, to_api_error
from daemon.log import get_logger
from daemon.services.answer import Answer, AnswerEvent
from daemon.services.call import Call, new_request_id
from daemon.services.host import ModelHost, Served
from daemon.services.options import Options, read_options
from daemon.services.prompt import (
    check_messages,
    check_prompt,
    encode_chat,
    encode_prompt,
    prompt_text,
    require_room,
)
from daemon.text.stream import TextStream
from quantd.v1 import generate_pb2 as pb
from quantd.v1 import generate_service_pb2 as rpc
from runtime.request import FinishEvent, Request

log = get_logger("quantd.requests")
Message = TypeVar("Message", pb.GenerateRequest, pb.ChatRequest)


class GenerateService:
    """Text generation on the served model."""

    def __init__(self, host: ModelHost) -> None:
        self._host = host

    async def generate(
        self, request: pb.GenerateRequest, call: Call
    ) -> AsyncGenerator[rpc.GenerateResponse, None]:
        """Continues a prompt: Started, Deltas, Done.  Close the iterator to end the request."""
        async with aclosing(self._answer(request, call, check_prompt, encode_prompt)) as events:
            async for event in events:
                yield _wrap(rpc.GenerateResponse, event)

    async def chat(self, request: pb.ChatRequest, call: Call) -> AsyncGenerator[rpc.ChatResponse, None]:
        """Answers a conversation: Started, Deltas, Done.  Close the iterator to end the request."""
        async with aclosing(self._answer(request, call, check_messages, encode_chat)) as events:
            async for event in events:
                yield _wrap(rpc.ChatResponse, event)

    async def generate_unary(
        self, request: rpc.GenerateUnaryRequest, call: Call
    ) -> rpc.GenerateUnaryResponse:
        """Continues a prompt; the whole answer."""
        response = rpc.GenerateUnaryResponse()
        async with aclosing(self._answer(request.request, call, check_prompt, encode_prompt)) as events:
            await _gather(events, response)
        return response

    async def chat_unary(self, request: rpc.ChatUnaryRequest, call: Call) -> rpc.ChatUnaryResponse:
        """Answers a conversation; the whole answer."""
        response = rpc.ChatUnaryResponse()
        async with aclosing(self._answer(request.request, call, check_messages, encode_chat)) as events:
            await _gather(events, response)
        return response

    async def _answer(
        self,
        request: Message,
        call: Call,
        check: Callable[[Message, Served], None],
        encode: Callable[[Message, Served], list[int]],
    ) -> AsyncGenerator[AnswerEvent, None]:
        metrics = self._host.metrics
        try:
            answer, prompt_tokens = await self._begin(request, call, check, encode)
        except Exception as failure:
            metrics.rejected(to_api_error(failure).reason)
            raise
        try:
            yield pb.Started(
                request_id=call.request_id,
                model=answer.served.name,
                created_unix_ms=time.time_ns() // 1_000_000,
                prompt_tokens=prompt_tokens,
            )
            if isinstance(request, pb.GenerateRequest) and request.echo:
                yield pb.Delta(text=prompt_text(request, answer.served))
            async with aclosing(answer.events()) as events:
                async for event in events:
                    yield event
        except ApiError as failure:
            metrics.failed(failure.reason)
            raise
        finally:
            # Whatever ended this (the answer, an error, a cancelled call, a closed iterator): the session is free.
            answer.stream.close()

    async def _begin(
        self,
        request: Message,
        call: Call,
        check: Callable[[Message, Served], None],
        encode: Callable[[Message, Served], list[int]],
    ) -> tuple[Answer, int]:
        """Checks, encodes and submits a request; returns its answer and the number of prompt tokens."""
        accepted_s = time.monotonic()
        with self._host.admit(request.model) as served:
            model = served.model
            options = read_options(
                request.options, n_vocab=model.tokenizer.n_vocab, context_tokens=model.context_tokens
            )
            check(request, served)
            loop = asyncio.get_running_loop()
            ids = await loop.run_in_executor(self._host.text_workers, encode, request, served)
            if call.deadline is not None and time.monotonic() >= call.deadline:
                raise ApiError("DEADLINE_EXCEEDED", "The time for this request ran out.")
            field = (
                "messages"
                if isinstance(request, pb.ChatRequest)
                else request.WhichOneof("prompt") or "prompt"
            )
            engine_request = _engine_request(call, ids, options, model, field)
            text = TextStream(model.tokenizer, options.stop)
            stream = served.bridge.submit(engine_request)
        stream.on_stall = call.on_stall
        answer = Answer(
            served=served,
            stream=stream,
            text=text,
            metrics=self._host.metrics,
            seed=options.sampling.seed,
            with_logprobs=options.sampling.top_logprobs is not None,
            accepted_s=accepted_s,
        )
        stream.on_finish = lambda event: self._finished(call, answer, event)
        return answer, len(ids)

    def _finished(self, call: Call, answer: Answer, event: FinishEvent) -> None:
        """Counts and logs the end of a request, also of one whose caller is gone."""
        reason = "stop" if answer.text.stopped is not None else event.reason.value
        self._host.metrics.finished(
            answer.served.name,
            reason,
            prompt_tokens=event.prompt_tokens,
            generated_tokens=event.completion_tokens,
            queue_s=event.queue_ms / 1e3,
            prefill_s=event.prefill_ms / 1e3,
            decode_s=event.decode_ms / 1e3,
        )
        log.info(
            "request_finished",
            request_id=call.request_id,
            reason=reason,
            error=event.error,
            prompt_tokens=event.prompt_tokens,
            cached_tokens=event.cached_tokens,
            generated_tokens=event.completion_tokens,
            queue_ms=round(event.queue_ms, 1),
            prefill_ms=round(event.prefill_ms, 1),
            decode_ms=round(event.decode_ms, 1),
        )


def _engine_request(call: Call, ids: list[int], options: Options, model: Any, field: str) -> Request:
    """The engine's request; max_tokens is cut to the room that the prompt leaves."""
    require_room(field, len(ids), model.context_tokens)
    room = model.context_tokens - len(ids)
    return Request(
        id=new_request_id(),  # the call's own id may be a caller's choice, and not unique
        prompt_ids=ids,
        max_tokens=room if options.max_tokens is None else min(room, options.max_tokens),
        sampling=options.sampling,
        stop_token_ids=frozenset() if options.ignore_eos else model.eog_token_ids,
        deadline=call.deadline,
        cache_scope=call.cache_scope,
    )


def _wrap(kind: Any, event: AnswerEvent) -> Any:
    if isinstance(event, pb.Started):
        return kind(started=event)
    return kind(delta=event) if isinstance(event, pb.Delta) else kind(done=event)


async def _gather(events: AsyncIterator[AnswerEvent], response: Any) -> None:
    """Joins an answer into the three fields of a unary response."""
    texts: list[str] = []
    async for event in events:
        if isinstance(event, pb.Started):
            response.started.CopyFrom(event)
        elif isinstance(event, pb.Delta):
            texts.append(event.text)
            response.answer.logprobs.extend(event.logprobs)
            response.answer.token_ids.extend(event.token_ids)
        else:
            response.done.CopyFrom(event)
    response.answer.text = "".join(texts)
