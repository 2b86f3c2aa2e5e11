"""The native sampler against a NumPy model of the same rules."""

from __future__ import annotations

import numpy as np
import pytest

from runtime._native import Sampler

OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
N_DRAWS = 4000


def random_logits(n: int, seed: int, spread: float = 2.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(n) * spread).astype(np.float32)


def expected_distribution(logits, *, temperature, top_k, top_p, min_p) -> np.ndarray:
    """Apply top-k, top-p, min-p and temperature in llama.cpp's order; return probabilities by token."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    values = logits.astype(np.float64)
    if top_k > 0:
        order = order[:top_k]
    if top_p < 1:
        p = np.exp(values[order] - values[order].max())
        order = order[: int(np.searchsorted(np.cumsum(p) / p.sum(), top_p)) + 1]
    if min_p > 0:
        order = [i for i in order if values[i] >= values[order].max() + np.log(min_p)]
    out = np.zeros(len(logits))
    out[order] = np.exp((values[order] - values[order].max()) / temperature)
    return out / out.sum()


def draws(logits, n: int = N_DRAWS, **settings) -> np.ndarray:
    """Return how often each token is drawn, over n seeds."""
    tokens = [Sampler(seed=seed, **settings).sample(logits) for seed in range(n)]
    return np.bincount(tokens, minlength=len(logits)) / n


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"top_k": 5},
        {"top_k": 1},
        {"top_k": 1000},
        {"top_p": 0.7},
        {"top_p": 0.01},
        {"min_p": 0.1},
        {"min_p": 1.0},
        {"top_k": 20, "top_p": 0.9, "min_p": 0.05, "temperature": 0.8},
        {"top_k": 3, "top_p": 0.999, "temperature": 2.0},
    ],
)
@pytest.mark.parametrize("n_vocab", [7, 300])
def test_distribution(changes, n_vocab):
    settings = OFF | changes
    logits = random_logits(n_vocab, seed=n_vocab)
    found, expected = draws(logits, **settings), expected_distribution(logits, **settings)
    assert not found[expected == 0].any()  # a token that the rules exclude is never drawn
    # Five standard deviations of a binomial share, for every token.
    limit = 5 * np.sqrt(expected * (1 - expected) / N_DRAWS) + 1e-9
    assert (np.abs(found - expected) <= limit + 5 / N_DRAWS).all()


def test_ties_go_to_the_lowest_id():
    logits = np.array([1, 3, 0, 3, 3], np.float32)
    assert Sampler(temperature=0).sample(logits) == 1
    found = draws(logits, 500, **(OFF | {"top_k": 2}))
    assert set(np.flatnonzero(found)) == {1, 3}
    assert set(np.flatnonzero(draws(logits, 500, **(OFF | {"top_p": 0.5})))) == {1, 3}


def test_flat_logits_and_large_vocabulary():
    logits = np.zeros(100_000, np.float32)
    for settings in [{"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.5}, {}]:
        tokens = {Sampler(seed=seed, **(OFF | settings)).sample(logits) for seed in range(20)}
        assert len(tokens) > 10


def test_same_seed_same_draws_and_the_index_counts():
    logits = random_logits(500, seed=1)
    first, second, other = (Sampler(seed=seed, **OFF) for seed in (3, 3, 4))
    sequence = [first.sample(logits) for _ in range(50)]
    assert [second.sample(logits) for _ in range(50)] == sequence
    assert [other.sample(logits) for _ in range(50)] != sequence
    assert len(set(sequence)) > 10
    assert first.n_drawn == 50


def test_greedy_takes_the_best_after_bias_and_penalties():
    logits = np.array([1.0, 2.0, 3.0, -1.0], np.float32)
    assert Sampler(temperature=0).sample(logits) == 2
    assert Sampler(temperature=0, logit_bias=[(0, 2.5)]).sample(logits) == 0
    assert Sampler(temperature=0, logit_bias=[(2, -100.0), (99, 5.0), (-1, 5.0)]).sample(logits) == 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # Tokens 2, 2, 1 were seen.  Logits 1, 2, 3, -1.
        ({"repeat_penalty": 4.0}, [1.0, 0.5, 0.75, -1.0]),
        ({"presence_penalty": 1.5}, [1.0, 0.5, 1.5, -1.0]),
        ({"frequency_penalty": 1.25}, [1.0, 0.75, 0.5, -1.0]),
        (
            {"repeat_penalty": 2.0, "frequency_penalty": 0.5, "presence_penalty": 0.25},
            [1.0, 0.25, 0.25, -1.0],
        ),
        ({"frequency_penalty": 1.25, "repeat_last_n": 2}, [1.0, 0.75, 1.75, -1.0]),
        ({"frequency_penalty": 1.25, "repeat_last_n": 0}, [1.0, 2.0, 3.0, -1.0]),
        ({"frequency_penalty": 1.25, "repeat_last_n": -1}, [1.0, 0.75, 0.5, -1.0]),
    ],
)
def test_penalties(settings, expected):
    """The values after the penalties show in the distribution."""
    logits = np.array([1.0, 2.0, 3.0, -1.0], np.float32)
    tokens = []
    for seed in range(N_DRAWS):
        sampler = Sampler(seed=seed, **(OFF | settings))
        sampler.accept([2, 2, 1])
        tokens.append(sampler.sample(logits))
    p = np.exp(expected) / np.exp(expected).sum()
    found = np.bincount(tokens, minlength=4) / N_DRAWS
    assert (np.abs(found - p) < 5 * np.sqrt(p * (1 - p) / N_DRAWS)).all()


def test_a_penalty_on_a_negative_logit_multiplies():
    logits = np.array([-1.0, -1.5], np.float32)
    sampler = Sampler(temperature=0, repeat_penalty=2.0)
    sampler.accept([0])
    assert sampler.sample(logits) == 1


def test_drawn_tokens_join_the_window():
    logits = np.array([5.0, 4.0, 3.0, 2.0], np.float32)
    sampler = Sampler(temperature=0, presence_penalty=100.0)
    assert [sampler.sample(logits) for _ in range(5)] == [0, 1, 2, 3, 0]


def test_the_window_forgets():
    logits = np.array([5.0, 4.0, 3.0, 2.0], np.float32)
    sampler = Sampler(temperature=0, presence_penalty=100.0, repeat_last_n=1)
    assert [sampler.sample(logits) for _ in range(5)] == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_logits_draw_nothing(bad):
    logits = random_logits(100, seed=1)
    logits[57] = bad
    sampler = Sampler(**OFF)
    assert sampler.sample(logits) == -1
    assert sampler.n_drawn == 0


def test_extreme_values_stay_finite():
    logits = np.array([3e38, -3e38, 0.0], np.float32)
    for settings in [
        {"temperature": 1e-30},
        {"temperature": 100.0},
        {"logit_bias": [(0, 1e6), (1, -1e6)]},
        {"top_p": 1e-6, "min_p": 1.0},
    ]:
        assert Sampler(**(OFF | settings)).sample(logits) == 0
    for token in (-5, 3, 2**31 - 1, -(2**31)):  # ids outside the vocabulary are ignored
        sampler = Sampler(temperature=0, repeat_penalty=2.0)
        sampler.accept([token])
        assert sampler.sample(logits) == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_p": float("nan")},
        {"min_p": -0.1},
        {"min_p": 2.0},
        {"repeat_penalty": 0.0},
        {"repeat_penalty": float("nan")},
        {"repeat_last_n": -2},
        {"repeat_last_n": 1 << 20},
        {"presence_penalty": float("inf")},
        {"frequency_penalty": float("nan")},
        {"logit_bias": [(0, float("nan"))]},
        {"logit_bias": [(0, float("-inf"))]},
        {"top_logprobs": 21},
        {"top_logprobs": -2},
    ],
)
def test_settings_out_of_range_are_named(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Sampler(**settings)


def words_of(allowed: list[int], n_vocab: int) -> np.ndarray:
    """A mask that allows these tokens."""
    bits = np.zeros(-(-n_vocab // 32) * 32, np.uint8)
    bits[allowed] = 1
    return np.packbits(bits, bitorder="little").view(np.uint32)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0},
        {"top_k": 1},
        {"top_k": 40},
        {"top_k": 69},
        {"top_p": 0.5},
        {"min_p": 0.9},
        {"top_k": 20, "top_p": 0.99},
        {"logit_bias": [(i, 1e6) for i in range(0, 70, 2)]},
        {"presence_penalty": -100.0, "frequency_penalty": -100.0},
        {"temperature": 1e-30},
        {"temperature": 100.0},
    ],
)
def test_only_allowed_tokens_are_drawn(settings):
    logits = random_logits(70, seed=3)
    logits[::2] += 50  # the best ones are not allowed
    allowed = [1, 3, 33, 69]
    tokens = set()
    for seed in range(200):
        sampler = Sampler(seed=seed, **(OFF | settings))
        sampler.accept([0, 2, 4, 68])
        sampler.set_mask(words_of(allowed, 70))
        tokens.add(sampler.sample(logits))
    assert tokens <= set(allowed)


def test_a_mask_keeps_the_distribution_of_what_it_allows():
    logits = random_logits(40, seed=4)
    allowed = list(range(5, 37, 3))
    found = np.zeros(40)
    for seed in range(N_DRAWS):
        sampler = Sampler(seed=seed, **OFF)
        sampler.set_mask(words_of(allowed, 40))
        found[sampler.sample(logits)] += 1 / N_DRAWS
    p = np.zeros(40)
    p[allowed] = np.exp(logits[allowed])
    p /= p.sum()
    assert (np.abs(found - p) <= 5 * np.sqrt(p * (1 - p) / N_DRAWS) + 1e-9).all()


def test_a_mask_that_allows_nothing_draws_nothing():
    logits = random_logits(70, seed=5)
    sampler = Sampler(**OFF)
    nothing = words_of([], 70)
    nothing[2] = 0xFFFFFFC0  # bits behind the vocabulary allow nothing
    sampler.set_mask(nothing)
    assert sampler.sample(logits) == -1
    assert sampler.n_drawn == 0
    sampler.set_mask(words_of([69], 70))
    assert [sampler.sample(logits) for _ in range(3)] == [69] * 3  # it stays until it is replaced
    sampler.set_mask(None)
    assert sampler.sample(logits) >= 0


def test_masks_for_several_draws_run_out():
    logits = random_logits(70, seed=6)
    sampler = Sampler(**OFF)
    sampler.set_mask(np.stack([words_of([t], 70) for t in (5, 66, 9)]))
    assert [sampler.sample(logits) for _ in range(5)] == [5, 66, 9, -1, -1]


def test_the_array_is_copied_and_checked():
    logits = random_logits(70, seed=7)
    sampler, words = Sampler(**OFF), words_of([8], 70)
    sampler.set_mask(words)
    words[:] = 0
    assert sampler.sample(logits) == 8
    with pytest.raises(ValueError, match="fit"):
        sampler.sample(random_logits(64, seed=7))
    for bad in (np.zeros(0, np.uint32), np.zeros((1, 1, 3), np.uint32), np.zeros((1 << 20) + 1, np.uint32)):
        with pytest.raises(ValueError, match="mask"):
            sampler.set_mask(bad)
    for bad in (np.zeros(3, np.int64), np.zeros(6, np.uint32)[::2], [1, 2, 3]):
        with pytest.raises(TypeError):
            sampler.set_mask(bad)
    assert sampler.sample(logits) == 8  # a refused mask changes nothing
