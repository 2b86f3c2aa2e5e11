"""What the scheduler knows of structured output: which tokens may come next, and which must.

A constraint belongs to one request and is used by one thread at a time: first by whoever prepares the request, then by the
engine's.  runtime/grammar implements it; nothing here knows how.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

MaskWords = npt.NDArray[np.uint32]  # (ceil(n_vocab / 32),) bit t % 32 of word t // 32: token t may come next


class ConstraintError(Exception):
    """A constraint cannot go on: its grammar became too complex, or a token broke it.  The request fails closed."""


@dataclass(frozen=True, slots=True)
class Advance:
    """What follows from a token: `forced` tokens that are the only way on, and whether the answer is complete."""

    forced: tuple[int, ...] = ()
    done: bool = False


class TokenConstraint(Protocol):
    """Rules for the tokens of one answer.  Every method may raise ConstraintError."""

    def mask(self) -> MaskWords | None:
        """The tokens that may come next; None: every token.  The array is the constraint's own, until `accept`."""
        ...

    def accept(self, token_id: int, *, want_forced: bool) -> Advance:
        """Take in a sampled token, and where `want_forced`, the tokens that it forces."""
        ...
