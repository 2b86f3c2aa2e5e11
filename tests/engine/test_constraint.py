"""Structured output in the engine: masks, forced tokens as one batch, the end, and failures that stay with their request."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from runtime.constraint import Advance, ConstraintError
from runtime.engine import Engine
from runtime.errors import RequestError
from runtime.request import ERROR_CONSTRAINT_FAILED, FinishReason, Request
from runtime.sampling import SamplingParams
from tests.engine.fakes import N_VOCAB, Collector, FakeModel, FakeSampler, answer_alone


@dataclass
class Script:
    """A constraint that plays a list of steps: what may be sampled, and what that forces."""

    steps: list[tuple[set[int], tuple[int, ...]]]
    fail_at: int = -1
    accepted: list[int] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)  # still to be accepted one by one

    def mask(self):
        if self.fail_at == len(self.accepted):
            raise ConstraintError("too complex")
        words = np.zeros(-(-N_VOCAB // 32), np.uint32)
        for token in self.forced[:1] or self.steps[0][0]:
            words[token // 32] |= np.uint32(1 << (token % 32))
        return words

    def accept(self, token_id, *, want_forced):
        self.accepted.append(token_id)
        if self.forced:
            assert self.forced.pop(0) == token_id
        else:
            allowed, self.forced = self.steps[0][0], list(self.steps.pop(0)[1])
            assert token_id in allowed
        if want_forced:
            forced, self.forced = tuple(self.forced), []
            return Advance(forced, done=not self.steps)
        return Advance(done=not self.steps and not self.forced)


def steps():
    return [({3, 5}, (7, 8, 9)), ({11, 12, 13}, ()), ({20}, (21, 22))]


@pytest.fixture
def run():
    engines = []

    def start(*requests, model=None):
        model, sink = model or FakeModel(), Collector()
        engine = Engine(model, sink=sink, sampler_factory=FakeSampler)
        engines.append(engine)
        for request in requests:
            engine.submit(request)
        engine.start()
        sink.wait(*[request.id for request in requests])
        return model, sink

    yield start
    for engine in engines:
        engine.stop(0)


def request(id_="a", constraint=None, max_tokens=20, **changes):
    return Request(id=id_, prompt_ids=[1, 2, 3], max_tokens=max_tokens, constraint=constraint, **changes)


def test_forced_tokens_need_no_step_of_their_own(run):
    script = Script(steps())
    model, sink = run(request(constraint=script))
    ids, finish = sink.ids("a"), sink.finished["a"]
    assert ids[0] in {3, 5}
    assert ids[1:4] == [7, 8, 9]
    assert ids[4] in {11, 12, 13}
    assert ids[5:] == [20, 21, 22]
    assert (finish.reason, finish.completion_tokens) == (FinishReason.STOP, 8)
    assert model.steps == [[3], [4], [1]]  # the forced ones went in with the sampled one before them


def test_log_probabilities_are_never_invented(run):
    forced = run(request(constraint=Script(steps())))[1].ids("a")
    model, sink = run(request(constraint=Script(steps()), sampling=SamplingParams(top_logprobs=1)))
    assert sink.ids("a") == forced
    assert all(event.logprob is not None for event in sink.tokens["a"])
    assert len(model.steps) == 8


@pytest.mark.parametrize(
    ("limit", "reason"),
    [(2, FinishReason.LENGTH), (4, FinishReason.LENGTH), (7, FinishReason.LENGTH), (8, FinishReason.STOP)],
)
def test_max_tokens_cuts_forced_tokens_too(run, limit, reason):
    _, sink = run(request(constraint=Script(steps()), max_tokens=limit))
    assert len(sink.ids("a")) == limit == sink.finished["a"].completion_tokens
    assert sink.finished["a"].reason is reason


@pytest.mark.parametrize("fail_at", [1, 2])
def test_a_failing_constraint_ends_its_own_request_only(run, fail_at):
    model = FakeModel()
    other = request("b")
    _, sink = run(request(constraint=Script(steps(), fail_at=fail_at)), other, model=model)
    assert (sink.finished["a"].reason, sink.finished["a"].error) == (
        FinishReason.FAILED,
        ERROR_CONSTRAINT_FAILED,
    )
    assert sink.ids("b") == answer_alone(other)


def test_a_constraint_that_cannot_begin_is_refused():
    engine = Engine(FakeModel(), sink=Collector(), sampler_factory=FakeSampler)
    with pytest.raises(RequestError, match="too complex"):
        engine.submit(request(constraint=Script(steps(), fail_at=0)))
    engine.stop(0)


def test_penalties_see_forced_tokens(run):
    samplers = []

    def factory(params):
        samplers.append(FakeSampler(params))
        return samplers[-1]

    sink = Collector()
    engine = Engine(FakeModel(), sink=sink, sampler_factory=factory)
    engine.submit(request(constraint=Script(steps()), sampling=SamplingParams(presence_penalty=1.0)))
    engine.start()
    sink.wait("a")
    engine.stop(0)
    assert samplers[0].accepted == [1, 2, 3, 7, 8, 9, 21, 22]
