"""Perplexity: the method on a model that can be calculated by hand, and llama-perplexity's own results."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quant.perplexity import NonFiniteLogitsError, Score, measure
from runtime.errors import RequestError
from runtime.step_plan import StepPlan, StepResult

BOS = 1


class Letters:
    """One token a letter, ids from 2; BOS in front."""

    bos_id = BOS

    def __init__(self, *, add_bos: bool = True) -> None:
        self.add_bos = add_bos

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        return ([BOS] if add_special and self.add_bos else []) + [2 + ord(c) - ord("a") for c in text]


class Counting:
    """Gives token t after a context of n tokens the log-probability -(t + n / 100), and notes every step."""

    page_tokens = 4

    def __init__(self, *, add_bos: bool = True, finite: bool = True) -> None:
        self.tokenizer = Letters(add_bos=add_bos)
        self.finite = finite
        self.steps: list[StepPlan] = []

    def step(self, plan: StepPlan) -> StepResult:
        self.steps.append(plan)
        n_out = plan.n_out
        assert len(plan.samplers) == len(plan.targets) == n_out
        assert (
            plan.page_starts[-1] == len(plan.pages) == math.ceil((plan.positions[-1] + 1) / self.page_tokens)
        )
        positions = plan.positions[plan.out_rows]
        logprobs = -(plan.targets + (positions + 1) / 100)
        none = np.full((n_out, 20), -1)
        return StepResult(
            token_ids=np.full(n_out, -1, np.int32),
            logprobs=np.zeros(n_out, np.float32),
            target_logprobs=logprobs.astype(np.float32),
            top_ids=none.astype(np.int32),
            top_logprobs=none.astype(np.float32),
            finite=np.full(n_out, self.finite, np.uint8),
        )


TEXT = "abcdefghijklmnopqrstuvwxyz"


def test_second_half_of_each_chunk_is_scored():
    model = Counting()
    result = measure(model, TEXT, ctx=8, step_rows=100)
    tokens = [BOS, *range(2, 28)]  # 27 tokens: three chunks of 8, three left over
    expected = [tokens[c * 8 + p + 1] + (p + 1) / 100 for c in range(3) for p in (4, 5, 6)]
    assert result.chunks == 3
    assert result.perplexity == pytest.approx(math.exp(np.mean(expected)), rel=1e-6)
    spread = math.sqrt((np.mean(np.square(expected)) - np.mean(expected) ** 2) / (len(expected) - 1))
    assert result.stderr == pytest.approx(spread * result.perplexity, rel=1e-5)


def test_first_token_of_each_chunk_becomes_bos():
    model = Counting()
    measure(model, TEXT, ctx=8)
    assert [plan.tokens[0] for plan in model.steps] == [BOS] * 3
    plain = Counting(add_bos=False)
    measure(plain, TEXT, ctx=8)
    assert [plan.tokens[0] for plan in plain.steps] == [2, 10, 18]
    assert all(plan.tokens[1] == model.steps[i].tokens[1] + 1 for i, plan in enumerate(plain.steps))


@pytest.mark.parametrize("step_rows", [1, 2, 3, 5, 7, 8])
def test_steps_do_not_change_the_result(step_rows):
    assert measure(Counting(), TEXT, ctx=8, step_rows=step_rows) == measure(Counting(), TEXT, ctx=8)


def test_chunks_limit_and_progress():
    seen = []
    result = measure(
        Counting(),
        TEXT,
        ctx=8,
        chunks=2,
        on_progress=lambda so_far, total: seen.append((so_far.chunks, total)),
    )
    assert result.chunks == 2
    assert seen == [(1, 2), (2, 2)]
    assert measure(Counting(), TEXT, ctx=8, chunks=50).chunks == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [({"ctx": 14}, "27 tokens; at least 28"), ({"ctx": 7}, "ctx"), ({"chunks": 0}, "chunks")],
)
def test_bad_requests(options, said):
    with pytest.raises(RequestError, match=said):
        measure(Counting(), TEXT, **{"ctx": 8, **options})


def test_non_finite_logits_end_the_measurement():
    with pytest.raises(NonFiniteLogitsError):
        measure(Counting(finite=False), TEXT, ctx=8)


def test_hopeless_model_is_infinite():
    score = Score()
    score.add_chunk(np.full(4, -1e6))
    assert score.result().perplexity == math.inf
