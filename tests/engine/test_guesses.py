"""Steps that carry guessed tokens: fewer steps, the same answers."""

from runtime.request import FinishReason, Request
from runtime.sampling import SamplingParams
from tests.engine.bench import Bench, CheapRows, request
from tests.engine.fakes import answer_alone, echo_token


def guessing_bench(**more):
    return Bench(**{"n_pages": 64, "context_tokens": 200, "costs": CheapRows(), "follow": echo_token, **more})


def test_guesses_save_steps_and_change_nothing():
    one = request("a", prompt=10, max_tokens=120)
    bench = guessing_bench()
    bench.add(one)
    bench.run()
    assert bench.sink.ids("a") == answer_alone(one, echo_token)
    assert len(bench.model.steps) < 80
    counts, end = bench.scheduler.counts, bench.sink.finished["a"]
    assert counts.drafted_tokens == end.drafted_tokens > end.accepted_tokens == counts.accepted_tokens > 40
    # Each row gives a token but those of the prompt before the last and those behind a wrong guess.
    assert len(bench.model.steps) + end.accepted_tokens == 120
    # The sampler has drawn what was reported, and nothing else.
    assert bench.samplers["a"].drawn == bench.sink.ids("a")


def test_guesses_never_pass_the_limit_or_a_stop_token():
    for max_tokens in range(1, 30):
        one = request("a", prompt=10, max_tokens=max_tokens)
        bench = guessing_bench(context_tokens=10 + max_tokens)
        bench.add(one)
        bench.run()
        assert bench.sink.ids("a") == answer_alone(one, echo_token)
    stop = answer_alone(request("a", prompt=10, max_tokens=60), echo_token)[-1]
    one = request("a", prompt=10, max_tokens=100, stop_token_ids=frozenset({stop}))
    bench = guessing_bench()
    bench.add(one)
    bench.run()
    assert [*bench.sink.ids("a"), stop] == answer_alone(one, echo_token)
    assert bench.samplers["a"].drawn == answer_alone(one, echo_token)
    assert bench.sink.finished["a"].reason is FinishReason.STOP


def test_a_step_with_prompts_carries_no_guesses():
    bench = guessing_bench()
    bench.add(request("a", prompt=10, max_tokens=100))
    while bench.scheduler.counts.drafts < 3:
        bench.step()
    bench.add(request("b", prompt=40, max_tokens=1))
    while "b" not in bench.sink.finished:
        bench.step(row_budget=9)
        assert bench.model.steps[-1][0] == 1


def test_a_request_may_refuse_guesses():
    bench = guessing_bench()
    bench.add(request("a", prompt=10, max_tokens=60, speculate=False))
    bench.run()
    assert bench.scheduler.counts.drafts == 0
    assert len(bench.model.steps) == 60


def test_dear_rows_are_not_spent_on_guesses():
    class DearRows:
        def decode_ms(self, num_rows):
            return float(num_rows)

    bench = guessing_bench(costs=DearRows())
    bench.add(request("a", prompt=10, max_tokens=60))
    bench.run()
    assert bench.scheduler.counts.drafts == 0


def test_log_probabilities_belong_to_their_tokens():
    one = request("a", prompt=10, max_tokens=60, sampling=SamplingParams(top_logprobs=2))
    bench = guessing_bench()
    bench.add(one)
    bench.run()
    assert bench.scheduler.counts.accepted_tokens > 10
    assert all(event.top[0][0] == event.token_id for event in bench.sink.tokens["a"])
    assert bench.sink.ids("a") == answer_alone(one, echo_token)


def test_only_confirmed_tokens_are_published():
    bench = guessing_bench(cache=True)
    one = request("a", prompt=10, max_tokens=80)
    bench.add(one)
    bench.run()
    turn = Request("b", [*one.prompt_ids, *bench.sink.ids("a"), 5], 20)
    bench.add(turn)
    bench.run()
    assert bench.sink.finished["b"].cached_tokens == 88
    assert bench.sink.ids("b") == answer_alone(turn, echo_token)
