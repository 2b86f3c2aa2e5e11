"""Pages of the KV arena: who may take how many, and who holds which.

Two counts are kept apart.  A session *reserves* its worst case when it is admitted, and *takes* pages one by one as its
tokens are computed.  Because the reservations never exceed the arena, a page that is needed in flight is always there:
nothing has to be evicted, swapped or recomputed.

    [0 ........................................ n_pages)
     taken by sessions | reserved, not yet taken | idle

A session is guaranteed its share, `n_pages // sessions`: requests that stay within it are always admitted while a
session is free, unless others borrowed beyond theirs.  A longer request may borrow idle pages.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """A snapshot of the pool."""

    pages_total: int  # pages of the arena
    pages_used: int  # pages that hold keys and values now
    pages_reserved: int  # pages promised to sessions, used ones included
    pages_free: int  # pages on the free list
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
        self._free = list(range(n_pages - 1, -1, -1))
        self._leases: set[Lease] = set()
        self._reserved = 0

    @property
    def has_session(self) -> bool:
        """True: another lease can be made, if its pages fit."""
        return len(self._leases) < self.sessions

    def fits(self, need_pages: int) -> bool:
        """True: `reserve(need_pages)` would succeed now."""
        return self.has_session and self._reserved + need_pages <= self.n_pages

    def reserve(self, need_pages: int) -> Lease:
        """Promise `need_pages` pages to a new session; none is taken yet.  Call only where `fits` says so."""
        if need_pages < 1 or not self.fits(need_pages):
            raise RuntimeError(f"{need_pages} pages cannot be reserved: {self.statistics()}")
        lease = Lease(need_pages)
        self._leases.add(lease)
        self._reserved += need_pages
        return lease

    def grow(self, lease: Lease, used_pages: int) -> None:
        """Take pages until the lease holds `used_pages`; it never shrinks and never exceeds its reservation."""
        if used_pages > lease.reserved or lease not in self._leases:
            raise RuntimeError(
                f"{used_pages} pages wanted of a lease of {lease.reserved}, or it was released"
            )
        for index in range(lease.used, used_pages):
            lease.pages[index] = self._free.pop()
        lease.used = max(lease.used, used_pages)

    def release(self, lease: Lease) -> None:
        """Give back the reservation and every page of the lease, which is dead afterwards."""
        if lease not in self._leases:
            raise RuntimeError("a lease was released twice")
        self._leases.remove(lease)
        self._reserved -= lease.reserved
        self._free.extend(lease.pages[: lease.used][::-1].tolist())
        lease.used = 0

    def statistics(self) -> PoolStatistics:
        return PoolStatistics(
            pages_total=self.n_pages,
            pages_used=self.n_pages - len(self._free),
            pages_reserved=self._reserved,
            pages_free=len(self._free),
            share_pages=self.share_pages,
            sessions_total=self.sessions,
            sessions_used=len(self._leases),
            sessions_borrowing=sum(lease.reserved > self.share_pages for lease in self._leases),
        )

    def check_integrity(self) -> None:
        """Raise RuntimeError unless every page is in exactly one place and the reservations add up."""
        held = [page for lease in self._leases for page in lease.pages[: lease.used].tolist()]
        if sorted(held + self._free) != list(range(self.n_pages)):
            raise RuntimeError(
                f"pages lost or held twice: {len(held)} held, {len(self._free)} free, {self.n_pages} in all"
            )
        reserved = sum(lease.reserved for lease in self._leases)
        if reserved != self._reserved or reserved > self.n_pages:
            raise RuntimeError(f"{reserved} pages reserved, {self._reserved} counted, {self.n_pages} in all")
