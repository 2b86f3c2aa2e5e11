"""The line in front of a model: bounds, order, fairness, deadlines, places."""

import asyncio
import contextlib
import time

import pytest

from daemon.access import line as module
from daemon.access.keys import Key
from daemon.access.limits import ANONYMOUS, Caller
from daemon.access.line import Line
from daemon.access.lines import Lines
from daemon.errors import ApiError


def make(*, running=1, waiting=8, tokens=1000, wait_s=60.0):
    return Line(max_running=running, max_waiting=waiting, max_waiting_tokens=tokens, max_wait_s=wait_s)


def caller(name="a", **limits):
    return Caller(Key(name, "0" * 64, **limits))


def join(line, who=None, priority=0, tokens=10, sessions=1):
    return line.join(who or Caller(ANONYMOUS), priority=priority, prompt_tokens=tokens, num_sessions=sessions)


def refused(line, *args, **kwargs):
    with pytest.raises(ApiError) as caught:
        join(line, *args, **kwargs)
    return caught.value


async def places(ticket, deadline=None):
    return [place async for place in ticket.positions(deadline)]


async def test_a_free_line_lets_through_at_once():
    line = make(running=2)
    one, two = join(line), join(line)
    assert await places(one) == []
    assert await places(two) == []
    assert (line.num_running, line.num_waiting) == (2, 0)


async def test_the_next_runs_when_one_leaves_and_places_are_told():
    line = make()
    first, second, third = join(line), join(line), join(line)
    seen = asyncio.create_task(places(third))
    await asyncio.sleep(0)
    assert third.place == 2
    first.leave()
    first.leave()
    await asyncio.sleep(0)
    assert second.admitted_s is not None
    second.leave()
    assert await seen == [2, 1]
    third.leave()
    assert (line.num_running, line.num_waiting) == (0, 0)


async def test_priority_then_the_caller_that_runs_least_then_the_order():
    line = make(running=2)
    greedy, modest = caller("greedy"), caller("modest")
    running = [join(line, greedy), join(line, greedy)]
    late_greedy, late_modest = join(line, greedy), join(line, modest)
    urgent = join(line, greedy, priority=5)
    running[0].leave()
    assert urgent.admitted_s is not None
    running[1].leave()
    assert late_modest.admitted_s is not None
    assert late_greedy.admitted_s is None


async def test_waiting_raises_the_priority(monkeypatch):
    monkeypatch.setattr(module, "AGING_S", 0.01)
    line = make()
    first, low = join(line), join(line, priority=-1)
    await asyncio.sleep(0.03)
    high = join(line, priority=0)
    first.leave()
    assert low.admitted_s is not None
    assert high.admitted_s is None


async def test_bounds_by_requests_and_by_tokens():
    line = make(waiting=2, tokens=100)
    join(line, tokens=5000)  # runs: it does not wait
    join(line, tokens=90)
    assert refused(line, tokens=11).reason == "QUEUE_FULL"
    join(line, tokens=10)
    failure = refused(line, tokens=0)
    assert failure.reason == "QUEUE_FULL"
    assert failure.retry_after_s >= 1


async def test_a_prompt_larger_than_the_bound_may_wait_alone():
    line = make(tokens=100)
    join(line)
    join(line, tokens=5000)
    assert refused(line, tokens=1).reason == "QUEUE_FULL"


async def test_nobody_overtakes_the_line_by_coming_late():
    line = make()
    first, second = join(line), join(line)
    first.leave()
    assert second.admitted_s is not None
    assert join(line).admitted_s is None


async def test_limits_of_a_key():
    line = make(running=4)
    one = caller("one", max_sessions=1, max_waiting=1)
    running, waiting = join(line, one), join(line, one)
    assert waiting.admitted_s is None, "the model has room, the key has not"
    assert "'one'" in refused(line, one).message
    assert join(line).admitted_s is not None, "a key at its limit holds up nobody else"
    running.leave()
    assert waiting.admitted_s is not None
    waiting.leave()
    assert not one.in_use


async def test_a_refused_request_costs_no_tokens():
    line = make(waiting=0)
    one = caller("one", tokens_per_minute=100)
    join(line)
    for _ in range(50):
        assert refused(line, one, tokens=60).reason == "QUEUE_FULL"
    join(make(), one, tokens=60)
    assert refused(make(), one, tokens=60).reason == "RATE_LIMITED"


async def test_the_longest_wait_and_the_deadline():
    line = make(wait_s=0.02)
    join(line)
    with pytest.raises(ApiError) as caught:
        await places(join(line))
    assert caught.value.reason == "QUEUE_TIMEOUT"
    patient = make()
    join(patient)
    late = join(patient)
    with pytest.raises(ApiError) as caught:
        await places(late, time.monotonic() + 0.02)
    assert caught.value.reason == "DEADLINE_EXCEEDED"
    late.leave()
    assert patient.num_waiting == 0


async def test_a_cancelled_wait_frees_its_place():
    line = make()
    first, second, third = join(line), join(line), join(line)
    task = asyncio.create_task(places(second))
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    second.leave()
    first.leave()
    assert third.admitted_s is not None


async def test_thousands_wait_cheaply():
    line = make(waiting=4096, tokens=10**9)
    tickets = [join(line) for _ in range(2000)]
    start_s = time.monotonic()
    for ticket in tickets[:100]:
        ticket.leave()
    assert time.monotonic() - start_s < 5
    assert line.num_waiting == 1899


async def test_several_answers_take_a_session_each_and_give_them_back_one_by_one():
    line = make(running=4)
    three = join(line, sessions=3)
    pair, single = join(line, sessions=2), join(line)
    assert three.admitted_s is not None
    assert pair.admitted_s is None
    assert single.admitted_s is None, "nobody slips past a request that needs more"
    three.keep(2)
    assert pair.admitted_s is not None
    three.keep(2)
    assert single.admitted_s is None
    three.keep(1)
    assert single.admitted_s is not None
    three.keep(0)
    three.keep(0)
    assert join(line).admitted_s is not None
    assert line.num_running == 3


async def test_more_answers_than_sessions_take_the_whole_model():
    line = make(running=2)
    many = join(line, sessions=16)
    other = join(line)
    assert (many.admitted_s is not None, other.admitted_s) == (True, None)
    many.keep(2)
    assert other.admitted_s is None
    many.keep(1)
    assert other.admitted_s is not None


async def test_a_key_counts_answers_and_not_requests():
    line = make(running=8)
    one = caller("one", max_sessions=3)
    pair, second = join(line, one, sessions=2), join(line, one, sessions=2)
    assert (one.num_running, one.num_waiting) == (2, 1)
    assert second.admitted_s is None
    pair.keep(1)
    assert second.admitted_s is not None
    assert one.num_running == 3
    failure = refused(line, one, sessions=4)
    assert (failure.reason, failure.field) == ("INVALID_ARGUMENT", "options.num_choices")
    pair.leave()
    second.leave()
    assert (one.num_running, one.num_waiting) == (0, 0)


async def test_one_line_for_a_model_as_long_as_it_lives():
    class Model:
        pass

    lines = Lines(max_waiting=0)
    model, other = Model(), Model()
    line = lines.of(model, max_running=1)
    assert lines.of(model, max_running=1) is line
    assert lines.of(other, max_running=1) is not line
    join(line)
    assert refused(line).reason == "QUEUE_FULL"
    del model
    assert len(lines._lines) == 1
