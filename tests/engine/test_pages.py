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


def computed(pool, n_pages, keys):
    """A lease whose first pages are full and published under `keys`."""
    lease = pool.reserve(n_pages)
    pool.grow(lease, n_pages)
    for index, key in enumerate(keys):
        pool.publish(lease, index, key)
    return lease


def test_a_shared_page_counts_once():
    pool = PagePool(8, 4)
    first = computed(pool, 4, [b"a", b"b"])
    shared = pool.match([b"a", b"b", b"c"])
    assert shared == first.pages[:2].tolist()
    # Alone, 6 pages would not fit beside the 4; sharing 2 of them, they do.
    assert not pool.fits(6)
    second = pool.reserve(6, shared)
    pool.grow(second, 6)
    assert (pool.statistics().pages_used, pool.statistics().pages_reserved) == (8, 8)
    assert second.pages[:2].tolist() == shared
    pool.check_integrity()
    pool.release(first)
    assert pool.statistics().pages_used == 6  # the shared ones stay with the second
    pool.release(second)
    pool.check_integrity()
    assert (pool.statistics().pages_free, pool.statistics().pages_cached) == (8, 2)


def test_a_page_keeps_its_prefix_until_its_place_is_needed():
    pool = PagePool(6, 2)
    pool.release(computed(pool, 2, [b"a", b"b"]))
    pool.release(computed(pool, 2, [b"c", b"d"]))
    lease = pool.reserve(3)
    pool.grow(lease, 2)  # the two that were never used
    assert pool.match([b"a", b"b"])
    pool.grow(lease, 3)
    assert len(pool.match([b"a", b"b"])) == 1  # used longest ago, and the end before the beginning
    assert len(pool.match([b"c", b"d"])) == 2
    pool.check_integrity()


def test_using_a_cached_page_again_makes_it_the_youngest():
    pool = PagePool(4, 2)
    for key in (b"a", b"b"):
        pool.release(computed(pool, 1, [key]))
    pool.release(pool.reserve(1, pool.match([b"a"])))
    lease = pool.reserve(3)
    pool.grow(lease, 3)
    assert pool.match([b"a"])
    assert not pool.match([b"b"])


def test_cached_pages_give_way_to_reservations_but_held_ones_never():
    pool = PagePool(6, 2)
    pool.release(computed(pool, 6, [b"%d" % index for index in range(6)]))
    first = pool.reserve(4, pool.match([b"0", b"1"]))
    assert pool.fits(2)
    assert not pool.fits(3)
    second = pool.reserve(2)
    pool.grow(second, 2)
    pool.grow(first, 4)
    pool.check_integrity()
    assert pool.match([b"0", b"1", b"2"]) == first.pages[:2].tolist()


def test_pages_are_adopted_in_flight():
    pool = PagePool(8, 2)
    first = computed(pool, 4, [b"a"])
    second = pool.reserve(4)
    assert pool.statistics().pages_reserved == 8
    assert pool.adopt(second, b"a")
    assert not pool.adopt(second, b"b")
    assert (pool.statistics().pages_reserved, second.used) == (7, 1)
    pool.check_integrity()
    pool.release(first)
    pool.check_integrity()


def test_the_first_page_under_a_key_stays_the_published_one():
    pool = PagePool(8, 2)
    first, second = computed(pool, 2, [b"a"]), computed(pool, 2, [b"a", b"b"])
    assert pool.match([b"a", b"b"]) == [first.pages[0], second.pages[1]]
    pool.check_integrity()
    pool.release(second)
    assert pool.statistics().pages_cached == 1
    pool.check_integrity()


def test_what_is_discarded_is_not_found_again():
    pool = PagePool(8, 2)
    lease = computed(pool, 3, [b"a", b"b"])
    other = pool.reserve(3, pool.match([b"a"]))
    pool.release(lease, discard=True)
    assert pool.match([b"a", b"b"]) == []
    pool.check_integrity()
    pool.release(other)
    assert pool.statistics().pages_cached == 0
    pool.check_integrity()


class PoolMachine(RuleBasedStateMachine):
    """Leases come and go; what their pages hold is told by `contents`, as a model would read it."""

    leases = Bundle("leases")

    def __init__(self):
        super().__init__()
        self.pool = PagePool(13, 4)
        self.open: dict[Lease, bytes] = {}  # with the letter that its text is made of
        self.contents: dict[int, bytes] = {}  # page -> key of what was written there last

    @rule(target=leases, need=st.integers(1, 14), letter=st.sampled_from([b"a", b"b", b"c"]))
    def reserve(self, need, letter):
        shared = self.pool.match([letter * (index + 1) for index in range(need - 1)])
        held = {page for lease in self.open for page in lease.pages[: lease.used].tolist()}
        promised = len(held) + sum(lease.reserved - lease.used for lease in self.open)
        added = need - len(held & set(shared))
        assert self.pool.fits(need, shared) == (len(self.open) < 4 and promised + added <= 13)
        if not self.pool.fits(need, shared):
            return None
        lease = self.pool.reserve(need, shared)
        self.open[lease] = letter
        return lease

    @rule(lease=leases, share=st.floats(0, 1))
    def grow(self, lease, share):
        if lease in self.open:
            before = lease.pages[: lease.used].tolist()
            self.pool.grow(lease, round(share * lease.reserved))
            assert lease.pages[: len(before)].tolist() == before  # pages in use never move
            for index in range(len(before), lease.used):
                self.contents[int(lease.pages[index])] = self.open[lease] * (index + 1)

    @rule(lease=leases, share=st.floats(0, 1))
    def publish(self, lease, share):
        if lease in self.open:
            for index in range(int(share * lease.used)):
                self.pool.publish(lease, index, self.open[lease] * (index + 1))

    @rule(lease=leases)
    def adopt(self, lease):
        if lease in self.open and lease.used < lease.reserved:
            self.pool.adopt(lease, self.open[lease] * (lease.used + 1))

    @rule(lease=consumes(leases), discard=st.booleans())
    def release(self, lease, discard):
        if lease is not None:
            del self.open[lease]
            self.pool.release(lease, discard=discard)

    @invariant()
    def conserved(self):
        self.pool.check_integrity()
        statistics = self.pool.statistics()
        assert statistics.pages_used + statistics.pages_free == 13
        held = {page for lease in self.open for page in lease.pages[: lease.used].tolist()}
        assert statistics.pages_used == len(held)
        assert statistics.pages_used <= statistics.pages_reserved <= 13
        assert statistics.sessions_used == len(self.open) <= 4

    @invariant()
    def every_lease_reads_its_own_text(self):
        for lease, letter in self.open.items():
            for index, page in enumerate(lease.pages[: lease.used].tolist()):
                assert self.contents[page] == letter * (index + 1)

    @invariant()
    def what_was_promised_can_be_taken(self):
        rest = sum(lease.reserved - lease.used for lease in self.open)
        assert rest <= self.pool.statistics().pages_free


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
