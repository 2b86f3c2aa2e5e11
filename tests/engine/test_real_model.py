"""The engine over real models: the bundled demo model, and llama.cpp's reference where it is at hand."""

import json
import time
from dataclasses import replace

import pytest

from runtime.drafts import Drafts
from runtime.engine import Engine
from runtime.errors import RequestError
from runtime.memory import RuntimeSettings
from runtime.model import load_model
from runtime.request import FinishReason, Request
from runtime.sampling import SamplingParams
from tests.engine.bench import CheapRows
from tests.engine.fakes import Collector

SETTINGS = RuntimeSettings(sessions=4, context_tokens=160, threads=2, max_step_rows=64)
PROMPTS = ("Once upon a time", "What is 12 plus 7?", "The capital of France is", "A fox and a hen met.")


@pytest.fixture(scope="module")
def model(demo_model):
    model = load_model(demo_model, SETTINGS)
    yield model
    model.close()


def requests_for(model):
    """Requests of many kinds: lengths, seeds, penalties, log-probabilities."""
    kinds = [
        SamplingParams(temperature=0.0),
        SamplingParams(seed=1, top_logprobs=3),
        SamplingParams(seed=2, temperature=1.2, top_k=0, top_p=1.0, min_p=0.0, top_logprobs=0),
        SamplingParams(seed=3, repeat_penalty=1.3, frequency_penalty=0.2, presence_penalty=0.1),
    ]
    requests = []
    for index in range(10):
        text = " ".join(PROMPTS[: 1 + index % 4]) * (1 + index % 3)
        ids = model.tokenizer.encode(text)[:100]
        requests.append(Request(f"r{index}", ids, 5 + 3 * index, replace(kinds[index % 4], seed=index)))
    return requests


def answers(model, requests, *, one_by_one=False, cached_tokens=None, guess=False):
    """(token, log-probability, alternatives) of each request; `cached_tokens` gets how many each found computed."""
    sink = Collector()
    engine = Engine(model, sink=sink, max_waiting=100)
    engine._scheduler._drafts = Drafts(CheapRows()) if guess else None
    engine.start()
    try:
        for request in requests:
            engine.submit(request)
            if one_by_one:
                sink.wait(request.id, timeout_s=60)
        ends = sink.wait(*(request.id for request in requests), timeout_s=120)
    finally:
        engine.stop(0)
    assert all(end.error is None for end in ends)
    assert (engine.stats().accepted_tokens_total > 10) == guess
    if cached_tokens is not None:
        cached_tokens.update({end.request_id: end.cached_tokens for end in ends})
    return {
        request.id: [(event.token_id, event.logprob, event.top) for event in sink.tokens[request.id]]
        for request in requests
    }


def test_batched_equals_alone_bit_for_bit(model):
    requests = requests_for(model)
    assert answers(model, requests) == answers(model, requests, one_by_one=True)


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_a_warm_prefix_cache_changes_no_bit(demo_model, kv_type):
    settings = replace(SETTINGS, kv_type=kv_type)
    warm, cold = (load_model(demo_model, replace(settings, prefix_cache=on)) for on in (True, False))
    try:
        requests = requests_for(warm)
        # Twice the same, then the next turn of a conversation, and a prompt that leaves in the middle of a page.
        again = [replace(one, id=f"{one.id} again") for one in requests]
        first = answers(cold, requests, one_by_one=True)
        turns = [
            replace(
                one,
                id=f"{one.id} turn",
                prompt_ids=[*one.prompt_ids, *(t for t, _, _ in first[one.id]), 5, 6],
            )
            for one in requests
        ]
        cuts = [replace(one, id=f"{one.id} cut", prompt_ids=[*one.prompt_ids[:75], 9, 9]) for one in requests]
        batch = [
            one for one in (*requests, *again, *turns, *cuts) if len(one.prompt_ids) + one.max_tokens <= 160
        ]
        found: dict[str, int] = {}
        assert answers(warm, batch, one_by_one=True, cached_tokens=found) == answers(cold, batch)
        for one in again:
            assert found[one.id] == (len(one.prompt_ids) - 1) // 32 * 32
        assert sum(found.values()) > sum(found[one.id] for one in again) > 0
        assert answers(warm, batch) == answers(cold, batch)  # all at once: prompts take pages over in flight
    finally:
        warm.close()
        cold.close()


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_guesses_change_no_bit(demo_model, kv_type):
    model = load_model(demo_model, replace(SETTINGS, kv_type=kv_type))
    try:
        requests = requests_for(model)
        # And some that repeat themselves, greedy and sampled: a list that goes on, with every kind of sampling.
        text = "red green blue red green blue red green blue red green"
        requests += [
            replace(one, id=f"{one.id} list", prompt_ids=model.tokenizer.encode(text)[:100], max_tokens=60)
            for one in requests[:4]
        ]
        alone = answers(model, requests, one_by_one=True)
        assert answers(model, requests, one_by_one=True, guess=True) == alone
        assert answers(model, requests, guess=True) == alone
    finally:
        model.close()


def test_the_cut_of_a_prompt_into_steps_changes_nothing(model, demo_model):
    requests = requests_for(model)[:5]
    small = load_model(demo_model, replace(SETTINGS, max_step_rows=7, threads=1))
    try:
        assert answers(small, requests) == answers(model, requests)
    finally:
        small.close()


def test_a_running_answer_goes_on_while_a_long_prompt_is_computed(model):
    sink = Collector()
    engine = Engine(model, sink=sink, step_budget_ms=1)
    engine.start()
    try:
        engine.submit(Request("answer", [1, 2, 3], 120, speculate=False))
        sink.wait_tokens("answer", 3)
        engine.submit(Request("prompt", [5] * 150, 4))
        sink.wait("answer", "prompt", timeout_s=60)
    finally:
        engine.stop(0)
    # With 1 ms for a step, the prompt's 150 rows came in chunks of 16 beside the answer's rows.
    assert engine.stats().steps_total >= 119


def test_cancel_and_deadline_end_real_requests(model):
    sink = Collector()
    engine = Engine(model, sink=sink)
    engine.start()
    try:
        engine.submit(Request("cancelled", [7] * 100, 50))
        engine.submit(Request("late", [8] * 10, 140, deadline=time.monotonic() + 0.05))
        engine.submit(Request("whole", [9] * 10, 5))
        engine.cancel("cancelled")
        ends = sink.wait("cancelled", "late", "whole", timeout_s=60)
        assert ends[0].reason is FinishReason.CANCELLED
        assert ends[1].reason in {
            FinishReason.DEADLINE,
            FinishReason.LENGTH,
        }  # a fast machine may be done by then
        assert ends[2].reason is FinishReason.LENGTH
        assert engine.stats().pages_reserved == 0
    finally:
        engine.stop(5)


def test_sampling_values_that_the_native_core_refuses_name_the_field(model):
    engine = Engine(model, sink=Collector())
    with pytest.raises(RequestError) as caught:
        engine.submit(Request("a", [1], 1, SamplingParams(temperature=float("nan"))))
    assert caught.value.field == "options.sampling"
    engine.stop(0)


@pytest.mark.parametrize(
    "changes", [{}, {"max_step_rows": 512, "threads": 8}, {"sessions": 16, "kv_type": "q8_0"}]
)
def test_the_plan_is_an_upper_bound_of_the_native_scratch(demo_model, changes):
    model = load_model(demo_model, replace(SETTINGS, **changes))
    try:
        assert model.scratch_bytes <= model.plan.scratch_bytes <= 2 * model.scratch_bytes + (1 << 20)
    finally:
        model.close()


def test_greedy_continuations_of_llama_cpp_in_one_batch(shared_dir):
    cases = json.loads((shared_dir / "reference" / "stories260K.json").read_text())["cases"]
    settings = RuntimeSettings(sessions=4, threads=2, max_step_rows=48)
    model = load_model(shared_dir / "models" / "stories260K.gguf", settings)
    greedy = SamplingParams(temperature=0.0, top_logprobs=5)
    requests = [
        Request(f"case{index}", case["prompt_tokens"], len(case["tokens"]), greedy)
        for index, case in enumerate(cases)
    ]
    try:
        found = answers(model, requests)
    finally:
        model.close()
    for request, case in zip(requests, cases, strict=True):
        assert [token for token, _, _ in found[request.id]] == case["tokens"]
