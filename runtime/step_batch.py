"""The step in flight: which sequences are in it with how many rows, flattened into the arrays of a StepPlan.

The arrays are taken once, so that planning a step allocates none; plans are views of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from runtime.pages import PagePool
from runtime.request import Sequence
from runtime.step_plan import StepPlan, items


class StepBatch:
    """What was scheduled and not applied yet."""

    def __init__(self, pool: PagePool, page_tokens: int, context_tokens: int, max_step_rows: int) -> None:
        self.sequences: list[Sequence] = []  # in order of the step's rows
        self.num_rows: list[int] = []  # of each of them
        self.sampled: list[Sequence] = []  # those with a wanted row, in order of out_rows
        self._pool = pool
        self._page_tokens = page_tokens
        max_seqs = min(pool.sessions, max_step_rows)
        self._tokens = np.empty(max_step_rows, np.int32)  # (max_step_rows,)
        self._positions = np.empty(max_step_rows, np.int32)  # (max_step_rows,)
        self._token_items, self._position_items = items(self._tokens), items(self._positions)
        self._seq_starts = np.zeros(max_seqs + 1, np.int32)  # (max_seqs + 1,)
        self._page_starts = np.zeros(max_seqs + 1, np.int32)  # (max_seqs + 1,)
        max_pages = min(pool.n_pages, -(-context_tokens // page_tokens))  # of one sequence
        self._pages = np.empty(max_seqs * max_pages, np.int32)  # (max_seqs * max_pages,), shared ones repeat
        self._out_rows = np.empty(max_step_rows, np.int32)  # (max_step_rows,)
        self._targets = np.full(max_step_rows, -1, np.int32)  # (max_step_rows,)
        self._counting = np.arange(context_tokens, dtype=np.int32)  # (context_tokens,) 0, 1, 2, ...

    def __bool__(self) -> bool:
        return bool(self.sequences)

    @property
    def rows(self) -> tuple[int, int]:
        """(prompt rows, rows of answers)."""
        prompt = total = 0
        for sequence, n_rows in zip(self.sequences, self.num_rows, strict=True):
            total += n_rows
            if sequence.num_computed < sequence.prompt_tokens:
                prompt += min(n_rows, sequence.prompt_tokens - sequence.num_computed)
        return prompt, total - prompt

    def plan(self, rows: dict[Sequence, int]) -> StepPlan:
        """Take the pages that these rows need and flatten them."""
        row = page = index = n_out = 0
        samplers: list[Any] = []
        for sequence, n_rows in rows.items():
            begin, end = sequence.num_computed, sequence.num_computed + n_rows
            lease = sequence.lease
            assert lease is not None
            if end > lease.used * self._page_tokens:
                self._pool.grow(lease, -(-end // self._page_tokens))
            if n_rows == 1:  # one number costs a third of a slice
                self._token_items[row] = sequence.token_items[begin]
                self._position_items[row] = begin
            else:
                self._tokens[row : row + n_rows] = sequence.tokens[begin:end]
                self._positions[row : row + n_rows] = self._counting[begin:end]
            self._pages[page : page + lease.used] = lease.pages[: lease.used]
            row += n_rows
            page += lease.used
            index += 1
            self._seq_starts[index] = row
            self._page_starts[index] = page
            if end >= sequence.num_known:
                for out_row in range(row - 1 - sequence.num_drafted, row):
                    self._out_rows[n_out] = out_row
                    samplers.append(sequence.sampler)
                    n_out += 1
                self.sampled.append(sequence)
        self.sequences, self.num_rows = list(rows), list(rows.values())
        return StepPlan(
            tokens=self._tokens[:row],
            positions=self._positions[:row],
            seq_starts=self._seq_starts[: index + 1],
            page_starts=self._page_starts[: index + 1],
            pages=self._pages[:page],
            out_rows=self._out_rows[:n_out],
            samplers=samplers,
            targets=self._targets[:n_out],
        )

    def clear(self) -> None:
        """The step was applied, or never will be."""
        for sequence in self.sequences:
            sequence.num_drafted = 0
        self.sequences, self.num_rows, self.sampled = [], [], []
