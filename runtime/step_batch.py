"""The step in flight: which sequences are in it with how many rows, flattened into the arrays of a StepPlan.

The arrays are taken once, so that planning a step allocates none; plans are views of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from runtime._native import RENEWED_WITH_GUESS, PlanRows
from runtime.pages import PagePool
from runtime.prompt_scores import Scored, scored_rows
from runtime.request import Sequence
from runtime.step_plan import StepPlan, items


class StepBatch:
    """What was scheduled and not applied yet."""

    def __init__(self, pool: PagePool, page_tokens: int, context_tokens: int, max_step_rows: int) -> None:
        self.sequences: list[Sequence] = []  # in order of the step's rows
        self.num_rows: list[int] = []  # of each of them
        self.sampled: list[Sequence] = []  # those that get a token, in order of out_rows
        self.sampled_at: list[int] = []  # the first output of each of them
        self.scored: list[Scored] = []  # outputs that tell of prompts
        self.prompt_rows = self.total_rows = 0  # rows of prompts, and all rows
        self.is_scheduled = False  # a step was planned and not applied
        self.is_plain = False  # one row for each answer, with a token each, and nothing else
        self.request_ids: list[str] = []  # of `sequences`, where it is plain
        self._plan: StepPlan | None = None  # the last one, which may come again
        self._pool = pool
        self._page_tokens = page_tokens
        max_seqs = min(pool.sessions, max_step_rows)
        self._tokens = np.empty(max_step_rows, np.int32)  # (max_step_rows,)
        self._positions = np.empty(max_step_rows, np.int32)  # (max_step_rows,)
        self._plain_rows = PlanRows(self._tokens, self._positions)
        self._token_items, self._position_items = items(self._tokens), items(self._positions)
        self._seq_starts = np.zeros(max_seqs + 1, np.int32)  # (max_seqs + 1,)
        self._page_starts = np.zeros(max_seqs + 1, np.int32)  # (max_seqs + 1,)
        self._seq_start_items, self._page_start_items = items(self._seq_starts), items(self._page_starts)
        max_pages = min(pool.n_pages, -(-context_tokens // page_tokens))  # of one sequence
        self._pages = np.empty(max_seqs * max_pages, np.int32)  # (max_seqs * max_pages,), shared ones repeat
        self._out_rows = np.empty(max_step_rows, np.int32)  # (max_step_rows,)
        self._out_row_items = items(self._out_rows)
        self._targets = np.full(max_step_rows, -1, np.int32)  # (max_step_rows,)
        self._has_targets = False
        self._counting = np.arange(context_tokens, dtype=np.int32)  # (context_tokens,) 0, 1, 2, ...

    def plan(self, rows: dict[Sequence, int]) -> StepPlan:
        """Take the pages that these rows need and flatten them."""
        self.forget()
        self.is_scheduled = True
        row = page = index = n_out = prompt_rows = 0
        samplers: list[Any] = []
        if self._has_targets:
            self._targets.fill(-1)
            self._has_targets = False
        for sequence, n_rows in rows.items():
            begin, end = sequence.num_computed, sequence.num_computed + n_rows
            lease = sequence.lease
            assert lease is not None
            if end > lease.used * self._page_tokens:
                self._pool.grow(lease, -(-end // self._page_tokens))
            if begin < sequence.prompt_tokens:
                prompt_rows += min(n_rows, sequence.prompt_tokens - begin)
                if sequence.is_scoring:
                    n_out = self._add_scored(
                        sequence, scored_rows(sequence, n_rows), row - begin, n_out, samplers
                    )
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
            self._seq_start_items[index] = row
            self._page_start_items[index] = page
            if end >= sequence.num_known:
                self.sampled_at.append(n_out)
                for out_row in range(row - 1 - sequence.num_drafted, row):
                    self._out_row_items[n_out] = out_row
                    samplers.append(sequence.sampler)
                    n_out += 1
                self.sampled.append(sequence)
        self.sequences, self.num_rows = list(rows), list(rows.values())
        self.prompt_rows, self.total_rows = prompt_rows, row
        plan = StepPlan(
            tokens=self._tokens[:row],
            positions=self._positions[:row],
            seq_starts=self._seq_starts[: index + 1],
            page_starts=self._page_starts[: index + 1],
            pages=self._pages[:page],
            out_rows=self._out_rows[:n_out],
            samplers=samplers,
            targets=self._targets[:n_out],
        )
        self.is_plain = row == index == n_out and not prompt_rows
        if self.is_plain:
            self._remember(plan)
        return plan

    def _add_scored(
        self, sequence: Sequence, positions: range, offset: int, n_out: int, samplers: list[Any]
    ) -> int:
        """Make outputs of rows of a prompt, whose row is `offset` from their position; returns the outputs in all."""
        assert sequence.scorers is not None
        for position in positions:
            self._out_row_items[n_out] = position + offset
            self._targets[n_out] = sequence.token_items[position + 1]
            samplers.append(sequence.scorers[position % len(sequence.scorers)])
            n_out += 1
        if positions:
            self.scored.append(Scored(sequence, positions.start + 1, n_out - len(positions), len(positions)))
            self._has_targets = True
        return n_out

    def _remember(self, plan: StepPlan) -> None:
        """A step of one row for each of its answers: likely the next one differs by its tokens only."""
        for sequence in self.sequences:
            assert sequence.lease is not None
            sequence.paged_tokens = sequence.lease.used * self._page_tokens
        self.request_ids = [sequence.request.id for sequence in self.sequences]
        self._plan = plan

    def plan_again(self, running: list[Sequence]) -> tuple[StepPlan, bool] | None:
        """Plan one row for each of `running`, where that is the last step with new tokens; else None.

        The second value: somebody has a guess for the token behind it.
        """
        plan = self._plan
        if plan is None:
            return None
        renewed = self._plain_rows.renew(running, self.sequences)
        if not renewed:
            return None
        self.is_scheduled = True
        return plan, renewed == RENEWED_WITH_GUESS

    def clear(self) -> None:
        """The step was applied, or never will be."""
        self.is_scheduled = False
        if not self.is_plain:
            for sequence in self.sequences:
                sequence.num_drafted = 0
            self.forget()

    def forget(self) -> None:
        """Hold none of the sequences any more: one of them has ended, or the next step is another one."""
        self.is_plain = False
        self._plan = None
        self.sequences, self.num_rows, self.sampled, self.sampled_at, self.scored = [], [], [], [], []
        self.request_ids = []
