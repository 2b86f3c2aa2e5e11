import random

import numpy as np
import pytest

from runtime.pacing import StepCosts
from runtime.speculation import MAX_DRAFT, Copier, choose_drafts, copier_table_bytes


class Costs:
    """A step of n rows takes 1 + `row` * (n - 1)."""

    def __init__(self, row):
        self.row = row

    def decode_ms(self, num_rows):
        return 1.0 + self.row * (num_rows - 1)


def follow(tokens, num_known, limit=None):
    """A copier that was shown the first `num_known` tokens at once and the rest one by one."""
    array = np.zeros(limit or len(tokens) + 16, np.int32)
    array[: len(tokens)] = tokens
    copier = Copier(array, num_known)
    for _ in range(num_known, len(tokens)):
        copier.follow()
    return copier


def test_it_reads_on_where_the_last_tokens_stood_before():
    copier = follow([1, 2, 3, 4, 5, 6, 7, 9, 2, 3, 4], 11)
    assert copier.draft(3) == [5, 6, 7]


def test_the_last_occurrence_and_the_longest_ending_count():
    assert follow([1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3], 11).draft(1) == [8]
    # "3 4" stood last before 9, but "1 2 3 4" before 5.
    assert follow([1, 2, 3, 4, 5, 0, 3, 4, 9, 1, 2, 3, 4], 13).draft(1) == [5]


def test_a_text_that_repeats_itself_is_read_on_into_the_guesses():
    assert follow([7, 8, 7, 8, 7, 8], 6).draft(5) == [7, 8, 7, 8, 7]


def test_without_a_match_there_is_no_guess():
    copier = follow(list(range(50)), 50)
    assert copier.draft(7) == []
    assert copier.chances(7) == []
    assert follow([5], 1).draft(7) == []


def test_text_known_at_once_and_one_by_one_is_the_same():
    rng = random.Random(3)
    tokens = [rng.randrange(6) for _ in range(300)]
    whole, steps = follow(tokens, 300), follow(tokens, 1)
    assert whole.tables() == steps.tables()


def test_endings_with_the_same_hash_are_told_apart():
    rng = random.Random(4)
    tokens = [rng.randrange(100_000) for _ in range(3000)]  # far more endings than the small table has places
    array = np.zeros(3100, np.int32)
    array[:3000] = tokens
    copier = Copier(array, 1, table_bits=8)
    for _ in range(2999):
        copier.follow()
        assert not copier.draft(1)


def test_its_memory_is_bounded_whatever_the_context():
    copier = Copier(np.zeros(1_000_000, np.int32), 10)
    assert 4 * sum(map(len, copier.tables())) == copier_table_bytes(1_000_000) == 2 * 4 * 65536


def test_chances_follow_what_was_right():
    copied = follow([*range(40), *range(40)], 40)
    assert copied.chances(1)[0] > 0.85
    assert len(copied.chances(MAX_DRAFT)) == MAX_DRAFT
    rng = random.Random(5)
    noise = follow([rng.randrange(8) for _ in range(600)], 10)
    while not noise.chances(1):
        pytest.skip("no match at the end")
    assert noise.chances(1)[0] < 0.35


def test_drafts_are_longer_where_guesses_are_right_and_rows_cheap():
    copied = follow([*range(60), *range(50)], 60)
    assert choose_drafts([(copied, 7)], Costs(0.05), 16) == [7]
    assert 1 <= choose_drafts([(copied, 7)], Costs(0.5), 16)[0] <= 7
    assert choose_drafts([(copied, 7)], Costs(1.0), 16) == [0]
    assert choose_drafts([(copied, 3)], Costs(0.05), 16) == [3]
    assert choose_drafts([(copied, 0)], Costs(0.05), 16) == [0]


def test_a_step_that_others_wait_for_carries_fewer_guesses():
    copied = follow([*range(60), *range(50)], 60)
    alone = choose_drafts([(copied, 7)], Costs(0.2), 16)
    among = choose_drafts([(copied, 7), *[(None, 7)] * 7], Costs(0.2), 16)
    assert alone[0] > among[0]
    assert among[1:] == [0] * 7
    assert sum(choose_drafts([(copied, 7)] * 4, Costs(0.01), 9)) == 5  # and never more rows than it may have


def test_costs_are_learned_and_follow_the_machine():
    costs = StepCosts()
    assert not costs.measured
    for _ in range(10):
        costs.measure(1, 10.0)
    assert costs.decode_ms(1) == pytest.approx(10)
    for _ in range(10):
        costs.measure(5, 14.0)
    assert costs.decode_ms(5) == pytest.approx(14, rel=0.02)
    assert 10 < costs.decode_ms(3) < 14
    assert costs.decode_ms(9) == pytest.approx(18, rel=0.05)
    for _ in range(40):  # everything takes twice as long
        costs.measure(1, 20.0)
    assert costs.decode_ms(5) == pytest.approx(28, rel=0.05)


def test_one_outlier_says_little():
    costs = StepCosts()
    for _ in range(10):
        costs.measure(1, 10.0)
    costs.measure(1, 5000.0)
    assert costs.decode_ms(1) < 17
    for _ in range(20):
        costs.measure(1, 10.0)
    assert costs.decode_ms(1) == pytest.approx(10, rel=0.1)


def test_a_dear_measurement_is_forgotten_in_time():
    costs = StepCosts()
    for _ in range(10):
        costs.measure(1, 10.0)
    for _ in range(4):
        costs.measure(4, 40.0)
    assert costs.decode_ms(4) > 20
    for _ in range(600):
        costs.measure(1, 10.0)
    assert costs.decode_ms(4) == pytest.approx(19, rel=0.05)  # what is believed before it was measured
