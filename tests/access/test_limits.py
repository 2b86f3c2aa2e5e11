"""Tokens per minute: a budget that fills steadily, may go into debt, and says when to come back."""

import pytest

from daemon.access.keys import Key
from daemon.access.limits import Caller, TokenBudget
from daemon.errors import ApiError


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


def limited(clock, tokens_per_minute):
    return Caller(Key("a", "0" * 64, tokens_per_minute=tokens_per_minute), clock)


def test_a_budget_fills_steadily_and_no_further_than_a_minute():
    clock = Clock()
    budget = TokenBudget(600, clock)
    assert budget.wait_s(600) == 0
    budget.charge(600)
    assert budget.wait_s(1) == pytest.approx(0.1)
    clock.now_s += 30
    assert budget.wait_s(300) == pytest.approx(0)
    assert budget.wait_s(301) == pytest.approx(0.1)
    clock.now_s += 10_000
    budget.charge(600)
    assert budget.wait_s(1) > 0


def test_answers_make_debts_that_the_next_request_waits_for():
    clock = Clock()
    caller = limited(clock, 60)
    caller.require_tokens(10)
    caller.charge(110)
    with pytest.raises(ApiError) as caught:
        caller.require_tokens(1)
    assert caught.value.reason == "RATE_LIMITED"
    assert caught.value.retry_after_s == pytest.approx(61)
    clock.now_s += 61
    caller.require_tokens(1)


def test_a_prompt_larger_than_the_budget_is_taken_when_the_bucket_is_full():
    clock = Clock()
    caller = limited(clock, 60)
    caller.require_tokens(1000)
    with pytest.raises(ApiError):
        caller.require_tokens(1)
    clock.now_s += 1000
    caller.require_tokens(1000)


def test_limits_that_change_keep_what_is_in_use():
    caller = Caller(Key("a", "0" * 64, max_sessions=1))
    caller.num_running = 1
    assert not caller.may_run()
    caller.renew(Key("a", "0" * 64, max_sessions=2))
    assert caller.may_run()
    assert caller.in_use


def test_only_some_keys_manage():
    Caller(Key("a", "0" * 64, manage=True)).require_manage()
    with pytest.raises(ApiError) as caught:
        Caller(Key("a", "0" * 64)).require_manage()
    assert caught.value.reason == "PERMISSION_DENIED"
