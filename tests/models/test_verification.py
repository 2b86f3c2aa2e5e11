"""Rows of one sampler are verified in order, and give what one row a step gives; masks in a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from runtime._native import Sampler
from runtime.step_plan import Outcome
from tests.models.support import N_VOCAB, Runner, Tiny, write_tiny

PROMPT = [3, 1, 4, 1, 5]
SETTINGS = {
    "greedy": {"temperature": 0},
    "drawn": {"temperature": 1.5, "top_k": 0, "min_p": 0.0, "seed": 5},
    "penalties": {"temperature": 1.0, "seed": 9, "repeat_penalty": 1.7, "presence_penalty": 0.8},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("m") / "m.gguf", Tiny())


def make_sampler(name: str) -> Sampler:
    sampler = Sampler(top_logprobs=N_VOCAB, **SETTINGS[name])
    sampler.accept(PROMPT)
    return sampler


def one_by_one(runner: Runner, sampler: Sampler, n: int) -> tuple[list[int], list[bytes]]:
    """Tokens and distributions of n steps of one row each, behind the prompt."""
    tokens, logprobs = [], []
    result = runner.step([(0, 0, PROMPT)], [len(PROMPT) - 1], [sampler])
    for i in range(n):
        tokens.append(int(result.token_ids[0]))
        logprobs.append(result.top_logprobs[0].tobytes())
        result = runner.step([(0, len(PROMPT) + i, tokens[-1:])], [0], [sampler])
    return tokens, logprobs


def verify(runner: Runner, sampler: Sampler, draft: Sequence[int]):
    """The prompt's last row and the draft in one step."""
    runner.step([(0, 0, PROMPT[:-1])], [])
    n = 1 + len(draft)
    return runner.step([(0, len(PROMPT) - 1, [PROMPT[-1], *draft])], range(n), [sampler] * n)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_right_draft_gives_all_its_tokens_and_one_more(model, name):
    expected, logprobs = one_by_one(Runner(model), make_sampler(name), 6)
    sampler = make_sampler(name)
    result = verify(Runner(model, threads=2), sampler, expected[:5])
    assert result.token_ids == expected
    assert [row.tobytes() for row in result.top_logprobs] == logprobs
    assert (result.outcomes == Outcome.FINE).all()
    assert sampler.n_drawn == 6


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("wrong_at", [0, 2, 4])
def test_a_wrong_token_ends_the_verification(model, name, wrong_at):
    expected, logprobs = one_by_one(Runner(model), make_sampler(name), 9)
    draft = expected[:5]
    draft[wrong_at] = (draft[wrong_at] + 1) % N_VOCAB
    runner, sampler = Runner(model), make_sampler(name)
    result = verify(runner, sampler, draft)
    accepted = wrong_at + 1
    assert result.token_ids == expected[:accepted] + [-1] * (6 - accepted)
    assert sampler.n_drawn == accepted
    assert (result.outcomes == Outcome.FINE).all()
    assert np.isnan(result.logprobs[accepted:]).all()
    # What follows, and the penalties' window, are as if the wrong rows had never been there.
    for i in range(accepted, 9):
        result = runner.step([(0, len(PROMPT) + i - 1, [expected[i - 1]])], [0], [sampler])
        assert result.token_ids[0] == expected[i]
        assert result.top_logprobs[0].tobytes() == logprobs[i]


def test_longer_than_a_tile_of_logits_and_beside_others(tmp_path):
    model = write_tiny(tmp_path / "m.gguf", Tiny())
    expected, _ = one_by_one(Runner(model), make_sampler("drawn"), 70)
    runner = Runner(model, threads=3, max_rows=96)
    sampler, other = make_sampler("drawn"), make_sampler("drawn")
    runner.step([(0, 0, PROMPT[:-1])], [])
    draft = [PROMPT[-1], *expected[:69]]
    parts = [(1, 0, PROMPT), (0, len(PROMPT) - 1, draft)]
    rows = [len(PROMPT) - 1, *range(len(PROMPT), len(PROMPT) + 70)]
    result = runner.step(parts, rows, [other] + [sampler] * 70)
    assert result.token_ids == [expected[0], *expected]
    assert (other.n_drawn, sampler.n_drawn) == (1, 70)


def test_a_mask_without_a_token_ends_the_verification(model):
    sampler = make_sampler("greedy")
    sampler.set_mask(np.array([[0xFFFFF], [0]], np.uint32))
    expected, _ = one_by_one(Runner(model), make_sampler("greedy"), 3)
    result = verify(Runner(model), sampler, expected)
    assert result.token_ids == [expected[0], -1, -1, -1]
    assert result.outcomes.tolist() == [Outcome.FINE, Outcome.NO_TOKEN, Outcome.FINE, Outcome.FINE]
    assert sampler.n_drawn == 1


def test_a_mask_for_each_row_of_a_draft(model):
    rng = np.random.default_rng(3)
    masks = rng.integers(1, 1 << N_VOCAB, (5, 1)).astype(np.uint32)
    alone, sampler, runner = make_sampler("drawn"), make_sampler("drawn"), Runner(model)
    expected: list[int] = []
    parts = [(0, 0, PROMPT)]
    for i, mask in enumerate(masks):
        alone.set_mask(mask)
        result = runner.step(parts, [len(parts[0][2]) - 1], [alone])
        expected.append(int(result.token_ids[0]))
        assert int(mask[0]) >> expected[-1] & 1
        parts = [(0, len(PROMPT) + i, expected[-1:])]
    sampler.set_mask(masks)
    result = verify(Runner(model), sampler, expected[:4])
    assert result.token_ids == expected
