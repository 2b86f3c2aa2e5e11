"""Several answers to one request over gRPC: order, seeds, the best of them, and no session left behind."""

import asyncio
import math

import pytest

from quantd.v1 import generate_pb2 as pb
from quantd.v1 import generate_service_pb2 as rpc
from tests.daemon.test_generate import collect, refusal, until


def by_choice(events):
    texts = {}
    for event in events:
        if event.HasField("delta"):
            texts[event.delta.choice] = texts.get(event.delta.choice, "") + event.delta.text
    return texts


def ask(world, **options):
    return world.generate.Generate(pb.GenerateRequest(text="hi", options=pb.GenerationOptions(**options)))


async def test_each_choice_has_its_own_seed_and_end(world):
    sampling = pb.SamplingParams(seed=2**64 - 1)
    events = await collect(ask(world, num_choices=3, sampling=sampling))
    assert by_choice(events) == {0: "hello", 1: "hello", 2: "hello"}
    ends = {e.delta.choice: e.delta.finish_reason for e in events if e.delta.finish_reason}
    assert ends == dict.fromkeys(range(3), pb.FINISH_REASON_STOP)
    assert sorted(r.sampling.seed for r in world.engine.requests) == [0, 1, 2**64 - 1]
    done = events[-1].done
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.seed) == (2, 18, 2**64 - 1)
    assert sum(event.HasField("done") for event in events) == 1


async def test_one_choice_ends_with_done_alone(world):
    events = await collect(ask(world))
    assert not any(event.delta.finish_reason for event in events if event.HasField("delta"))


async def test_the_best_are_given_whole_and_first(world):
    events = await collect(ask(world, num_choices=2, best_of=3))
    assert by_choice(events) == {0: "hello", 1: "hello"}
    assert all(request.sampling.top_logprobs == 0 for request in world.engine.requests)
    assert not any(event.delta.logprobs for event in events if event.HasField("delta"))
    assert events[-1].done.usage.completion_tokens == 18
    quality = {7: -2.0, 8: -0.5, 9: -1.0}  # by seed
    world.engine.logprob_of = lambda request: quality[request.sampling.seed]
    sampling = pb.SamplingParams(seed=7)
    events = await collect(ask(world, num_choices=2, best_of=3, top_logprobs=0, sampling=sampling))
    given = [(e.delta.choice, one.logprob) for e in events if e.HasField("delta") for one in e.delta.logprobs]
    assert given == [(0, -0.5)] * 5 + [(1, -1.0)] * 5


async def test_echo_stands_in_front_of_each(world):
    request = pb.GenerateRequest(text="hi", echo=True, options=pb.GenerationOptions(num_choices=2))
    assert by_choice(await collect(world.generate.Generate(request))) == {0: "hihello", 1: "hihello"}


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("options.num_choices", {"num_choices": 0}),
        ("options.num_choices", {"num_choices": 17}),
        ("options.best_of", {"best_of": 17}),
        ("options.best_of", {"num_choices": 3, "best_of": 2}),
    ],
)
async def test_bad_numbers(world, field, options):
    error = await refusal(ask(world, **options))
    assert (error.reason, error.field) == ("INVALID_ARGUMENT", field)


async def test_unary_has_room_for_one(world):
    request = pb.GenerateRequest(text="hi", options=pb.GenerationOptions(num_choices=2))
    error = await refusal(world.generate.GenerateUnary(rpc.GenerateUnaryRequest(request=request)))
    assert error.field == "options.num_choices"


async def test_a_cancelled_call_frees_every_session(world):
    world.engine.script = [*b"on and on "] * 1000
    call = ask(world, num_choices=4)
    assert await asyncio.wait_for(call.read(), 5)
    await until(lambda: len(world.engine.running) == 4)
    call.cancel()
    await until(lambda: not world.engine.running)
    assert world.host.num_requests == 0


async def test_a_failure_of_one_ends_all(world):
    world.engine.error = "non_finite_logits"
    error = await refusal(ask(world, num_choices=3))
    assert error.reason == "NON_FINITE_LOGITS"
    await until(lambda: not world.engine.running)


async def test_texts_can_be_biased(world):
    await collect(ask(world, sampling=pb.SamplingParams(logit_bias={104: 5}, text_bias={"hi": -3})))
    assert dict(world.engine.requests[-1].sampling.logit_bias) == {104: 5, 105: -3}
    error = await refusal(ask(world, sampling=pb.SamplingParams(text_bias={"": 1})))
    assert error.field == "options.sampling.logit_bias"
    error = await refusal(ask(world, sampling=pb.SamplingParams(text_bias={"a": 101})))
    assert error.field == "options.sampling.logit_bias"


async def test_log_probabilities_of_the_prompt_stand_in_front_of_each(world):
    request = pb.GenerateRequest(
        text="abc", echo=True, prompt_logprobs=2, options=pb.GenerationOptions(num_choices=2, max_tokens=2)
    )
    deltas = [
        event.delta for event in await collect(world.generate.Generate(request)) if event.HasField("delta")
    ]
    for choice in (0, 1):
        own = [delta for delta in deltas if delta.choice == choice]
        assert own[0].text == "abc"
        told = [one for delta in own for one in delta.prompt_logprobs]
        assert b"".join(one.token for one in told) == b"abc"
        assert math.isnan(told[0].logprob)
        assert [one.logprob for one in told[1:]] == [-0.25, -0.5]
        assert [len(one.top) for one in told] == [0, 2, 2]
        kinds = [bool(delta.prompt_logprobs) for delta in own]
        assert kinds[:3] == [False, True, True]
        assert not any(kinds[3:])


async def test_a_prompt_alone(world):
    options = pb.GenerationOptions(max_tokens=0)
    request = pb.GenerateRequest(text="abc", prompt_logprobs=0, options=options)
    answer = await world.generate.GenerateUnary(rpc.GenerateUnaryRequest(request=request))
    assert len(answer.answer.prompt_logprobs) == 3
    assert (answer.answer.text, answer.done.usage.completion_tokens) == ("", 0)
    assert answer.done.finish_reason == pb.FINISH_REASON_LENGTH
    echoed = pb.GenerateRequest(text="abc", echo=True, options=options)
    assert (await world.generate.GenerateUnary(rpc.GenerateUnaryRequest(request=echoed))).answer.text == "abc"
    for bad, field in (
        (pb.GenerateRequest(text="abc", options=options), "options.max_tokens"),
        (pb.GenerateRequest(text="abc", prompt_logprobs=21), "prompt_logprobs"),
        (pb.GenerateRequest(text="abc", prompt_logprobs=-1), "prompt_logprobs"),
    ):
        error = await refusal(world.generate.GenerateUnary(rpc.GenerateUnaryRequest(request=bad)))
        assert error.field == field


async def test_the_best_answers_keep_the_prompts_log_probabilities(world):
    options = pb.GenerationOptions(num_choices=1, best_of=3, max_tokens=2)
    request = pb.GenerateRequest(text="ab", prompt_logprobs=0, options=options)
    deltas = [
        event.delta for event in await collect(world.generate.Generate(request)) if event.HasField("delta")
    ]
    assert {delta.choice for delta in deltas} == {0}
    assert sum(len(delta.prompt_logprobs) for delta in deltas) == 2
