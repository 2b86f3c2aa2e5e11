"""The answers of a model at every position of a text, and how far another model's are from them.

Of each position the likeliest tokens are kept and the rest as one: a vocabulary of 128k at a thousand positions would take
half a gigabyte.  Merging outcomes can only lower a divergence, and the rest of a text's distribution is a small part of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quant.perplexity import NonFiniteLogitsError, sequence_plan
from runtime.model import LoadedModel
from runtime.step_plan import Outcome

_KEPT = 512  # tokens of a position
_LOGITS_BYTES = 32 << 20  # at once

Floats = NDArray[np.float32]


def sequence_logits(model: LoadedModel, tokens: NDArray[np.int32], ctx: int) -> Iterator[Floats]:
    """Give the logits (n, n_vocab) of all positions, in pieces; every `ctx` tokens begin anew.

    An array is only good until the next one.  Raises NonFiniteLogitsError and what LoadedModel.step raises.
    """
    rows = max(1, min(model.settings.max_step_rows, _LOGITS_BYTES // (4 * model.n_vocab)))
    buffer = np.empty((rows, model.n_vocab), np.float32)
    bos = model.tokenizer.bos_id if model.tokenizer.add_bos else None
    for begin in range(0, len(tokens), ctx):
        chunk = tokens[begin : begin + ctx].copy()
        if bos is not None:
            chunk[0] = bos
        for start in range(0, len(chunk), rows):
            part = chunk[start : start + rows]
            outputs = np.arange(len(part), dtype=np.int32)
            plan = sequence_plan(part, start, outputs, np.full_like(outputs, -1), model.page_tokens)
            view = buffer[: len(part)]
            if (model.step(plan, view).outcomes == Outcome.NON_FINITE).any():
                raise NonFiniteLogitsError("the model's logits are not finite; the file may be damaged")
            yield view


@dataclass(frozen=True, slots=True)
class TopLogits:
    """The likeliest tokens of each position."""

    tokens: tuple[NDArray[np.intp], ...]  # of each piece (n, kept)
    probabilities: tuple[Floats, ...]  # (n, kept + 1), the last one that of all other tokens

    @classmethod
    def of(cls, pieces: Iterable[Floats]) -> TopLogits:
        """Keep the best of a model's answers."""
        tokens, probabilities = [], []
        for logits in pieces:
            kept = min(_KEPT, logits.shape[1] - 1)
            best = np.argpartition(logits, -kept, axis=1)[:, -kept:]
            tokens.append(best)
            probabilities.append(_probabilities(logits, best))
        return cls(tuple(tokens), tuple(probabilities))

    def divergence_of(self, pieces: Iterable[Floats]) -> float:
        """Return the mean KL divergence of another model's answers to the same text from these."""
        total, count = 0.0, 0
        for best, p, logits in zip(self.tokens, self.probabilities, pieces, strict=True):
            q = _probabilities(logits, best)
            with np.errstate(divide="ignore", invalid="ignore"):
                terms = p * np.log(p / np.maximum(q, np.float32(1e-30)))
            total += float(np.where(p > 0, terms, 0.0).sum(dtype=np.float64))
            count += len(p)
        return max(total / max(count, 1), 0.0)


def _probabilities(logits: Floats, tokens: NDArray[np.intp]) -> Floats:
    """Softmax of the tokens (n, kept), and of all others together: (n, kept + 1)."""
    shifted = logits - logits.max(1, keepdims=True)
    np.exp(shifted, out=shifted)
    best = np.take_along_axis(shifted, tokens, 1)
    total = shifted.sum(1, dtype=np.float64)[:, None]
    rest = np.maximum(total - best.sum(1, dtype=np.float64)[:, None], 0.0)
    return np.concatenate([best / total, rest / total], 1).astype(np.float32)
