import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from runtime.pages import Lease, PagePool


def test_needs_a_page_for_each_session():
    with pytest.raises(ValueError, match="3 pages are not enough for 4 sessions"):
        PagePool(3, 4)
    with pytest.raises(ValueError, match="sessions is 0"):
        PagePool(3, 0)


def test_every_session_gets_its_share_while_nobody_borrows():
    pool = PagePool(17, 4)
    leases = [pool.reserve(pool.share_pages) for _ in range(4)]
    assert not pool.has_session
    for lease in leases:
        pool.grow(lease, lease.reserved)
    pool.check_integrity()
    assert pool.statistics().pages_free == 1


def test_a_session_may_borrow_idle_pages():
    pool = PagePool(16, 4)
    pool.reserve(13)
    assert pool.statistics().sessions_borrowing == 1
    assert pool.fits(3)
    assert not pool.fits(4)


def test_reservations_alone_take_no_page():
    pool = PagePool(8, 2)
    lease = pool.reserve(5)
    assert (pool.statistics().pages_reserved, pool.statistics().pages_used) == (5, 0)
    pool.grow(lease, 2)
    pool.grow(lease, 1)  # it never shrinks
    assert (pool.statistics().pages_reserved, pool.statistics().pages_used) == (5, 2)


def test_the_page_freed_last_is_taken_first():
    pool = PagePool(8, 2)
    first = pool.reserve(3)
    pool.grow(first, 3)
    pages = first.pages.tolist()
    pool.release(first)
    second = pool.reserve(3)
    pool.grow(second, 3)
    assert second.pages.tolist() == pages


def test_misuse_is_refused():
    pool = PagePool(8, 2)
    lease = pool.reserve(3)
    with pytest.raises(RuntimeError):
        pool.grow(lease, 4)
    with pytest.raises(RuntimeError):
        pool.reserve(6)
    with pytest.raises(RuntimeError):
        pool.reserve(0)
    pool.release(lease)
    with pytest.raises(RuntimeError):
        pool.release(lease)
    with pytest.raises(RuntimeError):
        pool.grow(lease, 1)


def test_integrity_notices_a_page_held_twice_and_a_lost_one():
    pool = PagePool(4, 2)
    lease = pool.reserve(2)
    pool.grow(lease, 2)
    lease.pages[0] = lease.pages[1]
    with pytest.raises(RuntimeError, match="held twice"):
        pool.check_integrity()


class PoolMachine(RuleBasedStateMachine):
    leases = Bundle("leases")

    def __init__(self):
        super().__init__()
        self.pool = PagePool(13, 4)
        self.open: set[Lease] = set()

    @rule(target=leases, need=st.integers(1, 14))
    def reserve(self, need):
        reserved = sum(lease.reserved for lease in self.open)
        assert self.pool.fits(need) == (len(self.open) < 4 and reserved + need <= 13)
        if not self.pool.fits(need):
            return None
        lease = self.pool.reserve(need)
        self.open.add(lease)
        return lease

    @rule(lease=leases, share=st.floats(0, 1))
    def grow(self, lease, share):
        if lease in self.open:
            before = lease.pages[: lease.used].tolist()
            self.pool.grow(lease, round(share * lease.reserved))
            assert lease.pages[: len(before)].tolist() == before  # pages in use never move

    @rule(lease=consumes(leases))
    def release(self, lease):
        if lease is not None:
            self.open.remove(lease)
            self.pool.release(lease)

    @invariant()
    def conserved(self):
        self.pool.check_integrity()
        statistics = self.pool.statistics()
        assert statistics.pages_used + statistics.pages_free == 13
        assert statistics.pages_used == sum(lease.used for lease in self.open)
        assert statistics.pages_used <= statistics.pages_reserved <= 13
        assert statistics.sessions_used == len(self.open) <= 4


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
