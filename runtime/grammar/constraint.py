"""A compiled grammar as the constraint of one answer."""

from __future__ import annotations

from typing import Any

import numpy as np

from runtime.constraint import Advance, ConstraintError, MaskWords

_NOTHING = Advance()


class GrammarConstraint:
    """A TokenConstraint from the first token on.  Its first mask is computed at construction, away from the engine."""

    def __init__(self, matcher: Any, library: Any, n_vocab: int) -> None:
        """`matcher` is an LLMatcher of this constraint's own; `n_vocab`: width of the mask in tokens."""
        self._matcher = matcher
        self._library = library
        self._words = np.zeros(-(-n_vocab // 32), np.uint32)  # (ceil(n_vocab / 32),)
        self._fresh = False
        self.mask()

    def copy(self) -> GrammarConstraint:
        """The same state again, for another answer."""
        return GrammarConstraint(self._matcher.deep_copy(), self._library, 32 * len(self._words))

    def mask(self) -> MaskWords:
        """The tokens that may come next; at the end of what the grammar allows, those that end the answer."""
        if not self._fresh:
            n_bytes = 4 * -(-self._library.vocab_size // 32)
            self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, n_bytes)
            self._check()
            self._fresh = True
        return self._words

    def accept(self, token_id: int, *, want_forced: bool) -> Advance:
        """Take in a token; what it forces is taken in with it."""
        self._fresh = False
        if not self._matcher.consume_token(token_id):
            self._check()
            raise ConstraintError("a token that the grammar does not allow")
        return self._advance(want_forced)

    def accept_bytes(self, data: bytes, *, want_forced: bool) -> Advance | None:
        """Take in bytes that no token of their own made; None, and nothing is taken, where they do not fit."""
        if data:
            tokens = self._library.tokenize_bytes(data)
            if self._matcher.validate_tokens(tokens) < len(tokens):
                return None
            self._fresh = False
            self._matcher.consume_tokens(tokens)
        return self._advance(want_forced)

    def _advance(self, want_forced: bool) -> Advance:
        if self._matcher.is_stopped():
            self._check()
            return Advance(done=True)
        if not want_forced:
            return _NOTHING
        forced = self._matcher.compute_ff_tokens()
        self._fresh = self._fresh and not forced
        if forced and not self._matcher.consume_tokens(forced):
            self._check()
            raise ConstraintError("forced tokens do not fit")
        self._check()
        return Advance(tuple(forced), bool(self._matcher.is_stopped()))

    def _check(self) -> None:
        """Fail closed: the library stays in its error state and would then allow anything to end."""
        if self._matcher.is_error():
            raise ConstraintError(" ".join(self._matcher.get_error().split())[:200])
