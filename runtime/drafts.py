"""Which answers of a step carry guesses of their next tokens, and how many (runtime/speculation.py says what a guess is)."""

from __future__ import annotations

from runtime.pacing import StepCosts
from runtime.request import Request, Sequence
from runtime.speculation import MAX_DRAFT, choose_drafts

_MAX_ROWS = 16  # of a step that carries guesses: more are multiplied as those of prompts are


class Drafts:
    """Weighs guesses against what more rows cost, and puts those that pay behind the known tokens."""

    def __init__(self, costs: StepCosts) -> None:
        self._costs = costs

    @staticmethod
    def suit(request: Request) -> bool:
        """A constraint's mask depends on the token before, so its tokens cannot be checked together."""
        return request.speculate and request.constraint is None

    def choose(self, sequences: list[Sequence], row_budget: int) -> list[int] | None:
        """Guesses of each answer of a step that has one row for each of them; None where there are none at all."""
        max_rows = min(row_budget, _MAX_ROWS)
        copiers = [sequence.copier for sequence in sequences]
        if len(copiers) >= max_rows or not any(one is not None and one.has_guess for one in copiers):
            return None
        # A step gives one token more than it has guesses, and none beyond the limit.
        candidates = [
            (copier, min(MAX_DRAFT, sequence.limit_tokens - sequence.num_known - 1))
            for copier, sequence in zip(copiers, sequences, strict=True)
        ]
        counts = choose_drafts(candidates, self._costs, max_rows)
        return counts if any(counts) else None

    @staticmethod
    def place(sequence: Sequence, count: int) -> int:
        """Let the next step check `count` guesses of a sequence, up to a stop token; returns how many there are."""
        if not count or sequence.copier is None:
            return 0
        drafted = sequence.copier.draft(count)
        stops = sequence.request.stop_token_ids
        for index, token_id in enumerate(drafted):
            if token_id in stops:  # nothing comes after it
                del drafted[index:]
                break
        sequence.num_drafted = len(drafted)
        sequence.tokens[sequence.num_known : sequence.num_known + len(drafted)] = drafted
        return len(drafted)
