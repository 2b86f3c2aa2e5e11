"""One answer: events of the engine in, the events Started, Delta and Done out."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from daemon.bridge import RequestStream
from daemon.errors import TABLE, ApiError
from daemon.metrics import Metrics
from daemon.services.host import Served
from daemon.text.stream import TextStream
from quantd.v1 import generate_pb2 as pb
from runtime import request as words
from runtime.request import FinishEvent, FinishReason, TokenEvent

AnswerEvent = pb.Started | pb.Queued | pb.Delta | pb.Done

# What the engine calls a failure, in the words of the error table.
_REASON_OF_ERROR = {
    words.ERROR_NON_FINITE_LOGITS: ("NON_FINITE_LOGITS", "The model gave values that are no numbers."),
    words.ERROR_NO_TOKEN: (
        "INVALID_ARGUMENT",
        "The sampling options and logit_bias leave no token to choose.",
    ),
    words.ERROR_ENGINE_STOPPED: ("UNAVAILABLE", "The daemon is shutting down."),
    words.ERROR_MODEL_FILE_CHANGED: ("MODEL_FILE_CHANGED", "The model's file changed while it was in use."),
}


@dataclass(slots=True)
class Answer:
    """The state of one answer under way."""

    served: Served
    stream: RequestStream
    text: TextStream
    metrics: Metrics
    seed: int
    with_logprobs: bool
    accepted_s: float  # time.monotonic() of acceptance
    line_ms: float = 0.0  # spent in the line, before the engine had the request
    completion_tokens: int = 0
    pending_ids: list[int] = field(default_factory=list)  # tokens whose text is held back
    last_token_s: float | None = None

    async def events(self) -> AsyncGenerator[pb.Delta | pb.Done, None]:
        """Deltas as tokens come, then Done; raises ApiError when the request ends without an answer."""
        while True:
            event = await self.stream.next()
            if isinstance(event, FinishEvent):
                break
            delta = self._add(event)
            if delta is not None:
                yield delta
            if self.text.stopped is not None:
                event = await self._stop()
                break
        if self.text.stopped is None:
            self._require_success(event)
            rest = self.text.finish()
            if rest:
                yield pb.Delta(text=rest, token_ids=self.pending_ids)
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
        self.pending_ids.append(event.token_id)
        text = self.text.push(event.token_id)
        if not text and not self.with_logprobs:
            return None
        delta = pb.Delta(text=text, token_ids=self.pending_ids)
        if self.with_logprobs:
            delta.logprobs.append(self._logprob(event))
        self.pending_ids.clear()
        return delta

    def _logprob(self, event: TokenEvent) -> pb.TokenLogprob:
        token_bytes = self.served.model.tokenizer.token_bytes
        return pb.TokenLogprob(
            token_id=event.token_id,
            token=token_bytes(event.token_id),
            logprob=event.logprob or 0.0,
            top=[
                pb.TokenLogprob(token_id=token_id, token=token_bytes(token_id), logprob=logprob)
                for token_id, logprob in event.top
            ],
        )

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
        by_text = self.text.stopped is not None
        length = not by_text and event.reason is FinishReason.LENGTH
        return pb.Done(
            finish_reason=pb.FINISH_REASON_LENGTH if length else pb.FINISH_REASON_STOP,
            stop_text=self.text.stopped or "",
            usage=pb.Usage(
                prompt_tokens=event.prompt_tokens,
                # After a stop text the engine may have sampled one more: the answer ends where the text does.
                completion_tokens=self.completion_tokens if by_text else event.completion_tokens,
                cached_tokens=event.cached_tokens,
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
