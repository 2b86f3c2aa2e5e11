"""Pages of a sequence that others computed before it, and those that it computes for others.

Which pages hold what is known by their keys (runtime/prefix.py); where they lie, and who holds them, by the pool
(runtime/pages.py).  The last prompt token is never among the shared ones, because its logits are wanted.
"""

from __future__ import annotations

from runtime.pages import PagePool
from runtime.prefix import PrefixKeys
from runtime.request import Sequence


class PageSharing:
    """Moves a sequence past what is computed already, and offers what it computed itself."""

    def __init__(self, pool: PagePool, prefix: PrefixKeys | None, page_tokens: int) -> None:
        """`prefix`: None where every request computes all of its tokens."""
        self._pool = pool
        self._prefix = prefix
        self._page_tokens = page_tokens

    def begin(self, sequence: Sequence) -> None:
        """The keys of a new sequence's full pages."""
        if self._prefix is not None:
            sequence.publishes = True
            sequence.keys.append(self._prefix.root(sequence.request.cache_scope))
            self._prefix.extend(sequence.keys, sequence.tokens)

    def match(self, sequence: Sequence) -> list[int]:
        """The pages at its beginning that somebody has computed."""
        return self._pool.match(self._shareable(sequence))

    def admitted(self, sequence: Sequence, num_pages: int) -> int:
        """The sequence was given a lease whose first `num_pages` are shared; returns the tokens that were cached for it."""
        sequence.num_published = num_pages
        return self._skip(sequence, num_pages)

    def adopt(self, sequence: Sequence) -> int:
        """Take over the next pages of a prompt that others have computed since it was admitted; returns the tokens."""
        assert sequence.lease is not None
        page, offset = divmod(sequence.num_computed, self._page_tokens)
        if offset:
            return 0
        num_adopted = 0
        for key in self._shareable(sequence)[page:]:
            if not self._pool.adopt(sequence.lease, key):
                break
            num_adopted += 1
        sequence.num_published += num_adopted
        return self._skip(sequence, num_adopted)

    def publish(self, sequence: Sequence) -> bool:
        """Offer the pages that the last step completed, also those of an answer: the next question brings it along.

        Returns whether there were any.
        """
        num_full = sequence.num_computed // self._page_tokens
        if self._prefix is None or num_full == sequence.num_published:
            return False
        assert sequence.lease is not None
        self._prefix.extend(sequence.keys, sequence.tokens[: num_full * self._page_tokens])
        for index in range(sequence.num_published, num_full):
            self._pool.publish(sequence.lease, index, sequence.keys[1 + index])
        sequence.num_published = num_full
        return True

    def _shareable(self, sequence: Sequence) -> list[bytes]:
        """Keys of the pages that it need not compute where somebody has: all full ones before its last known token."""
        if sequence.is_scoring:
            return []
        return sequence.keys[1 : 1 + (sequence.num_known - 1) // self._page_tokens]

    def _skip(self, sequence: Sequence, num_pages: int) -> int:
        before = sequence.cached_tokens
        sequence.skip(num_pages * self._page_tokens)
        return sequence.cached_tokens - before
