"""One answer: events of the engine in, Deltas and its end out."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from daemon.bridge import RequestStream
from daemon.errors import TABLE, ApiError
from daemon.metrics import Metrics
from daemon.services.host import Served
from daemon.text.parts import Called, Part, PartSplitter, Said, Thought
from daemon.text.stream import StopFilter, TextStream
from quantd.v1 import generate_pb2 as pb
from runtime import request as words
from runtime.request import FinishEvent, FinishReason, PromptEvent, TokenEvent

AnswerEvent = pb.Started | pb.Queued | pb.Delta | pb.Done

# What the engine calls a failure, in the words of the error table.
_REASON_OF_ERROR = {
    words.ERROR_NON_FINITE_LOGITS: ("NON_FINITE_LOGITS", "The model gave values that are no numbers."),
    words.ERROR_NO_TOKEN: (
        "CONSTRAINT_FAILED",
        "The grammar leaves no token of this model's vocabulary to go on with; the answer was ended.",
    ),
    words.ERROR_CONSTRAINT_FAILED: (
        "CONSTRAINT_FAILED",
        "The grammar became too complex to go on; the answer was ended. Make the schema or the grammar simpler.",
    ),
    words.ERROR_ENGINE_STOPPED: ("UNAVAILABLE", "The daemon is shutting down."),
    words.ERROR_MODEL_FILE_CHANGED: ("MODEL_FILE_CHANGED", "The model's file changed while it was in use."),
}


class MarkedTokens:
    """A tokenizer's bytes, with those of control tokens that must be seen in the text."""

    def __init__(self, tokenizer: TokenBytesOf, markers: Mapping[int, bytes] | None) -> None:
        self._bytes = tokenizer
        self._markers = markers or {}

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds."""
        return self._markers.get(token_id) or self._bytes(token_id)


TokenBytesOf = Callable[[int], bytes]


@dataclass(slots=True)
class Answer:
    """The state of one answer under way."""

    served: Served
    stream: RequestStream
    text: TextStream  # of whole characters, without stop texts
    stops: StopFilter
    splitter: PartSplitter | None
    call_id: Callable[[int], str]  # id of the answer's n-th call
    metrics: Metrics
    seed: int
    with_logprobs: bool
    accepted_s: float  # time.monotonic() of acceptance
    line_ms: float = 0.0  # spent in the line, before the engine had the request
    choice: int = 0
    scored_ids: Sequence[int] | None = None  # of the prompt, where its log-probabilities are told
    is_empty: bool = False  # no token was asked for: the one that the engine made is not told
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    logprob_sum: float = 0.0
    pending_ids: list[int] = field(default_factory=list)  # tokens whose text is held back
    last_token_s: float | None = None

    async def events(self) -> AsyncGenerator[pb.Delta | pb.Done, None]:
        """Deltas as tokens come, then Done; raises ApiError when the request ends without an answer."""
        if self.scored_ids is not None:
            first = pb.TokenLogprob(
                token_id=self.scored_ids[0], token=self._token_bytes(self.scored_ids[0]), logprob=math.nan
            )
            yield pb.Delta(choice=self.choice, prompt_logprobs=[first])
        while True:
            event = await self.stream.next()
            if isinstance(event, FinishEvent):
                break
            if isinstance(event, PromptEvent):
                yield self._scored(event)
                continue
            if self.is_empty:
                continue
            delta = self._add(event)
            if delta is not None:
                yield delta
            if self.stops.stopped is not None:
                event = await self._stop()
                break
        if self.stops.stopped is None:
            self._require_success(event)
            rest = self._rest()
            if rest is not None:
                yield rest
        yield self._done(event)

    def _add(self, event: TokenEvent) -> pb.Delta | None:
        """The Delta of one token; None while its text is held back and nothing else is to be told."""
        now_s = time.monotonic()
        if self.last_token_s is None:
            self.metrics.first_token(self.served.name, now_s - self.accepted_s)
        else:
            self.metrics.inter_token(self.served.name, now_s - self.last_token_s)
        self.last_token_s = now_s
        self.completion_tokens += 1
        self.logprob_sum += event.logprob or 0.0
        self.pending_ids.append(event.token_id)
        text = self.text.push(event.token_id)
        delta = pb.Delta(choice=self.choice)
        said = True
        if self.splitter is None:
            delta.text = self.stops.push(text)
        else:
            said = self.splitter.saying
            self.reasoning_tokens += self.splitter.thinking
            self._take(self.splitter.push(text), delta)
            said = said and self.splitter.saying and not delta.reasoning and not delta.tool_calls
        if self.with_logprobs and said:
            delta.logprobs.append(self._logprob(event))
        return self._with_ids(delta)

    def _scored(self, event: PromptEvent) -> pb.Delta:
        """The log-probabilities of more of the prompt."""
        assert self.scored_ids is not None
        ids = self.scored_ids[event.start : event.start + len(event.logprobs)]
        delta = pb.Delta(choice=self.choice)
        for token_id, logprob, top in zip(ids, event.logprobs, event.tops, strict=True):
            delta.prompt_logprobs.append(self._token_logprob(token_id, logprob, top))
        return delta

    def _take(self, parts: list[Part], delta: pb.Delta) -> None:
        for part in parts:
            if isinstance(part, Said):
                delta.text += self.stops.push(part.text)
            elif isinstance(part, Thought):
                delta.reasoning += part.text
            else:
                self._take_call(part, delta)

    def _take_call(self, part: Called, delta: pb.Delta) -> None:
        if part.name:
            delta.tool_calls.add(index=part.index, id=self.call_id(part.index), name=part.name)
        elif delta.tool_calls and delta.tool_calls[-1].index == part.index:
            delta.tool_calls[-1].arguments += part.arguments
        else:
            delta.tool_calls.add(index=part.index, arguments=part.arguments)

    def _rest(self) -> pb.Delta | None:
        """What was held back to the end."""
        delta = pb.Delta(choice=self.choice)
        rest = self.text.finish()
        if self.splitter is None:
            delta.text = self.stops.push(rest)
        else:
            self._take([*self.splitter.push(rest), *self.splitter.finish()], delta)
        if self.stops.stopped is None:
            delta.text += self.stops.finish()
        return self._with_ids(delta)

    def _with_ids(self, delta: pb.Delta) -> pb.Delta | None:
        if not (delta.text or delta.logprobs or delta.reasoning or delta.tool_calls):
            return None
        delta.token_ids.extend(self.pending_ids)
        self.pending_ids.clear()
        return delta

    def _logprob(self, event: TokenEvent) -> pb.TokenLogprob:
        return self._token_logprob(event.token_id, event.logprob or 0.0, event.top)

    def _token_logprob(
        self, token_id: int, logprob: float, top: tuple[tuple[int, float], ...]
    ) -> pb.TokenLogprob:
        return pb.TokenLogprob(
            token_id=token_id,
            token=self._token_bytes(token_id),
            logprob=logprob,
            top=[
                pb.TokenLogprob(token_id=other, token=self._token_bytes(other), logprob=value)
                for other, value in top
            ],
        )

    def _token_bytes(self, token_id: int) -> bytes:
        token: bytes = self.served.model.tokenizer.token_bytes(token_id)
        return token

    async def _stop(self) -> FinishEvent:
        """A stop text was reached: the engine gives up the session; what it sampled since is not part of the answer."""
        self.stream.stop()
        while True:
            event = await self.stream.next()
            if isinstance(event, FinishEvent):
                return event

    def _require_success(self, event: FinishEvent) -> None:
        if event.reason in (FinishReason.STOP, FinishReason.LENGTH):
            return
        if event.reason is FinishReason.DEADLINE:
            raise ApiError("DEADLINE_EXCEEDED", "The time for this request ran out.")
        if event.reason is FinishReason.CANCELLED:
            raise ApiError("CANCELLED", "The request was cancelled.")
        reason, message = _REASON_OF_ERROR.get(event.error or "", ("INTERNAL", "The engine failed."))
        assert reason in TABLE
        raise ApiError(reason, message)

    def _done(self, event: FinishEvent) -> pb.Done:
        stopped = self.stops.stopped
        if self.is_empty or (stopped is None and event.reason is FinishReason.LENGTH):
            reason = pb.FINISH_REASON_LENGTH
        elif stopped is None and self.splitter is not None and self.splitter.num_calls:
            reason = pb.FINISH_REASON_TOOL_CALLS
        else:
            reason = pb.FINISH_REASON_STOP
        return pb.Done(
            finish_reason=reason,
            stop_text=stopped or "",
            usage=pb.Usage(
                prompt_tokens=event.prompt_tokens,
                # After a stop text the engine may have sampled one more: the answer ends where the text does.
                cached_tokens=event.cached_tokens,
                completion_tokens=self.completion_tokens
                if stopped is not None or self.is_empty
                else event.completion_tokens,
                reasoning_tokens=self.reasoning_tokens,
            ),
            timings=pb.Timings(
                queue_ms=self.line_ms + event.queue_ms,
                prefill_ms=event.prefill_ms,
                decode_ms=event.decode_ms,
                drafted_tokens=event.drafted_tokens,
                accepted_tokens=event.accepted_tokens,
            ),
            seed=self.seed,
        )
