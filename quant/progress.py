"""How far a quantization is: bytes, rate and what is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

PROGRESS_INTERVAL_S = 0.1


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a quantization is."""

    tensors_done: int
    tensors_total: int
    bytes_done: int  # of the source
    bytes_total: int
    bytes_per_s: float  # since the start of this run
    eta_s: float
    tensor: str  # the one being worked on


class Meter:
    """Counts what is done and reports it, at most every PROGRESS_INTERVAL_S."""

    def __init__(self, tensors_total: int, bytes_total: int, report: Callable[[Progress], None]) -> None:
        self._tensors_total = tensors_total
        self._bytes_total = bytes_total
        self._report = report
        self._started = time.monotonic()
        self._reported = 0.0
        self._tensors_done = 0
        self._bytes_done = 0
        self._bytes_before = 0

    def skip(self, tensors: int, n_bytes: int) -> None:
        """Count what an earlier run has done."""
        self._tensors_done, self._bytes_done, self._bytes_before = tensors, n_bytes, n_bytes

    def advance(self, n_bytes: int, tensor: str, *, is_last: bool) -> None:
        """Count one run of a tensor; `is_last`: the tensor is done with it."""
        self._bytes_done += n_bytes
        self._tensors_done += is_last
        now = time.monotonic()
        done = self._bytes_done == self._bytes_total
        if not done and now - self._reported < PROGRESS_INTERVAL_S:
            return
        self._reported = now
        rate = (self._bytes_done - self._bytes_before) / max(now - self._started, 1e-6)
        self._report(
            Progress(
                tensors_done=self._tensors_done,
                tensors_total=self._tensors_total,
                bytes_done=self._bytes_done,
                bytes_total=self._bytes_total,
                bytes_per_s=rate,
                eta_s=(self._bytes_total - self._bytes_done) / max(rate, 1.0),
                tensor=tensor,
            )
        )
