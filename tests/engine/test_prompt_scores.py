"""Log-probabilities of prompts: each token once, whatever the chunks, and nothing else changes."""

import pytest

from runtime.request import FinishEvent, FinishReason, PromptEvent, Request, TokenEvent
from tests.engine.bench import Bench, CheapRows, request
from tests.engine.fakes import answer_alone, echo_token, logprob_of


def told(events, id_):
    """(index, log-probability, tops) of every prompt token that was told."""
    return [
        (one.start + offset, logprob, top)
        for one in events
        if isinstance(one, PromptEvent) and one.request_id == id_
        for offset, (logprob, top) in enumerate(zip(one.logprobs, one.tops, strict=True))
    ]


def expected(asked):
    prompt = list(asked.prompt_ids)
    return [logprob_of(prompt[:index], prompt[index]) for index in range(1, len(prompt))]


def answer(events, id_):
    return [one.token_id for one in events if isinstance(one, TokenEvent) and one.request_id == id_]


def check(bench, *requests):
    bench.run()
    for asked in requests:
        events = [one for one in bench.events if one.request_id == asked.id]
        assert answer(events, asked.id) == answer_alone(asked, bench.model.follow)
        assert isinstance(events[-1], FinishEvent)
        scores = told(events, asked.id)
        if asked.prompt_logprobs is None:
            assert scores == []
            continue
        assert [index for index, _, _ in scores] == list(range(1, len(asked.prompt_ids)))
        assert [logprob for _, logprob, _ in scores] == expected(asked)
        assert {len(top) for _, _, top in scores} <= {min(3, asked.prompt_logprobs)}
        kinds = [type(one) for one in events]
        if PromptEvent in kinds:
            assert TokenEvent not in kinds[: kinds.index(PromptEvent)], "the prompt comes first"


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("num_top", [0, 2])
def test_each_token_of_the_prompt_once(budget, num_top):
    bench = Bench()
    asked = request("a", prompt=11, prompt_logprobs=num_top)
    bench.add(asked)
    step, bench.step = bench.step, lambda: step(budget)
    check(bench, asked)


def test_beside_others_and_their_guesses():
    bench = Bench(costs=CheapRows(), follow=echo_token, sessions=4, n_pages=32)
    requests = [
        request("a", prompt=9, max_tokens=12),
        request("b", prompt=7, max_tokens=12, prompt_logprobs=2),
        request("c", prompt=5, max_tokens=12, prompt_logprobs=0),
        request("d", prompt=1, max_tokens=12, prompt_logprobs=1),
    ]
    for one in requests:
        bench.add(one)
        bench.step(6)
    check(bench, *requests)


def test_a_scored_prompt_is_computed_and_shared_afterwards():
    bench = Bench(cache=True)
    prompt = list(range(1, 14))
    first = Request("a", prompt, 2)
    bench.add(first)
    bench.run()
    scored, third = Request("b", prompt, 2, prompt_logprobs=1), Request("c", prompt, 2)
    bench.add(scored)
    check(bench, first, scored)
    finish = bench.events[-1]
    assert finish.cached_tokens == 0
    bench.add(third)
    check(bench, first, scored, third)
    assert bench.events[-1].cached_tokens == 12


def test_a_request_that_waits_again_is_told_nothing_twice():
    bench = Bench(n_pages=8, sessions=2, context_tokens=32)
    # It borrows beyond its share, and the one behind it takes the pages back.
    long = Request("long", list(range(1, 25)), 4, prompt_logprobs=0)
    short = Request("short", list(range(30, 42)), 3)
    bench.add(long)
    bench.step(10)
    bench.add(short)
    check(bench, long, short)
    assert bench.scheduler.counts.preemptions == 1


def test_numbers_that_are_none_end_the_request():
    bench = Bench()
    bench.model.poison = 50
    bad, good = Request("bad", [1, 50, 2, 3, 4], 3, prompt_logprobs=1), request("good", prompt_logprobs=1)
    bench.add(bad)
    bench.add(good)
    check(bench, good)
    (finish,) = [one for one in bench.events if isinstance(one, FinishEvent) and one.request_id == "bad"]
    assert (finish.reason, finish.error) == (FinishReason.FAILED, "non_finite_logits")
