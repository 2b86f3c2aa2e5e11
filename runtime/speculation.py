"""Guessing the next tokens of an answer from its own text, and how many guesses a step should carry.

Answers that edit, extract or quote repeat what the prompt or they themselves said.  A `Copier` (runtime/native/copier.h)
follows one sequence: it finds where the last tokens stood before and reads on from there.  A guess costs one more row of the
step; the model computes all of them at once, and those count that it says anyway (prompt lookup, a form of speculative
decoding: Leviathan et al. 2023, Saxena 2023).  The sampler sees accepted tokens only, and a row's bits do not depend on the
others: the answer is the same as without, bit for bit, whatever was guessed.

Every token is compared with the guess for it, also where the guess was not in the step: how often guesses are right is
known without paying for it.  `choose_drafts` weighs that against what more rows cost on this machine (StepCosts, measured)
and takes the guesses that are worth their rows, which are none where it does not pay.
"""

from __future__ import annotations

from collections.abc import Sequence

from runtime import _native
from runtime._native import Copier, copier_table_bytes
from runtime.pacing import StepCosts

__all__ = ["MAX_DRAFT", "Copier", "choose_drafts", "copier_table_bytes"]

MAX_DRAFT = 7  # guesses of one sequence in one step


def choose_drafts(copiers: Sequence[tuple[Copier | None, int]], costs: StepCosts, max_rows: int) -> list[int]:
    """How many guesses of each sequence the next step should carry.

    `copiers`: one for each sequence of the step, which has one row anyway (None: it must not guess), with how many guesses
    it may have.  `max_rows` bounds the rows of the step.
    """
    step_ms = [costs.decode_ms(num_rows) for num_rows in range(len(copiers), max_rows + 1)]
    return _native.choose_drafts(list(copiers), step_ms)
