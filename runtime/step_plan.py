"""What one native step is asked to do, and what it answers.

A step is a ragged batch of rows.  A row is one token position of one sequence; the rows of a sequence are
neighbours and their positions follow each other.  Nothing here says "prefill" or "decode": a sequence brings as many
rows as are scheduled for it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]


def items(array: Int32Array) -> memoryview[int]:
    """The same memory, for one number at a time: several times as fast as NumPy's own items, and plain integers."""
    return array.data.cast("B").cast("i")


MAX_TOP_LOGPROBS = 20
"""Width of `StepResult.top_ids`: alternatives that a step can report for one token."""


@dataclass(slots=True)
class StepPlan:
    """One step over `n_seqs` sequences and `n_rows` rows, as flat arrays for the native call.

    The scheduler fills arrays that it allocated once, and these are views of them: they are valid until the next step
    is scheduled.

    Verification: where several outputs that follow each other carry the same Sampler object, their rows must be
    neighbours in one sequence, and the step verifies the tokens of the later rows as a draft, in order.  It draws for row
    j; only if the drawn token is the token of row j + 1 does it go on to draw for row j + 1.  Behind the first mismatch,
    and behind a row that drew nothing, rows report token -1 with the outcome FINE, are not looked at, and do not touch the
    sampler: so each draw sees exactly the tokens that were accepted before it, and the drawn tokens are those that
    one row a step would have drawn.  The accepted tokens are the results before the first -1.
    """

    tokens: Int32Array  # (n_rows,) token id of each row
    positions: Int32Array  # (n_rows,) position of the row in its sequence, from 0
    seq_starts: Int32Array  # (n_seqs + 1,) rows of sequence i are [seq_starts[i], seq_starts[i + 1])
    page_starts: Int32Array  # (n_seqs + 1,) pages of sequence i are pages[page_starts[i]:page_starts[i + 1]]
    pages: Int32Array  # (sum of pages,) page ids of each sequence in order of position
    out_rows: Int32Array  # (n_out,) rows whose logits are wanted, ascending
    samplers: list[
        Any
    ]  # (n_out,) runtime._native.Sampler, or None: do not sample; the same one again: verify
    targets: Int32Array  # (n_out,) token id whose log-probability is wanted, or -1

    @property
    def n_rows(self) -> int:
        return len(self.tokens)

    @property
    def n_seqs(self) -> int:
        return len(self.seq_starts) - 1

    @property
    def n_out(self) -> int:
        return len(self.out_rows)


class Outcome(enum.IntEnum):
    """Why a row has no token, if it should have one."""

    FINE = 0  # drawn, or nothing was to be drawn
    NON_FINITE = 1  # a logit was a NaN or an infinity: nothing was drawn
    NO_TOKEN = 2  # the sampler's mask allows no token: nothing was drawn


@dataclass(slots=True)
class StepResult:
    """What the step found for each wanted row.  Log-probabilities are of the raw logits, before any sampling rule."""

    # (n_out,) sampled token; -1: no sampler, verification had ended, or `outcomes` says why.  Each is looked at alone,
    # between two steps: as a list, because to get at an array's memory takes longer than a whole step's bookkeeping.
    token_ids: list[int]
    logprobs: Float32Array  # (n_out,) log-probability of the sampled token
    target_logprobs: Float32Array  # (n_out,) log-probability of the target
    top_ids: Int32Array  # (n_out, MAX_TOP_LOGPROBS) most likely tokens, best first, padded with -1
    top_logprobs: Float32Array  # (n_out, MAX_TOP_LOGPROBS)
    outcomes: UInt8Array  # (n_out,) Outcome of each row
