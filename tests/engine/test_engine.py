"""The engine's thread over the fake model.  Tests hold its steps with a gate where the moment matters."""

import sys
import threading
import time

import pytest

from runtime.engine import Engine
from runtime.errors import (
    ContextLengthError,
    EngineStoppedError,
    ModelChangedError,
    QueueFullError,
    RequestError,
)
from runtime.memory import RuntimeSettings
from runtime.request import FinishReason, Request
from runtime.sampling import SamplingParams
from tests.engine.fakes import Collector, FakeModel, FakeSampler, answer_alone


class Running:
    """An engine, its model and its sink; `gated` engines take a step only when `steps` allows it."""

    def __init__(self, *, gated=False, sessions=4, max_step_rows=64, sink=None, **more):
        self.gate = threading.Semaphore(0) if gated else None
        engine_options = {key: more.pop(key) for key in ("max_waiting", "step_budget_ms") if key in more}
        settings = RuntimeSettings(sessions=sessions, max_step_rows=max_step_rows)
        self.model = FakeModel(settings=settings, gate=self.gate, **more)
        self.sink = Collector()
        self.engine = Engine(
            self.model, sink=sink or self.sink, sampler_factory=FakeSampler, **engine_options
        )

    def __enter__(self):
        self.engine.start()
        return self

    def __exit__(self, *exc):
        self.open()
        self.engine.stop(0)
        assert not self.engine._thread.is_alive()

    def open(self):
        if self.gate is not None:
            self.gate.release(100_000)

    def step(self):
        """Let the step at the gate pass and wait until the next one is there (or nothing is left to do)."""
        done = len(self.model.steps)
        self.model.in_step.clear()
        self.gate.release()
        until(lambda: len(self.model.steps) > done)

    def at_gate(self):
        assert self.model.in_step.wait(20)


def until(condition, timeout_s=20.0):
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.001)


def request(id_="a", prompt=3, max_tokens=4, **more):
    return Request(id_, [(ord(id_[-1]) + i) % 97 for i in range(prompt)], max_tokens, **more)


def test_many_requests_are_answered_as_if_alone():
    requests = [
        request(f"r{i}", prompt=1 + i % 13, max_tokens=1 + i % 9, sampling=SamplingParams(seed=i))
        for i in range(60)
    ]
    with Running(n_pages=32) as it:  # enough that nobody borrows
        for one in requests:
            it.engine.submit(one)
        it.sink.wait(*(one.id for one in requests))
        assert all(it.sink.ids(one.id) == answer_alone(one) for one in requests)
        stats = it.engine.stats()
    # What was found in the prefix cache was not computed.
    assert stats.cache_queried_tokens_total == sum(len(one.prompt_ids) for one in requests)
    assert stats.prompt_tokens_total + stats.cache_hit_tokens_total == stats.cache_queried_tokens_total
    assert stats.generation_tokens_total == sum(one.max_tokens for one in requests)
    assert (stats.running, stats.waiting, stats.pages_used, stats.pages_reserved) == (0, 0, 0, 0)
    assert stats.generation_tokens_per_s > 0
    assert stats.steps_total == len(it.model.steps)


def test_a_newcomer_joins_the_next_step():
    with Running(gated=True) as it:
        it.engine.submit(request("a", max_tokens=20))
        it.at_gate()
        it.engine.submit(request("b", prompt=5))
        it.step()
        it.step()
        assert it.model.steps == [[3], [1, 5]]


def test_one_call_of_the_sink_a_step():
    with Running(gated=True) as it:
        for id_ in "abcd":
            it.engine.submit(request(id_))
        it.at_gate()
        it.open()
        it.sink.wait(*"abcd")
        assert it.sink.calls == len(it.model.steps)


def test_a_cancelled_long_prompt_frees_its_pages_before_the_next_step():
    with Running(gated=True, max_step_rows=8) as it:
        it.engine.submit(request("long", prompt=25))
        it.engine.submit(request("b"))
        it.at_gate()
        it.step()
        it.at_gate()
        assert it.engine.stats().pages_used > 0
        it.engine.cancel("long")
        it.step()
        (end,) = it.sink.wait("long")
        assert (end.reason, end.completion_tokens) == (FinishReason.CANCELLED, 0)
        it.at_gate()
        assert it.engine.stats().pages_reserved == 2  # those of b
        it.open()
        it.sink.wait("b")
        assert sum(map(sum, it.model.steps)) < 25


def test_cancelling_twice_or_nobody_does_nothing():
    with Running(gated=True) as it:
        it.engine.submit(request("a"))
        it.engine.cancel("a")
        it.engine.cancel("a")
        it.engine.cancel("nobody")
        it.open()
        assert it.sink.wait("a")[0].reason is FinishReason.CANCELLED
        it.engine.cancel("a")
        del it.sink.finished["a"]
        it.engine.submit(request("a"))  # the id is free again, and the late cancellation does not hit it
        assert it.sink.wait("a")[0].reason is FinishReason.LENGTH


def test_deadlines_hit_queued_and_running_requests():
    with Running(gated=True, sessions=1, max_step_rows=4) as it:
        soon_s = time.monotonic() + 0.5
        it.engine.submit(request("running", prompt=20, deadline=soon_s))
        it.engine.submit(request("queued", deadline=soon_s))
        it.at_gate()
        until(lambda: time.monotonic() > soon_s)
        it.step()
        ends = it.sink.wait("running", "queued")
        assert [end.reason for end in ends] == [FinishReason.DEADLINE] * 2
        assert it.engine.stats().pages_used == 0


def test_a_deadline_in_the_past_costs_no_step():
    with Running() as it:
        it.engine.submit(request("late", deadline=time.monotonic() - 1))
        assert it.sink.wait("late")[0].reason is FinishReason.DEADLINE
        assert it.model.steps == []


def test_a_full_queue_says_when_to_come_back():
    with Running(gated=True, sessions=1, max_waiting=2) as it:
        it.engine.submit(request("r0"))
        it.at_gate()
        for id_ in ("r1", "r2"):
            it.engine.submit(request(id_))
        with pytest.raises(QueueFullError, match="2 requests wait for one of 1 sessions") as caught:
            it.engine.submit(request("r3"))
        assert 1 <= caught.value.retry_after_s <= 60
        it.engine.cancel("r2")
        it.step()
        it.sink.wait("r2")
        it.engine.submit(request("r4"))
        it.open()
        it.sink.wait("r0", "r1", "r4")


def test_without_a_queue_free_sessions_still_serve():
    with Running(gated=True, sessions=2, max_waiting=0) as it:
        it.engine.submit(request("a"))
        it.engine.submit(request("b"))
        with pytest.raises(QueueFullError):
            it.engine.submit(request("c"))


@pytest.mark.parametrize(
    ("bad", "error", "field", "text"),
    [
        (request(prompt=0), RequestError, "prompt", "no tokens"),
        (request(max_tokens=0), RequestError, "options.max_tokens", "max_tokens is 0"),
        (Request("a", [1, 97], 1), RequestError, "prompt", "0 to 96"),
        (Request("a", [-1], 1), RequestError, "prompt", "0 to 96"),
        (request(prompt=32, max_tokens=1), ContextLengthError, "prompt", "32 tokens; a session holds 32"),
        (request(prompt=500, max_tokens=1), ContextLengthError, "prompt", "500 tokens; a session holds 32"),
        (
            request(prompt=20, max_tokens=13),
            ContextLengthError,
            "options.max_tokens",
            "together 33.*holds 32",
        ),
        (request(sampling=SamplingParams(temperature=-1)), RequestError, "options.sampling", "negative"),
    ],
)
def test_what_could_never_run_is_refused_at_once(bad, error, field, text):
    with Running() as it:
        with pytest.raises(error, match=text) as caught:
            it.engine.submit(bad)
        assert caught.value.field == field
        it.engine.submit(request("a"))  # nothing stayed behind
        it.sink.wait("a")


def test_a_request_that_exceeds_the_whole_arena_is_refused():
    with Running(n_pages=4) as it, pytest.raises(ContextLengthError, match="whole KV arena holds 16"):
        it.engine.submit(request(prompt=10, max_tokens=10))


def test_an_id_in_use_is_refused():
    with Running(gated=True) as it:
        it.engine.submit(request("a"))
        with pytest.raises(RequestError, match="in use"):
            it.engine.submit(request("a"))


def test_the_sampler_sees_the_prompt_only_where_penalties_look_back():
    seen = {}

    def factory(params):
        seen[params.seed] = FakeSampler(params)
        return seen[params.seed]

    engine = Engine(FakeModel(), sink=Collector(), sampler_factory=factory)
    engine.submit(request("a", sampling=SamplingParams(seed=1)))
    engine.submit(request("b", sampling=SamplingParams(seed=2, repeat_penalty=1.2)))
    assert seen[1].accepted == []
    assert seen[2].accepted == list(request("b").prompt_ids)
    engine.stop(0)


def test_non_finite_logits_fail_one_request_and_leave_the_others():
    with Running(poison=96) as it:
        it.engine.submit(Request("bad", [96], 4))
        it.engine.submit(request("good"))
        bad, good = it.sink.wait("bad", "good")
        assert (bad.reason, bad.error) == (FinishReason.FAILED, "non_finite_logits")
        assert good.reason is FinishReason.LENGTH
        assert it.engine.healthy()


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (RuntimeError("the kernel broke"), "engine_failed"),
        (ModelChangedError("truncated"), "model_file_changed"),
    ],
)
def test_a_step_that_raises_fails_the_engine_and_tells_everybody(error, word, caplog):
    with Running(gated=True, sessions=1) as it:
        it.engine.submit(request("running"))
        it.engine.submit(request("queued"))
        it.at_gate()
        it.engine.submit(request("inbox"))
        it.model.error = error
        it.open()
        ends = it.sink.wait("running", "queued", "inbox")
        assert [(end.reason, end.error) for end in ends] == [(FinishReason.FAILED, word)] * 3
        until(lambda: not it.engine.healthy())
        assert str(error) in it.engine.stats().failed
        with pytest.raises(EngineStoppedError, match=str(error)):
            it.engine.submit(request("late"))
        it.engine.cancel("running")
    assert "the engine failed" in caplog.text


def test_a_sink_that_raises_does_not_lose_a_request(caplog):
    collector = Collector()
    broken = threading.Event()

    def sink(events):
        if not broken.is_set():
            broken.set()
            raise OSError("the other side is gone")
        collector(events)

    with Running(gated=True, sink=sink) as it:
        it.engine.submit(request("ends", max_tokens=1))
        it.engine.submit(request("goes on", max_tokens=9))
        it.at_gate()
        it.open()
        collector.wait("ends", "goes on")
        until(lambda: not it.engine.healthy())
        with pytest.raises(EngineStoppedError, match="the other side is gone"):
            it.engine.submit(request("late"))


def test_a_sink_that_always_raises_ends_the_engine_too(caplog):
    def sink(_events):
        raise OSError("gone")

    with Running(sink=sink) as it:
        it.engine.submit(request("a"))
        until(lambda: not it.engine.healthy())
    assert "could not be delivered" in caplog.text


def test_draining_ends_the_queue_and_lets_running_requests_finish():
    with Running(gated=True, sessions=1) as it:
        it.engine.submit(request("running", max_tokens=6))
        it.engine.submit(request("queued"))
        it.at_gate()
        stopper = threading.Thread(target=it.engine.stop, args=(30,))
        stopper.start()
        until(lambda: it.engine._drain_until_s is not None)
        with pytest.raises(EngineStoppedError, match="stopping"):
            it.engine.submit(request("late"))
        it.step()
        (queued,) = it.sink.wait("queued")
        assert (queued.reason, queued.error) == (FinishReason.FAILED, "engine_stopped")
        assert it.engine.healthy()
        it.open()
        stopper.join(20)
        assert not stopper.is_alive()
        assert it.sink.finished["running"].reason is FinishReason.LENGTH
        assert not it.engine.healthy()


def test_what_still_runs_at_the_drain_deadline_is_failed():
    with Running(gated=True) as it:
        it.engine.submit(request("a", max_tokens=20))
        it.at_gate()
        stopper = threading.Thread(target=it.engine.stop, args=(0.05,))
        stopper.start()
        time.sleep(0.1)
        it.open()
        stopper.join(20)
        end = it.sink.finished["a"]
        assert (end.reason, end.error) == (FinishReason.FAILED, "engine_stopped")
        assert end.completion_tokens >= 1
        it.engine._pool.check_integrity()
        assert it.engine.stats().pages_reserved == 0


def test_a_second_stop_shortens_the_drain():
    with Running(gated=True, context_tokens=60) as it:
        it.engine.submit(request("a", max_tokens=50))
        it.at_gate()
        stopper = threading.Thread(target=it.engine.stop, args=(60,))
        stopper.start()
        until(lambda: it.engine._drain_until_s is not None)
        threading.Thread(target=it.engine.stop, args=(0,)).start()
        until(lambda: it.engine._drain_until_s <= time.monotonic())
        it.open()
        stopper.join(20)
        assert not stopper.is_alive()
        assert it.sink.finished["a"].error == "engine_stopped"


def test_stopping_an_engine_that_never_started_ends_what_was_submitted():
    it = Running()
    it.engine.submit(request("a"))
    it.engine.stop(5)
    assert it.sink.finished["a"].error == "engine_stopped"
    assert not it.engine.healthy()
    with pytest.raises(EngineStoppedError):
        it.engine.submit(request("b"))


def test_stopping_twice_or_idle_returns_at_once():
    with Running() as it:
        begin_s = time.monotonic()
        it.engine.stop(30)
        it.engine.stop(30)
        assert time.monotonic() - begin_s < 10


def test_an_idle_engine_sleeps_and_its_heart_beats():
    with Running() as it:
        it.engine.submit(request("a"))
        it.sink.wait("a")
        until(lambda: it.engine._idle)
        clock = time.pthread_getcpuclockid(it.engine._thread.ident)
        before_s = time.clock_gettime(clock)
        begin_s = time.monotonic()
        time.sleep(0.3)
        assert time.clock_gettime(clock) - before_s < 0.01
        assert it.engine.stats().heartbeat_s >= begin_s + 0.3


def test_the_heart_stands_still_in_a_step_that_hangs():
    with Running(gated=True) as it:
        it.engine.submit(request("a"))
        it.at_gate()
        time.sleep(0.1)
        assert time.monotonic() - it.engine.stats().heartbeat_s >= 0.1
        assert it.engine.healthy()  # the watchdog judges by the heartbeat


def test_the_switch_interval_is_shortened_and_never_lengthened():
    before_s = sys.getswitchinterval()
    try:
        with Running():
            assert sys.getswitchinterval() <= 0.0001
    finally:
        sys.setswitchinterval(before_s)


def test_stress_of_submit_and_cancel_from_many_threads():
    with Running(max_waiting=1000) as it:
        ids = [f"t{t}-{i}" for t in range(4) for i in range(50)]

        def caller(mine):
            for number, id_ in enumerate(mine):
                it.engine.submit(request(id_, prompt=1 + number % 20, max_tokens=1 + number % 11))
                if number % 3 == 0:
                    it.engine.cancel(id_)

        threads = [threading.Thread(target=caller, args=(ids[t::4],)) for t in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        ends = it.sink.wait(*ids)
        assert {end.reason for end in ends} <= {FinishReason.LENGTH, FinishReason.CANCELLED}
        until(lambda: it.engine._idle)
        it.engine._pool.check_integrity()
        assert it.engine.stats().pages_reserved == 0
        assert not it.engine._live


def test_stopping_gives_up_on_a_step_that_hangs_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr("runtime.engine._JOIN_GRACE_S", 0.05)
    with Running(gated=True) as it:
        it.engine.submit(request("a"))
        it.at_gate()
        it.engine.stop(0)
        assert "a step hangs" in caplog.text
        it.open()
        it.engine._thread.join(20)
        assert it.sink.finished["a"].error == "engine_stopped"


def test_a_lost_page_is_noticed_when_idle(monkeypatch, caplog):
    monkeypatch.setattr("runtime.engine._CHECK_INTERVAL_S", 0.0)
    with Running() as it:
        it.engine.submit(request("a"))
        it.sink.wait("a")
        until(lambda: it.engine._idle)
        it.engine._pool._empty.pop()
        it.engine.submit(request("b"))
        it.sink.wait("b")
        until(lambda: not it.engine.healthy())
        assert "pages lost" in it.engine.stats().failed


def test_a_wrong_result_of_the_model_leaves_nobody_waiting(caplog):
    with Running(gated=True) as it:
        it.engine.submit(request("a", max_tokens=3))
        it.engine.submit(request("b", max_tokens=3))
        it.at_gate()
        step = it.model.step

        def broken(plan):
            result = step(plan)
            result.token_ids = result.token_ids[:1]  # one answer too few
            return result

        it.model.step = broken
        it.open()
        ends = it.sink.wait("a", "b")
        assert {end.error for end in ends} == {"engine_failed"}
        assert not it.engine.healthy() or it.engine.stats().failed
        assert not it.engine._live


def test_the_time_to_come_back_grows_with_the_queue():
    with Running(gated=True, sessions=1, max_waiting=1000) as it:
        it.engine._run_s = 2.0
        hints = []
        for limit in (1, 5, 500):
            it.engine._max_waiting = limit
            with pytest.raises(QueueFullError) as caught:
                for i in range(1000):
                    it.engine.submit(request(f"{limit}-{i}"))
            hints.append(caught.value.retry_after_s)
        assert hints[0] < hints[1] < hints[2] == 60


def test_steps_of_answers_use_the_threads_of_the_team_and_prompts_all():
    with Running(n_threads=2) as running:
        running.engine._team.size = 1
        for name in ("a", "b"):
            running.engine.submit(request(name, prompt=3, max_tokens=4))
            running.sink.wait(name)
        assert running.model.threads_used == [1, 2, 1]
    assert running.sink.ids("b") == answer_alone(request("b", prompt=3, max_tokens=4))
