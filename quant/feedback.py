"""Error feedback: the levels inside encoded blocks chosen again, so that errors of a row's weights make up for each other.

Rounding to nearest loses least of each weight alone; what counts is the row's product with an input.  Channels go together, so
a weight that was rounded up can be made good by rounding others down.  Within each run of 256 columns the levels are chosen one
after the other, the column of the largest input first, each for what the ones before it lost; then each once more, given all
others, until none changes.  Scales stay those of the importance-weighted search.  Sources: GPTQ (Frantar
et al. 2022) and LDLQ (Chee et al. 2023), within blocks.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from quant.input_files import Bytes
from quant.moments import InputMoments
from runtime._native import FeedbackFactors, feed_back, has_levels

_KEPT_FACTORS = 2  # tensors; half a megabyte for each run of their columns


class ErrorFeedback:
    """Applies the moments of one calibration; for any thread."""

    def __init__(self, moments: InputMoments) -> None:
        self.moments = moments
        self._lock = threading.Lock()
        self._factors: OrderedDict[str, FeedbackFactors] = OrderedDict()

    def describe(self) -> str:
        """Return what identifies it in a manifest."""
        return self.moments.describe()

    def applies_to(self, name: str, n_in: int, type_id: int) -> bool:
        """Say whether anything is known of the tensor's input, and whether the type has levels to choose."""
        return n_in % 32 == 0 and self.moments.n_seen(name) > 0 and has_levels(type_id)

    def apply(  # noqa: PLR0917 - as quantize_rows
        self,
        name: str,
        data: Bytes,
        source_type: int,
        n_rows: int,
        n_in: int,
        target_type: int,
        out: Bytes,
        threads: int,
    ) -> None:
        """Choose the levels of whole rows again: `data` as read, `out` their blocks; nothing is done where nothing is known."""
        if self.applies_to(name, n_in, target_type):
            factors = self._factors_of(name, n_in, threads)
            feed_back(data, source_type, n_rows, target_type, out, factors, threads)

    def _factors_of(self, name: str, n_in: int, threads: int) -> FeedbackFactors:
        with self._lock:
            found = self._factors.get(name)
            if found is None:
                found = FeedbackFactors(self.moments.of(name), n_in, self.moments.n_seen(name), threads)
                self._factors[name] = found
            self._factors.move_to_end(name)
            while len(self._factors) > _KEPT_FACTORS:
                self._factors.popitem(last=False)
            return found
