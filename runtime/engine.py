"""The engine: one thread that owns the model and advances every request together.

    submit, cancel  --inbox-->  [ drain -> expire -> schedule -> emit -> model.step -> apply ] --sink(events)-->  caller
    (any thread)                            the engine's thread

The loop holds the lock only while it takes the inbox and while it publishes its counters; a step runs without it.
Everything between two steps happens there, so a cancelled or expired request has given back its pages before the next
step begins.  An idle engine sleeps on a condition and uses no CPU.

The events of a step are handed over when the next one is planned, right before the native call releases the interpreter:
handed over earlier, they would wake the server's thread while this one still needs the interpreter, and each would
wait for the other.

Every accepted request ends with exactly one FinishEvent.  Also where a step raises: then the engine fails as a whole,
every request is told, and `submit` refuses from then on.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

from runtime.admission import EngineModel, SamplerFactory, check_request, make_sampler, native_sampler
from runtime.engine_stats import EngineStats, StepCounters
from runtime.errors import EngineStoppedError, ModelChangedError, QueueFullError, RequestError
from runtime.pacing import StepPacer
from runtime.pages import PagePool
from runtime.prefix import PrefixKeys
from runtime.prompt_scores import make_scorers
from runtime.request import (
    ERROR_ENGINE_FAILED,
    ERROR_ENGINE_STOPPED,
    ERROR_MODEL_FILE_CHANGED,
    Event,
    FinishEvent,
    FinishReason,
    Request,
    Sequence,
)
from runtime.scheduler import Scheduler
from runtime.step_plan import StepPlan
from runtime.team import Team

_log = logging.getLogger(__name__)

# A Python thread that wants the interpreter back waits up to this long for another one that is busy.  The default of
# 5 ms would be added to every step whenever the server's own thread works; the interpreter is switched this often only
# while another thread waits for it, which is once a step.
_SWITCH_INTERVAL_S = 0.0001
_JOIN_GRACE_S = 10.0  # a step that began before the drain deadline may still have to end
_CHECK_INTERVAL_S = 10.0
_RUN_SMOOTHING = 0.1  # weight of the newest request in the estimate of how long one runs
_RETRY_AFTER_MIN_S, _RETRY_AFTER_MAX_S = 1.0, 60.0

Sink = Callable[[list[Event]], None]


class Engine:
    """Runs requests on one model.  All methods may be called from any thread."""

    def __init__(
        self,
        model: EngineModel,
        *,
        sink: Sink,
        max_waiting: int = 64,
        step_budget_ms: float = 250,
        sampler_factory: SamplerFactory = native_sampler,
    ) -> None:
        """`sink` is called from the engine's thread, once a step, with the events of that step in order.

        `max_waiting` bounds the requests that wait for a session; `step_budget_ms` bounds how long a step that answers
        are waiting for may take.
        """
        self._model = model
        self._sink = sink
        self._max_waiting = max_waiting
        self._sampler_factory = sampler_factory
        settings = model.settings
        self._pool = PagePool(model.n_pages, settings.sessions)
        self._pacer = StepPacer(step_budget_ms, settings.max_step_rows)
        self._team = Team(model.n_threads)
        self._num_threads = model.n_threads  # that the model uses now
        self._scheduler = Scheduler(
            self._pool,
            page_tokens=model.page_tokens,
            context_tokens=model.context_tokens,
            max_step_rows=settings.max_step_rows,
            prefix=PrefixKeys(model=model.name, kv_type=settings.kv_type, page_tokens=model.page_tokens)
            if settings.prefix_cache
            else None,
            costs=self._pacer.costs if settings.speculate else None,
        )
        self._events: list[Event] = []  # not handed over yet
        self._undelivered: list[Event] = []  # events of a call of the sink that has not returned
        self._checked_s = 0.0
        self._counters = StepCounters()
        self._thread = threading.Thread(target=self._run, name="quantd-engine", daemon=True)

        # The lock guards everything below, and the moment when the inbox moves into the scheduler.
        self._wake = threading.Condition()
        self._inbox: deque[Sequence] = deque()
        self._cancelled: set[str] = set()
        self._live: dict[str, Request] = {}  # accepted and without a FinishEvent yet
        self._drain_until_s: float | None = None  # set once stop was called
        self._stopped = False  # the thread has ended or never will have begun
        self._idle = True
        self._failed: str | None = None
        self._heartbeat_s = time.monotonic()
        self._run_s = 1.0  # how long a request holds its session, followed

    # For callers.

    def start(self) -> None:
        """Start the engine's thread.  Also shortens the interpreter's switch interval, for the whole process."""
        sys.setswitchinterval(min(_SWITCH_INTERVAL_S, sys.getswitchinterval()))
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Accept a request or say at once why not.

        Raises RequestError (bad value), ContextLengthError (longer than a session), QueueFullError (with the time after
        which to come back) or EngineStoppedError.  After a return, exactly one FinishEvent will follow.
        """
        check_request(request, self._model)
        with self._wake:  # a refusal costs neither a sampler nor a copy of the prompt
            self._check_open()
            self._check_room()
        sampler = make_sampler(request, self._sampler_factory)
        scorers = make_scorers(request, self._sampler_factory, self._model.settings.max_step_rows)
        sequence = self._scheduler.prepare(request, sampler, time.monotonic(), scorers)
        with self._wake:
            self._check_open()
            self._check_room()
            if request.id in self._live:
                raise RequestError("id", f"request id {request.id!r} is in use")
            self._live[request.id] = request
            self._inbox.append(sequence)
            self._wake.notify()

    def cancel(self, request_id: str) -> None:
        """End a request before the next step; nothing happens where it has ended or was never there."""
        with self._wake:
            if request_id in self._live:
                self._cancelled.add(request_id)
                self._wake.notify()

    def stats(self) -> EngineStats:
        with self._wake:
            now_s = time.monotonic()
            return self._counters.stats(
                self._scheduler,
                self._pool,
                num_inbox=len(self._inbox),
                now_s=now_s,
                heartbeat_s=now_s if self._idle and self._thread.is_alive() else self._heartbeat_s,
                failed=self._failed,
            )

    def healthy(self) -> bool:
        """True while the thread runs and no step has failed; draining is healthy."""
        return self._thread.is_alive() and self._failed is None

    def stop(self, drain_s: float) -> None:
        """Take no more requests, end the waiting ones, give running ones `drain_s` seconds, and join the thread.

        A second call may shorten the drain.  Returns when the thread has ended; where a step hangs, some seconds after
        the drain, with an error in the log.
        """
        until_s = time.monotonic() + drain_s
        with self._wake:
            self._drain_until_s = (
                until_s if self._drain_until_s is None else min(until_s, self._drain_until_s)
            )
            self._wake.notify()
        if self._thread.ident is None:
            self._end(ERROR_ENGINE_STOPPED)
        elif self._thread is not threading.current_thread():
            self._thread.join(max(0.0, drain_s) + _JOIN_GRACE_S)
            if self._thread.is_alive():
                _log.error("the engine's thread did not end: a step hangs")

    # Refusals of submit, in the caller's thread.

    def _check_open(self) -> None:
        if self._failed is not None:
            raise EngineStoppedError(f"the engine failed: {self._failed}")
        if self._drain_until_s is not None or self._stopped:
            raise EngineStoppedError("the engine is stopping")

    def _check_room(self) -> None:
        """Refuse what would wait behind too many; a free session is not waiting."""
        scheduler = self._scheduler
        ahead = scheduler.num_waiting + len(self._inbox) - (self._pool.sessions - scheduler.num_running)
        if ahead >= self._max_waiting:
            retry_after_s = self._run_s * (ahead + 1) / self._pool.sessions
            raise QueueFullError(
                f"{max(ahead, 0)} requests wait for one of {self._pool.sessions} sessions; the limit is {self._max_waiting}",
                retry_after_s=min(max(retry_after_s, _RETRY_AFTER_MIN_S), _RETRY_AFTER_MAX_S),
            )

    # The engine's thread.

    def _run(self) -> None:
        try:
            while self._pass():
                pass
        except BaseException as error:  # noqa: BLE001  whatever it was, nobody may be left waiting
            _log.error("the engine failed", exc_info=error)
            changed = isinstance(error, ModelChangedError)
            self._end(ERROR_MODEL_FILE_CHANGED if changed else ERROR_ENGINE_FAILED, error)
        else:
            self._end(ERROR_ENGINE_STOPPED)

    def _pass(self) -> bool:
        """One turn of the loop: False when the engine is to end."""
        scheduler = self._scheduler
        if not scheduler.has_work:
            self._emit()  # before it sleeps
            self._check_when_idle()
        now_s, drain_until_s = self._take_inbox()
        if scheduler.next_deadline_s <= now_s:
            self._events += scheduler.expire(now_s)
        if drain_until_s is not None:
            self._events += scheduler.fail_waiting(ERROR_ENGINE_STOPPED, now_s)
            if now_s >= drain_until_s or not scheduler.has_work:
                self._emit()
                return False
        plan = scheduler.schedule_again()
        if plan is None:
            # Without prompts there is nothing to weigh against the answers.
            row_budget = (
                self._pacer.row_budget(scheduler.num_ready)
                if scheduler.has_prompts
                else self._pacer.max_step_rows
            )
            plan = scheduler.schedule(row_budget, now_s)
        if plan is None:
            self._emit()
        else:
            self._step(plan)
        return True

    def _take_inbox(self) -> tuple[float, float | None]:
        """Sleep until there is something to do, then move submissions and cancellations into the scheduler.

        Returns the time, and until when the engine drains (None: it does not).
        """
        if self._scheduler.has_work and not self._inbox and not self._cancelled:
            # Nothing to take: what comes right now is taken before the next step, and the lock costs more than to look.
            now_s = self._heartbeat_s = time.monotonic()
            return now_s, self._drain_until_s
        with self._wake:
            if not self._scheduler.has_work:
                self._idle = True
                while not (self._inbox or self._cancelled or self._drain_until_s is not None):
                    self._wake.wait()
                self._idle = False
            now_s = self._heartbeat_s = time.monotonic()
            while self._inbox:
                self._scheduler.add(self._inbox.popleft())
            for request_id in self._cancelled:
                event = self._scheduler.cancel(request_id, now_s)
                if event is not None:
                    self._events.append(event)
            self._cancelled.clear()
            return now_s, self._drain_until_s

    def _step(self, plan: StepPlan) -> None:
        """Hand over the events of the last step, run a planned one and report it."""
        prompt_rows, decode_rows = self._scheduler.step_rows
        num_threads = self._team.choose(decode_rows=decode_rows, prompt_rows=prompt_rows)
        if num_threads != self._num_threads:
            self._num_threads = num_threads
            self._model.use_threads(num_threads)
        generated = self._scheduler.counts.generated_tokens
        self._emit()  # wakes the server's thread, which wants the interpreter: nothing may stand before the native call
        begin_s = time.monotonic()
        result = self._model.step(plan)
        end_s = time.monotonic()
        step_s = end_s - begin_s
        self._events += self._scheduler.apply(result, end_s)
        if prompt_rows or num_threads == self._team.size:  # not what a trial took
            self._pacer.measured(decode_rows=decode_rows, prompt_rows=prompt_rows, step_ms=1e3 * step_s)
        self._team.measured(decode_rows=decode_rows, prompt_rows=prompt_rows, step_ms=1e3 * step_s)
        self._counters.count(
            end_s=end_s,
            step_s=step_s,
            prompt_rows=prompt_rows,
            rows=prompt_rows + decode_rows,
            tokens=self._scheduler.counts.generated_tokens - generated,
        )

    def _emit(self) -> None:
        """Hand the events over; the ids of requests that ended are free before."""
        events = self._events
        if not events:
            return
        self._events = []
        self._undelivered = events
        if FinishEvent in map(type, events):
            with self._wake:
                for event in events:
                    if isinstance(event, FinishEvent):
                        self._forget(event)
        self._sink(events)
        self._undelivered = []

    def _forget(self, event: FinishEvent) -> None:
        """A request has ended: its id is free, and how long it ran tells later ones when to come back."""
        del self._live[event.request_id]
        self._cancelled.discard(event.request_id)
        run_s = 1e-3 * (event.prefill_ms + event.decode_ms)
        if run_s > 0:
            self._run_s += _RUN_SMOOTHING * (run_s - self._run_s)

    def _check_when_idle(self) -> None:
        """Now and then, where nobody waits for it: no page may be lost."""
        now_s = time.monotonic()
        if now_s - self._checked_s >= _CHECK_INTERVAL_S:
            self._checked_s = now_s
            self._pool.check_integrity()

    def _end(self, error_word: str, cause: BaseException | None = None) -> None:
        """No step will run any more: end every request, whatever state things are in.

        Where the sink itself raised, the FinishEvents of that call are handed over once more, or their callers would
        wait for ever.
        """
        now_s = time.monotonic()
        with self._wake:
            self._stopped, self._idle = True, False
            if cause is not None:
                self._failed = f"{type(cause).__name__}: {cause}"
            events: list[Event] = [event for event in self._undelivered if isinstance(event, FinishEvent)]
            events += self._events
            self._events = []
            try:
                events += self._scheduler.fail_all(error_word, now_s)
            except Exception:  # noqa: BLE001  the requests below are told all the same
                _log.exception("the scheduler could not end its requests")
            ended = {event.request_id for event in events}
            events += [
                _failed_event(request, error_word) for id_, request in self._live.items() if id_ not in ended
            ]
            self._live.clear()
            self._inbox.clear()
            self._cancelled.clear()
        if events:
            try:
                self._sink(events)
            except Exception:  # noqa: BLE001  nobody is left to tell
                _log.exception("the last events could not be delivered")


def _failed_event(request: Request, error_word: str) -> FinishEvent:
    """The end of a request that the scheduler has not seen or has lost."""
    return FinishEvent(
        request_id=request.id,
        reason=FinishReason.FAILED,
        prompt_tokens=len(request.prompt_ids),
        completion_tokens=0,
        queue_ms=0.0,
        prefill_ms=0.0,
        decode_ms=0.0,
        error=error_word,
    )
