"""Guessing the next tokens of an answer from its own text, and how many guesses a step should carry.

Answers that edit, extract or quote repeat what the prompt or they themselves said.  A `Copier` follows one sequence: it
finds where the last tokens stood before and reads on from there.  A guess costs one more row of the step; the model computes
all of them at once, and those count that it says anyway (prompt lookup, a form of speculative decoding: Leviathan et
al. 2023, Saxena 2023).  The sampler sees accepted tokens only, and a row's bits do not depend on the others: the answer
is the same as without, bit for bit, whatever was guessed.

Every token is compared with the guess for it, also where the guess was not in the step: how often guesses are right is
known without paying for it.  `choose_drafts` weighs that against what more rows cost on this machine (StepCosts, measured)
and takes the guesses that are worth their rows, which are none where it does not pay.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from runtime.pacing import StepCosts
from runtime.step_plan import items

MAX_DRAFT = 7  # guesses of one sequence in one step

_NGRAMS = (4, 2)  # lengths of the endings that are looked up, the longest first
_MAX_TABLE_BITS = 16  # a table has 2^16 entries at most; newer positions take the place of older ones
_FACTOR = 0x9E3779B1  # 2^32 / golden ratio: spreads neighbouring ids
_WORD = 0xFFFFFFFF
_FACTOR_2, _FACTOR_3, _FACTOR_4 = (pow(_FACTOR, power, 1 << 32) for power in (2, 3, 4))
_LONGEST = 16  # a match is not measured further
# The share of right guesses after a match of 2 to 3, 4 to 7, 8 to 15, 16 and more tokens, by the bit length of that;
# believed before any was seen as much as this many guesses; and after this many guesses, older ones count half.
_PRIOR = (0.0, 0.0, 0.15, 0.4, 0.6, 0.75)
_PRIOR_WEIGHT = 4.0
_MEMORY = 64.0
# What drafts must promise, as the logarithm of a rate, or the noise of the estimates would decide.
_LEAST_GAIN = 0.05


def table_bytes(limit_tokens: int) -> int:
    """Memory of the tables of one sequence of at most `limit_tokens` tokens."""
    return len(_NGRAMS) * 4 << _table_bits(limit_tokens)


def _table_bits(limit_tokens: int) -> int:
    return min(_MAX_TABLE_BITS, max(8, (2 * limit_tokens).bit_length()))


class Copier:
    """Follows one sequence.  Its tables are bounded, and every token costs the same few operations."""

    __slots__ = ("_at", "_hits", "_length", "_shift", "_tables", "_tokens", "_tries", "num_known")

    def __init__(self, tokens: npt.NDArray[np.int32], num_known: int) -> None:
        """`tokens` (limit,) is the sequence's own array, of which the first `num_known` are known."""
        self._tokens = items(tokens)
        self.num_known = num_known
        bits = _table_bits(len(tokens))
        self._shift = 32 - bits
        # For each length: hash of an ending -> position of the token that came after it last; 0: none.
        self._tables = [self._table(tokens[:num_known], n, bits) for n in _NGRAMS]
        self._hits = [_PRIOR_WEIGHT * share for share in _PRIOR]
        self._tries = [_PRIOR_WEIGHT] * len(_PRIOR)
        self._at = 0  # where the guess for the next token stands; 0: there is none
        self._length = 0  # tokens before it that are the same as the last ones
        self._look_up()

    def follow(self) -> None:
        """The token at `num_known` of the sequence's array is known now."""
        at = self._at
        if at:
            bucket = self._length.bit_length()
            self._tries[bucket] += 1.0
            if self._tokens[at] == self._tokens[self.num_known]:
                self._hits[bucket] += 1.0
                self._at = at + 1
                self._length = min(self._length + 1, _LONGEST)
            else:
                self._at = 0
            if self._tries[bucket] > _MEMORY:
                self._tries[bucket] *= 0.5
                self._hits[bucket] *= 0.5
        self.num_known += 1
        self._look_up()

    @property
    def has_guess(self) -> bool:
        """True: there is a guess for the next token."""
        return self._at > 0

    def chances(self, most: int) -> list[float]:
        """For each of the next guesses, at most `most`: the chance that it and all before it are right."""
        if not self._at:
            return []
        chances, chance, length = [], 1.0, self._length
        for _ in range(most):
            bucket = min(length, _LONGEST).bit_length()
            chance *= self._hits[bucket] / self._tries[bucket]
            chances.append(chance)
            length += 1
        return chances

    def draft(self, most: int) -> list[int]:
        """The next `most` guesses, in order.  Text that repeats itself is read on into the guesses."""
        at, known = self._at, self.num_known
        drafts: list[int] = []
        if at:
            for position in range(at, at + most):
                drafts.append(self._tokens[position] if position < known else drafts[position - known])
        return drafts

    def _look_up(self) -> None:
        """Enter the endings of the known text, and where there is no guess, look where they stood before."""
        tokens, known = self._tokens, self.num_known
        if known < _NGRAMS[0]:
            return
        short = tokens[known - 1] * _FACTOR + tokens[known - 2] * _FACTOR_2
        long = short + tokens[known - 3] * _FACTOR_3 + tokens[known - 4] * _FACTOR_4
        long_table, short_table = self._tables
        slot = (long & _WORD) >> self._shift
        long_at, long_table[slot] = long_table[slot], known
        slot = (short & _WORD) >> self._shift
        short_at, short_table[slot] = short_table[slot], known
        if self._at:
            return
        if long_at:
            self._try_match(long_at, _NGRAMS[0])
        if short_at and not self._at:
            self._try_match(short_at, _NGRAMS[1])

    def _try_match(self, at: int, n: int) -> None:
        """Read on from `at` where at least `n` tokens before it are the same as the last ones, and not only their hash."""
        tokens, known = self._tokens, self.num_known
        length = 0
        while length < _LONGEST and length < at and tokens[at - 1 - length] == tokens[known - 1 - length]:
            length += 1
        if length >= n:
            self._at, self._length = at, length

    def _table(self, tokens: npt.NDArray[np.int32], n: int, bits: int) -> array[int]:
        """The table of `tokens` (n_tokens,) without its last ending, all at once."""
        table = array("i", bytes(4 << bits))
        num_endings = len(tokens) - n  # those that a token comes after
        if num_endings > 0:
            words = tokens.astype(np.uint32)
            value = np.zeros(num_endings, np.uint32)
            for offset in range(n):
                value = (value + words[offset : offset + num_endings]) * np.uint32(_FACTOR)
            # Where two endings have the same hash, NumPy keeps the last assignment.
            np.frombuffer(table, np.int32)[value >> np.uint32(self._shift)] = np.arange(
                n, n + num_endings, dtype=np.int32
            )
        return table


def choose_drafts(copiers: Sequence[tuple[Copier | None, int]], costs: StepCosts, max_rows: int) -> list[int]:
    """How many guesses of each sequence the next step should carry.

    `copiers`: one for each sequence of the step, which has one row anyway (None: it must not guess), with how many guesses
    it may have.  `max_rows` bounds the rows of the step.

    A longer step delays everybody in it, so what is maximized is the sum of the logarithms of all rates (proportional
    fairness): one sequence alone guesses where that is faster, and among many its gain has to outweigh their loss.
    """
    num_rows = len(copiers)
    counts = [0] * num_rows
    gains: list[tuple[float, int]] = []
    for index, (copier, most) in enumerate(copiers):
        if copier is None:
            continue
        expected = 1.0
        for chance in copier.chances(most):
            gains.append((math.log1p(chance / expected), index))
            expected += chance
    if not gains:
        return counts
    gains.sort(reverse=True)  # of one sequence, each guess gains at most as much as the one before
    base_ms = costs.decode_ms(num_rows)
    gained, best, num_best = 0.0, _LEAST_GAIN, 0
    for num_drafts, (gain, _) in enumerate(gains[: max(0, max_rows - num_rows)], 1):
        gained += gain
        value = gained - num_rows * math.log(costs.decode_ms(num_rows + num_drafts) / base_ms)
        if value > best:
            best, num_best = value, num_drafts
    for _, index in gains[:num_best]:
        counts[index] += 1
    return counts
