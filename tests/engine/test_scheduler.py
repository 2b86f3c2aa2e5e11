import time

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtime.pages import PagePool
from runtime.request import FinishEvent, FinishReason, Request, State, TokenEvent
from runtime.sampling import SamplingParams
from runtime.scheduler import Scheduler
from runtime.step_plan import MAX_TOP_LOGPROBS, Outcome, StepResult
from tests.engine.bench import Bench, CheapRows, request
from tests.engine.fakes import answer_alone, echo_token


def test_one_request_alone():
    bench = Bench()
    bench.add(request("a"))
    bench.run()
    assert bench.sink.ids("a") == answer_alone(request("a"))
    end = bench.sink.finished["a"]
    assert (end.reason, end.prompt_tokens, end.completion_tokens) == (FinishReason.LENGTH, 3, 4)
    assert bench.model.steps == [[3], [1], [1], [1]]


def test_the_stop_token_is_counted_and_not_reported():
    stop = answer_alone(request("a"))[2]
    bench = Bench()
    bench.add(request("a", stop_token_ids=frozenset({stop})))
    bench.run()
    expected = answer_alone(request("a", stop_token_ids=frozenset({stop})))
    assert bench.sink.ids("a") == expected[:-1]
    assert bench.sink.finished["a"].reason is FinishReason.STOP
    assert bench.sink.finished["a"].completion_tokens == len(expected)


def test_the_context_ends_an_answer():
    bench = Bench(context_tokens=8)
    bench.add(request("a", prompt=5, max_tokens=50))
    bench.run()
    assert bench.sink.finished["a"].reason is FinishReason.LENGTH
    assert bench.sink.finished["a"].completion_tokens == 3


def test_a_newcomer_joins_the_next_step():
    bench = Bench()
    bench.add(request("a", max_tokens=8))
    bench.step()
    bench.add(request("b", prompt=5))
    bench.step()
    assert bench.model.steps[-1] == [1, 5]


def test_answers_go_before_prompts_and_the_shortest_prompt_before_longer_ones():
    bench = Bench(n_pages=64, context_tokens=64)
    bench.add(request("a", max_tokens=20))
    bench.step()
    bench.add(request("b", prompt=20))
    bench.add(request("c", prompt=10))
    bench.step(row_budget=9)  # the older prompt has a quarter of the eight rows
    assert bench.model.steps[-1] == [1, 6, 2]
    bench.step(row_budget=9)  # c is done with 4 more, and the rest goes to b
    assert bench.model.steps[-1] == [1, 4, 4]
    assert bench.sink.ids("c") == answer_alone(request("c", prompt=10))[:1]


def test_a_long_prompt_comes_through_a_stream_of_short_ones():
    bench = Bench(n_pages=200, context_tokens=500, sessions=3)
    bench.add(request("long", prompt=400, max_tokens=2))
    steps = 0
    while "long" not in bench.sink.tokens:
        for id_ in ("s", "t", "u"):
            if bench.scheduler.num_waiting < 3:
                bench.add(request(f"{id_}{steps}", prompt=60, max_tokens=1))
        bench.step(row_budget=40)
        steps += 1
    # A quarter of 40 rows is 10: the 400 tokens take at most 40 steps, however many short prompts come.
    assert steps <= 40
    assert len(bench.sink.finished) >= 10


def test_prompts_move_also_where_answers_would_fill_the_step():
    bench = Bench(n_pages=64, context_tokens=64)
    for id_ in "abc":
        bench.add(request(id_, max_tokens=20))
    bench.step()
    bench.add(request("d", prompt=8))
    for _ in range(4):
        bench.step(row_budget=3)
        assert bench.model.steps[-1] == [1, 1, 1]
    # Two answers and one prompt row in each of the steps: nobody was left out.
    assert all(len(bench.sink.ids(id_)) >= 3 for id_ in "abc")


def test_only_the_last_prompt_row_needs_logits():
    bench = Bench()
    bench.add(request("a", prompt=10))
    plan = bench.scheduler.schedule(4, 0.0)
    assert plan.n_out == 0
    bench.scheduler.apply(bench.model.step(plan), 0.0)
    plan = bench.scheduler.schedule(64, 0.0)
    assert plan.out_rows.tolist() == [5]
    assert plan.positions.tolist() == [4, 5, 6, 7, 8, 9]


def test_a_big_request_is_passed_a_bounded_number_of_times():
    bench = Bench(n_pages=8, sessions=3, context_tokens=32, max_bypass=3)
    bench.add(request("a", prompt=8, max_tokens=12))  # 5 pages: the big one does not fit beside it
    bench.step()
    bench.add(request("big", prompt=24, max_tokens=8))  # 8 pages
    small = [f"s{i}" for i in range(10)]
    for id_ in small:
        bench.add(request(id_, prompt=2, max_tokens=1))
    bench.run()
    order = list(bench.sink.finished)
    assert sum(order.index(id_) < order.index("big") for id_ in small) == 3


def test_requests_are_admitted_in_order_of_arrival():
    bench = Bench(sessions=1)
    for id_ in "abcde":
        bench.add(request(id_))
    bench.run()
    assert list(bench.sink.finished) == list("abcde")


def test_a_cancelled_prompt_gives_its_pages_back_at_once():
    bench = Bench()
    bench.add(request("a", prompt=20))
    bench.step(row_budget=8)
    assert bench.scheduler.pool.statistics().pages_used == 2
    event = bench.scheduler.cancel("a", 200.0)
    assert event.reason is FinishReason.CANCELLED
    assert bench.scheduler.pool.statistics().pages_reserved == 0
    assert bench.scheduler.pool.statistics().pages_used == 0
    assert bench.scheduler.cancel("a", 200.0) is None
    assert bench.scheduler.schedule(64, 200.0) is None


def test_deadlines_end_waiting_and_half_computed_requests():
    bench = Bench(sessions=1)
    bench.add(request("a", prompt=20, deadline=150.0))
    bench.add(request("b", deadline=140.0))
    bench.step(row_budget=4)
    assert bench.scheduler.expire(139.0) == []
    assert [event.request_id for event in bench.scheduler.expire(140.0)] == ["b"]
    assert [event.reason for event in bench.scheduler.expire(150.0)] == [FinishReason.DEADLINE]
    assert not bench.scheduler.has_work


def test_non_finite_logits_fail_one_request_and_leave_the_others():
    bench = Bench()
    bench.model.poison = 96
    bench.add(Request("bad", [1, 96, 2], 4))
    bench.add(request("good"))
    bench.run()
    end = bench.sink.finished["bad"]
    assert (end.reason, end.error, end.completion_tokens) == (FinishReason.FAILED, "non_finite_logits", 0)
    assert bench.sink.ids("good") == answer_alone(request("good"))


def test_a_row_without_a_token_fails_its_request():
    bench = Bench()
    bench.add(request("a"))
    plan = bench.scheduler.schedule(64, 0.0)
    result = bench.model.step(plan)
    result.token_ids[:] = [-1] * len(result.token_ids)
    result.outcomes[:] = Outcome.NO_TOKEN
    (event,) = bench.scheduler.apply(result, 0.0)
    assert (event.reason, event.error) == (FinishReason.FAILED, "no_token")


def test_log_probabilities_are_given_where_asked():
    bench = Bench()
    bench.add(request("a", max_tokens=1, sampling=SamplingParams(top_logprobs=2)))
    bench.add(request("b", max_tokens=1, sampling=SamplingParams(top_logprobs=0)))
    bench.add(request("c", max_tokens=1, sampling=SamplingParams(top_logprobs=20)))
    bench.add(request("d", max_tokens=1))
    bench.run()
    token = bench.sink.tokens["a"][0]
    assert (token.logprob, token.top) == (-0.5, ((token.token_id, -0.5), (1, -1.5)))
    assert (bench.sink.tokens["b"][0].logprob, bench.sink.tokens["b"][0].top) == (-0.5, ())
    assert len(bench.sink.tokens["c"][0].top) == 3
    assert (bench.sink.tokens["d"][0].logprob, bench.sink.tokens["d"][0].top) == (None, ())


def test_times_are_taken_between_the_right_moments():
    bench = Bench(sessions=1)
    bench.add(request("a", max_tokens=2))
    bench.add(request("b", max_tokens=3))
    bench.run()
    end = bench.sink.finished["b"]
    assert end.queue_ms == pytest.approx(20)
    assert end.prefill_ms == pytest.approx(10)
    assert end.decode_ms == pytest.approx(20)


def test_misuse_is_refused():
    bench = Bench()
    bench.add(request("a"))
    with pytest.raises(ValueError, match="in use"):
        bench.add(request("a"))
    with pytest.raises(ValueError, match="no prompt"):
        bench.add(Request("b", [], 4))
    with pytest.raises(ValueError, match="never fit"):
        bench.add(request("b", prompt=32))
    bench.scheduler.schedule(4, 0.0)
    with pytest.raises(RuntimeError):
        bench.scheduler.schedule(4, 0.0)
    with pytest.raises(RuntimeError):
        bench.scheduler.cancel("a", 0.0)
    assert [event.request_id for event in bench.scheduler.fail_all("engine_failed", 0.0)] == ["a"]
    bench.scheduler.pool.check_integrity()


# Half of them begin alike.
PROMPTS = st.lists(st.integers(0, 96), min_size=1, max_size=25) | st.builds(
    lambda length, tail: [*range(length), *tail], st.integers(1, 20), st.lists(st.integers(0, 96), max_size=5)
)
REQUESTS = st.builds(
    lambda prompt, max_tokens, seed, stops, patience: (prompt, max_tokens, seed, stops, patience),
    PROMPTS,
    st.integers(1, 12),
    st.integers(0, 3),
    st.frozensets(st.integers(0, 96), max_size=20),
    st.none() | st.floats(0.01, 1.0),
)


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come, go and run out of time while steps of any size are taken."""

    def __init__(self):
        super().__init__()
        self.bench = Bench(
            n_pages=11,
            sessions=3,
            context_tokens=40,
            max_step_rows=24,
            max_bypass=2,
            cache=True,
            costs=CheapRows(),
            follow=echo_token,
        )
        self.scheduler = self.bench.scheduler
        self.requests: dict[str, Request] = {}
        self.passed: dict[str, int] = {}  # waiting request -> later arrivals that were admitted before it
        self.idle_steps: dict[str, int] = {}  # running request -> steps since it was served last

    @rule(values=REQUESTS)
    def submit(self, values):
        prompt, max_tokens, seed, stops, patience = values
        id_ = f"r{len(self.requests):04}"
        deadline = None if patience is None else self.bench.now_s + patience
        new = Request(id_, prompt, max_tokens, SamplingParams(seed=seed), stops, deadline)
        self.requests[id_] = new
        self.passed[id_] = 0
        self.bench.add(new)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data):
        id_ = data.draw(st.sampled_from(sorted(self.requests)))
        event = self.scheduler.cancel(id_, self.bench.now_s)
        assert (event is None) == (id_ in self.bench.sink.finished)
        if event is not None:
            self.bench.sink([event])

    @rule(pause_s=st.floats(0.0, 0.5))
    def expire(self, pause_s):
        self.bench.now_s += pause_s
        self.bench.sink(self.scheduler.expire(self.bench.now_s))

    @rule(row_budget=st.integers(2, 30), count=st.integers(1, 5))
    def step(self, row_budget, count):
        for _ in range(count):
            self._step(row_budget)

    def _step(self, row_budget):
        waiting = set(self.scheduler._waiting)
        before = {id_: sequence.num_preempted for id_, sequence in self.scheduler._by_id.items()}
        in_step = self._run_step(row_budget)
        admitted = sorted(waiting - set(self.scheduler._waiting))
        for id_, sequence in self.scheduler._waiting.items():
            # One that gave its session back in this step was passed by whom it gave it to; others may have come before.
            given = sequence.num_preempted > before[id_]
            self.passed[id_] += 1 if given else sum(other > id_ for other in admitted)
            assert self.passed[id_] <= 2
        running = {sequence.request.id for sequence in self.scheduler._running}
        self.idle_steps = {id_: 0 if id_ in in_step else self.idle_steps.get(id_, 0) + 1 for id_ in running}
        assert all(steps <= 6 for steps in self.idle_steps.values()), self.idle_steps

    def _run_step(self, row_budget):
        bench = self.bench
        plan = self.scheduler.schedule(row_budget, bench.now_s)
        if plan is None:
            assert not self.scheduler.has_work
            return set()
        assert plan.n_rows <= min(row_budget, 24)
        in_step = {sequence.request.id for sequence in self.scheduler._batch.sequences}
        prompt_rows, decode_rows = self.scheduler.step_rows
        assert prompt_rows + decode_rows == plan.n_rows
        bench.now_s += 0.001
        bench.sink(self.scheduler.apply(bench.model.step(plan), bench.now_s))
        return in_step

    @invariant()
    def pages_are_conserved(self):
        self.scheduler.pool.check_integrity()
        running = self.scheduler._running
        statistics = self.scheduler.pool.statistics()
        assert statistics.sessions_used == len(running) <= 3
        held = {page for sequence in running for page in sequence.lease.pages[: sequence.lease.used].tolist()}
        assert statistics.pages_used == len(held)
        assert all(sequence.lease.used >= -(-sequence.num_computed // 4) for sequence in running)
        assert statistics.pages_reserved == len(held) + sum(
            sequence.need_pages - sequence.lease.used for sequence in running
        )
        assert all(sequence.state is State.RUNNING for sequence in running)

    @invariant()
    def answers_are_those_of_a_request_alone(self):
        for id_ in self.bench.sink.tokens:
            ids = self.bench.sink.ids(id_)
            assert ids == answer_alone(self.requests[id_], echo_token)[: len(ids)]

    def teardown(self):
        # Bounded: each step computes at least one row of somebody.
        for _ in range(2 * sum(len(r.prompt_ids) + r.max_tokens for r in self.requests.values()) + 1):
            if not self.scheduler.has_work:
                break
            self._step(8)
        assert set(self.bench.sink.finished) == set(self.requests)
        assert self.scheduler.pool.statistics().pages_free == 11
        for id_, end in self.bench.sink.finished.items():
            answer = answer_alone(self.requests[id_], echo_token)
            stopped = bool(answer) and answer[-1] in self.requests[id_].stop_token_ids
            if end.reason is FinishReason.STOP:
                assert stopped
                assert self.bench.sink.ids(id_) == answer[:-1]
            if end.reason is FinishReason.LENGTH:
                assert not stopped
                assert self.bench.sink.ids(id_) == answer
            assert end.queue_ms >= 0
            assert end.prefill_ms >= 0
            assert end.decode_ms >= 0


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_what_planning_a_step_costs(capsys):
    """Printed, not asserted: this runs on busy machines."""
    sessions, context = 8, 2048
    scheduler = Scheduler(
        PagePool(sessions * context // 32, sessions),
        page_tokens=32,
        context_tokens=context,
        max_step_rows=256,
    )
    for i in range(sessions):
        scheduler.add(scheduler.prepare(Request(f"r{i}", [1] * 1000, 1000), None, 0.0))
    costs_us = []
    for _ in range(300):
        begin_s = time.perf_counter()
        plan = scheduler.schedule(256, 0.0)
        middle_s = time.perf_counter()
        n_out = plan.n_out
        result = StepResult(
            [1] * n_out,
            np.zeros(n_out, np.float32),
            np.zeros(n_out, np.float32),
            np.zeros((n_out, MAX_TOP_LOGPROBS), np.int32),
            np.zeros((n_out, MAX_TOP_LOGPROBS), np.float32),
            np.zeros(n_out, np.uint8),
        )
        apply_s = time.perf_counter()
        events = scheduler.apply(result, 0.0)
        end_s = time.perf_counter()
        if len(events) == sessions:
            costs_us.append((1e6 * (middle_s - begin_s), 1e6 * (end_s - apply_s)))
    assert all(isinstance(event, TokenEvent) and not isinstance(event, FinishEvent) for event in events)
    plan_us, apply_us = np.median(costs_us, axis=0)
    with capsys.disabled():
        print(f"\na step of 8 sessions: planned in {plan_us:.0f} us, applied in {apply_us:.0f} us (median)")
