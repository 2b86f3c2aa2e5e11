"""Pages of the KV arena: who may take how many, who holds which, and what idle ones still hold.

Three things are kept apart.  A session *reserves* its worst case when it is admitted, and *takes* pages one by one as
its tokens are computed.  A full page whose tokens are final is *published* under a key that stands for everything up
to its end (runtime/prefix.py); other sessions hold it too instead of computing it again, and it keeps its contents
after the last of them has ended, until its place is needed.

    [0 ............................................................... n_pages)
     held by sessions, some by several | promised, not yet taken | idle: empty or cached

A page is held once, however many sessions share it.  Held and promised pages together never exceed the arena, so a page
that is needed in flight is always there: an empty one, or the cached one that was used longest ago.

A session is guaranteed its share, `n_pages // sessions`.  A longer request borrows idle pages beyond it, and has to give
its session back where somebody cannot have a share otherwise (`borrowers_give`); its pages stay cached meanwhile.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """A snapshot of the pool."""

    pages_total: int  # pages of the arena
    pages_used: int  # pages that sessions hold, shared ones once
    pages_reserved: int  # pages promised to sessions, used ones included, shared ones once
    pages_free: int  # pages that nobody holds
    pages_cached: int  # of these, pages that still hold a published prefix
    share_pages: int  # pages that each session is guaranteed
    sessions_total: int
    sessions_used: int
    sessions_borrowing: int  # sessions that reserved more than their share


class Lease:
    """One session's claim: `reserved` pages at most, of which the first `used` entries of `pages` are taken.

    Made by `PagePool.reserve` and ended by `PagePool.release`; only the pool changes it.
    """

    __slots__ = ("pages", "reserved", "used")

    def __init__(self, reserved: int) -> None:
        self.reserved = reserved
        self.used = 0
        self.pages: npt.NDArray[np.int32] = np.empty(
            reserved, np.int32
        )  # (reserved,) ids in order of position


class PagePool:
    """The pages of one arena.  Not thread-safe: the engine's thread owns it."""

    def __init__(self, n_pages: int, sessions: int) -> None:
        """`n_pages` pages for at most `sessions` leases at a time; ValueError where a session would have no page."""
        if sessions < 1:
            raise ValueError(f"sessions is {sessions}; at least 1 is needed")
        if n_pages < sessions:
            raise ValueError(f"{n_pages} pages are not enough for {sessions} sessions of at least one page")
        self.n_pages = n_pages
        self.sessions = sessions
        self.share_pages = n_pages // sessions
        # Last in, first out: the page that was freed last is most likely still in the caches.
        self._empty = list(range(n_pages - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # published and not held, used longest ago first
        self._holders = [0] * n_pages  # leases that hold each page
        self._key_of: list[bytes | None] = [None] * n_pages  # under which each page is published
        self._page_of: dict[bytes, int] = {}  # the same the other way round: at most n_pages entries
        self._leases: set[Lease] = set()
        self._borrowing = 0  # leases that reserved more than a share
        self._promised = 0  # pages held, shared ones once, and pages that leases may still take

    # Admission.

    @property
    def has_session(self) -> bool:
        """True: another lease can be made, if its pages fit."""
        return len(self._leases) < self.sessions

    def match(self, keys: Sequence[bytes]) -> list[int]:
        """Published pages of the longest beginning of `keys`, in their order."""
        pages = []
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            pages.append(page)
        return pages

    def fits(self, need_pages: int, shared: Sequence[int] = ()) -> bool:
        """True: `reserve(need_pages, shared)` would succeed now."""
        return self.has_session and self._promised + self._added(need_pages, shared) <= self.n_pages

    def reserve(self, need_pages: int, shared: Sequence[int] = ()) -> Lease:
        """Promise `need_pages` pages to a new session, which holds `shared`, of `match`, from the start.

        No other page is taken yet.  Call only where `fits` says so.
        """
        if not len(shared) <= need_pages or need_pages < 1 or not self.fits(need_pages, shared):
            raise RuntimeError(f"{need_pages} pages cannot be reserved: {self.statistics()}")
        self._promised += self._added(need_pages, shared)
        lease = Lease(need_pages)
        self._leases.add(lease)
        self._borrowing += need_pages > self.share_pages
        for page in shared:
            self._hold(lease, page)
        return lease

    def borrowers_give(
        self, need_pages: int, shared: Sequence[int], borrowers: Sequence[Lease]
    ) -> int | None:
        """How many of `borrowers`, from the first on, must be released before `reserve(need_pages, shared)` succeeds.

        None where it would not help, or where the request is no guaranteed one.
        """
        if need_pages > self.share_pages or not self.has_session:
            return None
        missing = self._promised + self._added(need_pages, shared) - self.n_pages
        for num_released, lease in enumerate(borrowers):
            if missing <= 0:
                return num_released
            # What only this lease holds; pages that it shares with another borrower are not counted on.
            pages = lease.pages[: lease.used].tolist()
            own = sum(self._holders[page] == 1 and page not in shared for page in pages)
            missing -= lease.reserved - lease.used + own
        return len(borrowers) if missing <= 0 else None

    def _added(self, need_pages: int, shared: Sequence[int]) -> int:
        """What a new lease adds to held and promised pages: shared ones count only where nobody holds them yet."""
        return need_pages - sum(self._holders[page] > 0 for page in shared)

    # In flight.

    def grow(self, lease: Lease, used_pages: int) -> None:
        """Take pages until the lease holds `used_pages`; it never shrinks and never exceeds its reservation."""
        if used_pages > lease.reserved or lease not in self._leases:
            raise RuntimeError(
                f"{used_pages} pages wanted of a lease of {lease.reserved}, or it was released"
            )
        while lease.used < used_pages:
            self._hold(lease, self._empty.pop() if self._empty else self._evict())

    def adopt(self, lease: Lease, key: bytes) -> bool:
        """Let the lease's next page be the one that is published under `key`; False where none is."""
        page = self._page_of.get(key)
        if page is None:
            return False
        if lease.used >= lease.reserved or lease not in self._leases:
            raise RuntimeError(f"a lease of {lease.reserved} pages cannot adopt one more, or it was released")
        self._promised -= self._holders[page] > 0
        self._hold(lease, page)
        return True

    def publish(self, lease: Lease, index: int, key: bytes) -> None:
        """Offer a page of the lease to others: it is full and will not be written again while it has its key.

        Nothing happens where another page is published under the key, or this one already is.
        """
        if not 0 <= index < lease.used or lease not in self._leases:
            raise RuntimeError(f"page {index} of a lease of {lease.used} pages cannot be published")
        page = int(lease.pages[index])
        if key not in self._page_of and self._key_of[page] is None:
            self._page_of[key] = page
            self._key_of[page] = key

    def release(self, lease: Lease, *, discard: bool = False) -> None:
        """Give back the reservation and every page of the lease, which is dead afterwards.

        The end of a prefix is worth nothing without its beginning, so of these pages the last is evicted first.
        `discard`: what is in the pages is not to be trusted, and nobody is to find it.
        """
        if lease not in self._leases:
            raise RuntimeError("a lease was released twice")
        self._leases.remove(lease)
        self._borrowing -= lease.reserved > self.share_pages
        self._promised -= lease.reserved - lease.used
        for page in lease.pages[: lease.used][::-1].tolist():
            if discard:
                self._unpublish(page)
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            self._promised -= 1
            if self._key_of[page] is None:
                self._empty.append(page)
            else:
                self._cached[page] = None
        lease.used = 0

    def _hold(self, lease: Lease, page: int) -> None:
        if not self._holders[page]:
            self._cached.pop(page, None)
        self._holders[page] += 1
        lease.pages[lease.used] = page
        lease.used += 1

    def _evict(self) -> int:
        """The cached page that was used longest ago, without its contents."""
        page, _ = self._cached.popitem(last=False)
        self._unpublish(page)
        return page

    def _unpublish(self, page: int) -> None:
        key = self._key_of[page]
        if key is not None:
            self._key_of[page] = None
            del self._page_of[key]

    # What is there.

    def statistics(self) -> PoolStatistics:
        """Counts only: another thread may ask while this one works, and sees them at slightly different moments."""
        free = len(self._empty) + len(self._cached)
        return PoolStatistics(
            pages_total=self.n_pages,
            pages_used=self.n_pages - free,
            pages_reserved=self._promised,
            pages_free=free,
            pages_cached=len(self._cached),
            share_pages=self.share_pages,
            sessions_total=self.sessions,
            sessions_used=len(self._leases),
            sessions_borrowing=self._borrowing,
        )

    def check_integrity(self) -> None:
        """Raise RuntimeError unless every page is where it belongs and all counts add up."""
        holders = [0] * self.n_pages
        for lease in self._leases:
            pages = lease.pages[: lease.used].tolist()
            for page in pages:
                holders[page] += 1
            if len(set(pages)) != len(pages):
                raise RuntimeError("pages held twice by one session")
        if holders != self._holders:
            raise RuntimeError("pages held by more or fewer sessions than counted")
        held = [page for page in range(self.n_pages) if holders[page]]
        if sorted([*held, *self._empty, *self._cached]) != list(range(self.n_pages)):
            raise RuntimeError(
                f"pages lost or held twice: {len(held)} held, {len(self._cached)} cached, {len(self._empty)} empty,"
                f" {self.n_pages} in all"
            )
        keys = {key: page for page, key in enumerate(self._key_of) if key is not None}
        if keys != self._page_of or not keys.keys() >= {self._key_of[page] for page in self._cached}:
            raise RuntimeError("the index of published pages does not match the pages")
        promised = len(held) + sum(lease.reserved - lease.used for lease in self._leases)
        if promised != self._promised or promised > self.n_pages:
            raise RuntimeError(f"{promised} pages promised, {self._promised} counted, {self.n_pages} in all")
