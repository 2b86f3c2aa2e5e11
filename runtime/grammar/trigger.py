"""Constraints that begin on the way: after the model's thoughts, or once it begins to call a tool.

Until then the answer is free and costs nothing: no mask, no grammar, only a look at the last bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from runtime.constraint import Advance, MaskWords
from runtime.grammar.constraint import GrammarConstraint

_FREE = Advance()
TokenBytes = Callable[[int], bytes]  # the bytes that a token adds, markers that are control tokens included


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Thoughts in front of the answer proper, which no constraint touches."""

    open: bytes  # such as b"<think>"
    close: bytes
    open_id: int | None  # the token that opens them, where there is one
    begins_open: bool  # True: the prompt has opened them already


class TriggeredConstraint:
    """A TokenConstraint that is asleep until one of `triggers` was written; without triggers, until the thoughts end.

    The grammar says what follows the trigger.  A token that runs past the trigger counts if what it adds fits the grammar;
    otherwise the text was no beginning, and the constraint sleeps on.
    """

    def __init__(
        self,
        inner: GrammarConstraint | None,
        token_bytes: TokenBytes,
        *,
        triggers: Mapping[bytes, GrammarConstraint] | None = None,
        at_start: bool = False,
        reasoning: Reasoning | None = None,
        gap: Sequence[int] = (),
    ) -> None:
        """`triggers`: what wakes it, each with the grammar of what follows; `inner`: the grammar without any trigger.

        `at_start`: a trigger counts only where the answer begins with it, white space aside.  `gap`: tokens that stand
        between thoughts and an answer that is constrained from its start.
        """
        if (inner is None) == (not triggers) or (inner is not None and reasoning is None):
            raise ValueError("a constraint that sleeps needs something that wakes it")
        self._inner: GrammarConstraint = inner or next(iter((triggers or {}).values()))
        self._bytes = token_bytes
        self._triggers = dict(triggers or {})
        self._gap = tuple(gap)
        self._at_start = at_start
        self._reasoning = reasoning
        self._thinking = reasoning is not None and reasoning.begins_open
        self._awake = False
        self._begun = False  # a token was taken in
        self._seen = b""  # the tail that a trigger could still grow from

    def copy(self) -> TriggeredConstraint:
        """The same from its beginning, for another answer."""
        copies = {trigger: grammar.copy() for trigger, grammar in self._triggers.items()}
        return TriggeredConstraint(
            None if copies else self._inner.copy(),
            self._bytes,
            triggers=copies,
            at_start=self._at_start,
            reasoning=self._reasoning,
            gap=self._gap,
        )

    def mask(self) -> MaskWords | None:
        """The grammar's mask once it is awake."""
        if self._awake:
            return self._inner.mask()
        if self._may_open_thoughts():
            assert self._reasoning is not None
            assert self._reasoning.open_id is not None
            words = self._inner.mask().copy()
            words[self._reasoning.open_id // 32] |= np.uint32(1 << (self._reasoning.open_id % 32))
            return words
        return None

    def _may_open_thoughts(self) -> bool:
        """True at the first token of an answer that is constrained from its start, thoughts aside."""
        return not (self._triggers or self._begun or self._thinking)

    def accept(self, token_id: int, *, want_forced: bool) -> Advance:
        """Take in a token, and look whether it wakes the grammar."""
        if self._awake:
            return self._inner.accept(token_id, want_forced=want_forced)
        may_open, self._begun = self._may_open_thoughts(), True
        if may_open:
            assert self._reasoning is not None
            self._thinking = token_id == self._reasoning.open_id
            if self._thinking:
                return _FREE
            self._awake = True
            return self._inner.accept(token_id, want_forced=want_forced)
        self._seen += self._bytes(token_id)
        return self._look(want_forced)

    def _look(self, want_forced: bool) -> Advance:
        reasoning = self._reasoning
        if self._thinking:
            assert reasoning is not None
            at = self._seen.find(reasoning.close)
            if at < 0:
                self._seen = self._seen[-len(reasoning.close) :]
                return _FREE
            self._thinking = False
            self._seen = self._seen[at + len(reasoning.close) :]
            if not self._triggers:
                return self._begin_answer(want_forced)
        elif reasoning is not None and self._seen.lstrip().startswith(reasoning.open):
            self._thinking = True
            self._seen = b""
            return _FREE
        return self._look_for_trigger(want_forced)

    def _begin_answer(self, want_forced: bool) -> Advance:
        """The thoughts ended, and the grammar rules from here on; what ran over and does not fit is let go."""
        self._awake = True
        rest = self._seen.lstrip(b"\n")
        advance = self._inner.accept_bytes(rest, want_forced=want_forced) or _FREE
        gap = self._gap if want_forced and not self._seen and not advance.done else ()
        return Advance((*gap, *advance.forced), advance.done)

    def _look_for_trigger(self, want_forced: bool) -> Advance:
        while True:
            found = [(at, trigger) for trigger in self._triggers if (at := self._seen.find(trigger)) >= 0]
            if not found:
                break
            at, trigger = min(found)
            before, rest = self._seen[:at], self._seen[at + len(trigger) :]
            if not (self._at_start and before.strip()):
                inner = self._triggers[trigger]
                advance = inner.accept_bytes(rest, want_forced=want_forced)
                if advance is not None:
                    self._inner, self._awake = inner, True
                    return advance
            self._seen = b"." + rest  # no beginning of an answer any more
        if self._at_start:
            # Long before this no trigger can come any more.
            self._seen = self._seen[:256]
        else:
            longest = max(map(len, self._triggers))
            if len(self._seen) > 2 * longest + 256:
                self._seen = b"." + self._seen[-longest:]
        return _FREE
