"""GenerateService: from a request to an answer, for text and for conversations, streamed or whole."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeGuard, TypeVar

from daemon.access.line import Ticket
from daemon.access.lines import Lines
from daemon.errors import ApiError, to_api_error
from daemon.keep_alive import from_ms
from daemon.log import get_logger
from daemon.services.answer import Answer, AnswerEvent, MarkedTokens
from daemon.services.call import Call, new_request_id
from daemon.services.choices import best, merged
from daemon.services.constraint import Constraints
from daemon.services.defaults import with_defaults
from daemon.services.folder import ModelEntry
from daemon.services.host import ModelHost, Served
from daemon.services.options import Options, check_top_logprobs, invalid, read_options, read_priority
from daemon.services.prompt import (
    Prompt,
    check_messages,
    check_prompt,
    prepare_chat,
    prepare_prompt,
    prompt_text,
    require_room,
)
from daemon.text.chat_form import short_id
from daemon.text.stream import StopFilter, TextStream
from daemon.version import version
from quantd.v1 import generate_pb2 as pb
from quantd.v1 import generate_service_pb2 as rpc
from runtime.request import FinishEvent, Request

log = get_logger("quantd.requests")
Message = TypeVar("Message", pb.GenerateRequest, pb.ChatRequest)
Check = Callable[[Message, Served], None]
Prepare = Callable[[Message, Served, Constraints], Prompt]


class GenerateService:
    """Text generation on the served model."""

    def __init__(self, host: ModelHost, lines: Lines | None = None) -> None:
        """`lines`: those of all models, which all services of a daemon share."""
        self._host = host
        self._lines = lines or Lines()
        self.constraints = Constraints()

    async def generate(
        self, request: pb.GenerateRequest, call: Call
    ) -> AsyncGenerator[rpc.GenerateResponse, None]:
        """Continues a prompt: Started, Deltas, Done.  Close the iterator to end the request."""
        async with aclosing(self._answer(request, call, check_prompt, prepare_prompt)) as events:
            async for event in events:
                yield _wrap(rpc.GenerateResponse, event)

    async def chat(self, request: pb.ChatRequest, call: Call) -> AsyncGenerator[rpc.ChatResponse, None]:
        """Answers a conversation: Started, Deltas, Done.  Close the iterator to end the request."""
        async with aclosing(self._answer(request, call, check_messages, prepare_chat)) as events:
            async for event in events:
                yield _wrap(rpc.ChatResponse, event)

    async def generate_unary(
        self, request: rpc.GenerateUnaryRequest, call: Call
    ) -> rpc.GenerateUnaryResponse:
        """Continues a prompt; the whole answer."""
        _require_one(request.request)
        response = rpc.GenerateUnaryResponse()
        async with aclosing(self._answer(request.request, call, check_prompt, prepare_prompt)) as events:
            await _gather(events, response)
        return response

    async def chat_unary(self, request: rpc.ChatUnaryRequest, call: Call) -> rpc.ChatUnaryResponse:
        """Answers a conversation; the whole answer."""
        _require_one(request.request)
        response = rpc.ChatUnaryResponse()
        async with aclosing(self._answer(request.request, call, check_messages, prepare_chat)) as events:
            await _gather(events, response)
        return response

    async def _answer(
        self, request: Message, call: Call, check: Check[Message], prepare: Prepare[Message]
    ) -> AsyncGenerator[AnswerEvent, None]:
        metrics = self._host.metrics
        ticket: Ticket | None = None
        try:
            keep_alive_s = from_ms(request.keep_alive_ms) if request.HasField("keep_alive_ms") else None
            async with self._host.admit(
                request.model, deadline=call.deadline, keep_alive_s=keep_alive_s
            ) as served:
                request = with_defaults(request, served)
                asked = await self._read(request, call, served, check=check, prepare=prepare)
                # The choices of one request share its place in the line, and take a session each.
                line = self._lines.of(served.bridge, max_running=self._host.settings.sessions)
                ticket = line.join(
                    call.caller,
                    priority=asked.priority,
                    prompt_tokens=len(asked.prompt.ids),
                    num_sessions=asked.options.best_of,
                )
                yield pb.Started(
                    request_id=call.request_id,
                    model=served.name,
                    created_unix_ms=time.time_ns() // 1_000_000,
                    prompt_tokens=len(asked.prompt.ids),
                    system_fingerprint=_fingerprint(served.entry),
                )
                tell = request.options.report_queue_position
                async for place in ticket.positions(call.deadline, tell=tell):
                    yield pb.Queued(position=place)
                answers = self._submit_all(asked, call, served, ticket)
        except BaseException as failure:
            if ticket is not None:
                ticket.leave()
            if isinstance(failure, Exception):
                metrics.rejected(to_api_error(failure).reason)
            raise
        try:
            options = asked.options
            if isinstance(request, pb.GenerateRequest) and request.echo:
                text = prompt_text(request, served)
                for choice in range(options.num_choices):
                    yield pb.Delta(text=text, choice=choice)
            async with aclosing(_events(answers, options, request)) as events:
                async for event in events:
                    yield event
        except ApiError as failure:
            metrics.failed(failure.reason)
            raise
        finally:
            # Whatever ended this (the answer, an error, a cancelled call, a closed iterator): the sessions are free.
            for answer in answers:
                answer.stream.close()

    async def _read(
        self,
        request: Message,
        call: Call,
        served: Served,
        *,
        check: Check[Message],
        prepare: Prepare[Message],
    ) -> _Asked:
        """Checks and encodes a request: what it costs is known, and nothing is taken yet."""
        accepted_s = time.monotonic()
        model = served.model
        if not model.generates:
            raise ApiError(
                "INVALID_ARGUMENT",
                f"The model {served.name!r} gives embeddings; it does not generate.",
                field="model",
            )
        options = read_options(
            request.options,
            n_vocab=model.tokenizer.n_vocab,
            context_tokens=model.context_tokens,
            encode=model.tokenizer.encode_continuation,
            min_tokens=0 if _tells_prompt(request) else 1,
        )
        priority = read_priority(request.options, call.caller.key.priority)
        check(request, served)
        loop = asyncio.get_running_loop()
        prompt = await loop.run_in_executor(
            self._host.text_workers, prepare, request, served, self.constraints
        )
        require_room(prompt.field, len(prompt.ids), options.context_tokens)
        own: list[Any] = [None] * options.best_of
        if prompt.plan is not None:
            own = await self.constraints.compile(prompt.plan, model, options.best_of)
        if call.deadline is not None and time.monotonic() >= call.deadline:
            raise ApiError("DEADLINE_EXCEEDED", "The time for this request ran out.")
        scores = request.prompt_logprobs if _scores_prompt(request) else None
        check_top_logprobs("prompt_logprobs", scores)
        return _Asked(prompt, options, priority, accepted_s, own, scores)

    def _submit_all(self, asked: _Asked, call: Call, served: Served, ticket: Ticket) -> list[Answer]:
        """Gives every choice to the engine; its session is given back when the engine says that it is over."""
        answers: list[Answer] = []
        num_open = len(asked.constraints)

        def finished(event: FinishEvent, answer: Answer) -> None:
            nonlocal num_open
            num_open -= 1
            ticket.keep(num_open)
            call.caller.charge(event.completion_tokens)
            self._finished(call, answer, event)

        try:
            for choice in range(len(asked.constraints)):
                answer = self._submit(asked, call, served, ticket=ticket, choice=choice)
                answer.stream.on_finish = partial(finished, answer=answer)
                answers.append(answer)
        except BaseException:
            for answer in answers:
                answer.stream.close()
            raise
        return answers

    def _submit(self, asked: _Asked, call: Call, served: Served, *, ticket: Ticket, choice: int) -> Answer:
        prompt = asked.prompt

        def call_id(index: int) -> str:
            text = f"{call.request_id}-{choice}-{index}"
            return (
                short_id(text)
                if prompt.short_ids
                else f"call_{hashlib.sha256(text.encode()).hexdigest()[:24]}"
            )

        request = _engine_request(call, asked, model=served.model, choice=choice)
        stream = served.bridge.submit(request)
        stream.on_stall = call.on_stall
        return Answer(
            served=served,
            stream=stream,
            text=TextStream(MarkedTokens(served.model.tokenizer.token_bytes, prompt.markers)),
            stops=StopFilter(asked.options.stop),
            splitter=prompt.splitter(),
            call_id=call_id,
            metrics=self._host.metrics,
            seed=request.sampling.seed,
            with_logprobs=request.sampling.top_logprobs is not None,
            accepted_s=asked.accepted_s,
            line_ms=ticket.waited_s * 1e3,
            choice=choice,
            scored_ids=prompt.ids if asked.prompt_logprobs is not None else None,
            is_empty=asked.options.max_tokens == 0,
        )

    def _finished(self, call: Call, answer: Answer, event: FinishEvent) -> None:
        """Counts and logs the end of a request, also of one whose caller is gone."""
        reason = "stop" if answer.stops.stopped is not None else event.reason.value
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

    prompt: Prompt
    options: Options
    priority: int
    accepted_s: float  # time.monotonic()
    constraints: list[Any]  # one for each choice; None: the answer is free
    prompt_logprobs: int | None  # alternatives to tell of each prompt token; None: nothing


def _engine_request(call: Call, asked: _Asked, *, model: Any, choice: int) -> Request:
    """The engine's request for one of the answers; max_tokens is cut to the room that the prompt leaves."""
    prompt, options = asked.prompt, asked.options
    room = options.context_tokens - len(prompt.ids)
    sampling = options.sampling
    if choice:
        sampling = dataclasses.replace(sampling, seed=(sampling.seed + choice) % 2**64)
    if options.best_of > options.num_choices and sampling.top_logprobs is None:
        sampling = dataclasses.replace(sampling, top_logprobs=0)  # the ranking needs them
    return Request(
        id=new_request_id(),  # the call's own id may be a caller's choice, and not unique
        prompt_ids=prompt.ids,
        # An answer of no tokens is one token that nobody hears of: the engine has no request without.
        max_tokens=room if options.max_tokens is None else min(room, max(1, options.max_tokens)),
        sampling=sampling,
        stop_token_ids=frozenset() if options.ignore_eos else model.eog_token_ids,
        deadline=call.deadline,
        cache_scope=call.cache_scope,
        constraint=asked.constraints[choice],
        prompt_logprobs=asked.prompt_logprobs,
    )


def _tells_prompt(request: Message) -> bool:
    """True: the answer has something to say without a token."""
    return isinstance(request, pb.GenerateRequest) and (request.echo or _scores_prompt(request))


def _scores_prompt(request: Message) -> TypeGuard[pb.GenerateRequest]:
    return isinstance(request, pb.GenerateRequest) and request.HasField("prompt_logprobs")


def _events(
    answers: list[Answer], options: Options, request: Message
) -> AsyncGenerator[pb.Delta | pb.Done, None]:
    if options.best_of == options.num_choices:
        return merged(answers)
    return best(answers, options.num_choices, with_logprobs=request.options.HasField("top_logprobs"))


def _fingerprint(entry: ModelEntry) -> str:
    facts = f"{version()}|{entry.name}|{entry.size_bytes}|{entry.modified_ns}"
    return f"fp_{hashlib.sha256(facts.encode()).hexdigest()[:10]}"


def _require_one(request: Message) -> None:
    """A unary answer has room for one choice."""
    if request.options.num_choices > 1:
        raise invalid("options.num_choices", "more than one answer needs the streaming call")


def _wrap(kind: Any, event: AnswerEvent) -> Any:
    if isinstance(event, pb.Started):
        return kind(started=event)
    if isinstance(event, pb.Queued):
        return kind(queued=event)
    return kind(delta=event) if isinstance(event, pb.Delta) else kind(done=event)


async def _gather(events: AsyncIterator[AnswerEvent], response: Any) -> None:
    """Joins an answer into the three fields of a unary response."""
    texts: list[str] = []
    thoughts: list[str] = []
    calls: dict[int, pb.ToolCallDelta] = {}
    async for event in events:
        if isinstance(event, pb.Started):
            response.started.CopyFrom(event)
        elif isinstance(event, pb.Queued):
            continue  # nobody watches
        elif isinstance(event, pb.Delta):
            texts.append(event.text)
            thoughts.append(event.reasoning)
            for part in event.tool_calls:
                call = calls.setdefault(part.index, pb.ToolCallDelta(index=part.index))
                call.id, call.name = call.id or part.id, call.name or part.name
                call.arguments += part.arguments
            response.answer.logprobs.extend(event.logprobs)
            response.answer.prompt_logprobs.extend(event.prompt_logprobs)
            response.answer.token_ids.extend(event.token_ids)
        else:
            response.done.CopyFrom(event)
    response.answer.text = "".join(texts)
    response.answer.reasoning = "".join(thoughts)
    response.answer.tool_calls.extend(calls.values())
