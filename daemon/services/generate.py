"""GenerateService: from a request to an answer, for text and for conversations, streamed or whole."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from daemon.access.line import Line, Ticket
from daemon.bridge import Bridge
from daemon.errors import ApiError, to_api_error
from daemon.keep_alive import from_ms
from daemon.log import get_logger
from daemon.services.answer import Answer, AnswerEvent
from daemon.services.call import Call, new_request_id
from daemon.services.defaults import with_defaults
from daemon.services.host import ModelHost, Served
from daemon.services.options import Options, read_options, read_priority
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

    def __init__(
        self,
        host: ModelHost,
        *,
        max_waiting: int = 64,
        max_waiting_tokens: int = 262_144,
        max_wait_s: float = 600.0,
    ) -> None:
        self._host = host
        self._lines: WeakKeyDictionary[Bridge, Line] = WeakKeyDictionary()
        self._make_line = partial(
            Line,
            max_running=host.settings.sessions,
            max_waiting=max_waiting,
            max_waiting_tokens=max_waiting_tokens,
            max_wait_s=max_wait_s,
        )

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
        ticket: Ticket | None = None
        try:
            keep_alive_s = from_ms(request.keep_alive_ms) if request.HasField("keep_alive_ms") else None
            async with self._host.admit(
                request.model, deadline=call.deadline, keep_alive_s=keep_alive_s
            ) as served:
                request = with_defaults(request, served)
                asked = await self._read(request, call, served, check, encode)
                ticket = self._line_of(served).join(
                    call.caller, priority=asked.priority, prompt_tokens=len(asked.ids)
                )
                yield pb.Started(
                    request_id=call.request_id,
                    model=served.name,
                    created_unix_ms=time.time_ns() // 1_000_000,
                    prompt_tokens=len(asked.ids),
                )
                tell = request.options.report_queue_position
                async for place in ticket.positions(call.deadline, tell=tell):
                    yield pb.Queued(position=place)
                answer = self._submit(asked, call, served, ticket)
        except BaseException as failure:
            if ticket is not None:
                ticket.leave()
            if isinstance(failure, Exception):
                metrics.rejected(to_api_error(failure).reason)
            raise
        try:
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

    async def _read(
        self,
        request: Message,
        call: Call,
        served: Served,
        check: Callable[[Message, Served], None],
        encode: Callable[[Message, Served], list[int]],
    ) -> _Asked:
        """Checks and encodes a request: what it costs is known, and nothing is taken yet."""
        accepted_s = time.monotonic()
        model = served.model
        options = read_options(
            request.options, n_vocab=model.tokenizer.n_vocab, context_tokens=model.context_tokens
        )
        priority = read_priority(request.options, call.caller.key.priority)
        check(request, served)
        loop = asyncio.get_running_loop()
        ids = await loop.run_in_executor(self._host.text_workers, encode, request, served)
        if call.deadline is not None and time.monotonic() >= call.deadline:
            raise ApiError("DEADLINE_EXCEEDED", "The time for this request ran out.")
        field = (
            "messages" if isinstance(request, pb.ChatRequest) else request.WhichOneof("prompt") or "prompt"
        )
        require_room(field, len(ids), options.context_tokens)
        return _Asked(ids, options, priority, accepted_s)

    def _submit(self, asked: _Asked, call: Call, served: Served, ticket: Ticket) -> Answer:
        """Gives a request to the engine; its ticket is given back when the engine says that it is over."""
        model, options = served.model, asked.options
        stream = served.bridge.submit(_engine_request(call, asked.ids, options, model))
        stream.on_stall = call.on_stall
        answer = Answer(
            served=served,
            stream=stream,
            text=TextStream(model.tokenizer, options.stop),
            metrics=self._host.metrics,
            seed=options.sampling.seed,
            with_logprobs=options.sampling.top_logprobs is not None,
            accepted_s=asked.accepted_s,
            line_ms=ticket.waited_s * 1e3,
        )

        def finished(event: FinishEvent) -> None:
            ticket.leave()
            call.caller.charge(event.completion_tokens)
            self._finished(call, answer, event)

        stream.on_finish = finished
        return answer

    def _line_of(self, served: Served) -> Line:
        """The line in front of a model; it goes with the model."""
        line = self._lines.get(served.bridge)
        if line is None:
            line = self._lines[served.bridge] = self._make_line()
        return line

    def _finished(self, call: Call, answer: Answer, event: FinishEvent) -> None:
        """Counts and logs the end of a request, also of one whose caller is gone."""
        reason = "stop" if answer.text.stopped is not None else event.reason.value
        self._host.metrics.finished(
            answer.served.name,
            reason,
            prompt_tokens=event.prompt_tokens,
            generated_tokens=event.completion_tokens,
            queue_s=(answer.line_ms + event.queue_ms) / 1e3,
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
            queue_ms=round(answer.line_ms + event.queue_ms, 1),
            prefill_ms=round(event.prefill_ms, 1),
            decode_ms=round(event.decode_ms, 1),
        )


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that was checked and encoded."""

    ids: list[int]
    options: Options
    priority: int
    accepted_s: float  # time.monotonic()


def _engine_request(call: Call, ids: list[int], options: Options, model: Any) -> Request:
    """The engine's request; max_tokens is cut to the room that the prompt leaves."""
    room = options.context_tokens - len(ids)
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
    if isinstance(event, pb.Queued):
        return kind(queued=event)
    return kind(delta=event) if isinstance(event, pb.Delta) else kind(done=event)


async def _gather(events: AsyncIterator[AnswerEvent], response: Any) -> None:
    """Joins an answer into the three fields of a unary response."""
    texts: list[str] = []
    async for event in events:
        if isinstance(event, pb.Started):
            response.started.CopyFrom(event)
        elif isinstance(event, pb.Queued):
            continue  # nobody watches
        elif isinstance(event, pb.Delta):
            texts.append(event.text)
            response.answer.logprobs.extend(event.logprobs)
            response.answer.token_ids.extend(event.token_ids)
        else:
            response.done.CopyFrom(event)
    response.answer.text = "".join(texts)
