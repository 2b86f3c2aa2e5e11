"""The line in front of a model: who runs next, and when a request is refused instead of made to wait.

Bounded by requests and by prompt tokens; each request by its own deadline and by the longest wait.  A request for several
answers takes a session for each, as far as the model has them, and gives them back one by one.  Whoever is next is
decided anew whenever a place becomes free: the highest priority, then the caller that runs least, then the one that waits
longest.  Waiting raises a request's priority by one every AGING_S, so that none waits for ever behind more important ones.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator

from daemon.access.limits import Caller
from daemon.errors import ApiError

AGING_S = 30.0
MIN_PRIORITY, MAX_PRIORITY = -10, 10
_SMOOTHING = 0.1  # weight of the newest request in the mean time of a request
_FIRST_RETRY_S = 1.0  # before a request has ended
_MAX_RETRY_S = 60.0


class Ticket:
    """One request's place.  `leave` must be called, however the request ends; twice does no harm."""

    def __init__(
        self,
        line: Line,
        caller: Caller,
        *,
        priority: int,
        prompt_tokens: int,
        num_sessions: int,
        number: int,
    ) -> None:
        self.caller = caller
        self.prompt_tokens = prompt_tokens
        self.num_sessions = num_sessions
        self.joined_s = time.monotonic()
        self.admitted_s: float | None = None
        self.place = 0  # from the front, 1 first, as things stand; kept up while somebody reads `positions`
        self.tells = False
        self._line = line
        self._priority = priority
        self._number = number
        self._changed: asyncio.Future[None] | None = None

    @property
    def waited_s(self) -> float:
        """Seconds in the line."""
        return (time.monotonic() if self.admitted_s is None else self.admitted_s) - self.joined_s

    def rank(self, now_s: float) -> tuple[float, int, int]:
        """The smallest is next."""
        aged = self._priority + (now_s - self.joined_s) // AGING_S
        return -aged, self.caller.num_running, self._number

    async def positions(self, deadline: float | None, *, tell: bool = True) -> AsyncIterator[int]:
        """Places from the front, 1 first, whenever it changes (`tell`; otherwise none); ends when the request may run.

        `deadline` is time.monotonic() seconds or None.  Raises ApiError DEADLINE_EXCEEDED at it, QUEUE_TIMEOUT after the
        line's longest wait.
        """
        self.tells = tell
        self._line.tell_places()
        told = 0
        while self.admitted_s is None:
            if tell and self.place != told:
                told = self.place
                yield told
                continue  # the reader took time: look again before sleeping
            self._changed = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(self._line.left_s(self, deadline)):
                    await self._changed
            except TimeoutError:
                if self.admitted_s is None:
                    raise self._line.too_late(self, deadline) from None
            finally:
                self._changed = None

    def wake(self) -> None:
        """Something moved."""
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    def keep(self, num_sessions: int) -> None:
        """Of its sessions it needs so many still; 0 is `leave`."""
        if num_sessions:
            self._line.shrink(self, num_sessions)
        else:
            self.leave()

    def leave(self) -> None:
        """Gives the place up, in the line or at the front."""
        self._line.remove(self)


class Line:
    """Requests that run and requests that wait, of one model.  Belongs to one event loop."""

    def __init__(
        self, *, max_running: int, max_waiting: int, max_waiting_tokens: int, max_wait_s: float
    ) -> None:
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._max_waiting_tokens = max_waiting_tokens
        self._max_wait_s = max_wait_s
        self._waiting: list[Ticket] = []
        self._running: set[Ticket] = set()
        self._num_sessions = 0  # that those who run hold
        self._numbers = itertools.count()
        self._mean_s: float | None = None  # of a request, from its start to its end

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens of the requests that wait."""
        return sum(ticket.prompt_tokens for ticket in self._waiting)

    def join(self, caller: Caller, *, priority: int, prompt_tokens: int, num_sessions: int = 1) -> Ticket:
        """A place for a request, at once at the front where it may run.

        More answers than the model has sessions take all of them: the engine has the rest wait.  Raises ApiError QUEUE_FULL
        or RATE_LIMITED, with the time after which it is worth coming back, and INVALID_ARGUMENT for more answers than the
        key may have sessions.
        """
        caller.require_sessions(num_sessions)
        ticket = Ticket(
            self,
            caller,
            priority=priority,
            prompt_tokens=prompt_tokens,
            num_sessions=min(num_sessions, self._max_running),
            number=next(self._numbers),
        )
        if self._waiting_before(ticket) or not self._has_room(ticket) or not _may_run(ticket):
            self._require_room(caller, prompt_tokens)
        caller.require_tokens(prompt_tokens)
        self._waiting.append(ticket)
        caller.num_waiting += 1
        self._dispatch()
        return ticket

    def remove(self, ticket: Ticket) -> None:
        """Frees the place of a ticket."""
        if ticket in self._running:
            self._running.discard(ticket)
            self._free(ticket, ticket.num_sessions)
            assert ticket.admitted_s is not None
            took_s = time.monotonic() - ticket.admitted_s
            self._mean_s = (
                took_s if self._mean_s is None else self._mean_s + _SMOOTHING * (took_s - self._mean_s)
            )
        elif ticket in self._waiting:
            self._waiting.remove(ticket)
            ticket.caller.num_waiting -= 1
        else:
            return
        self._dispatch()

    def shrink(self, ticket: Ticket, num_sessions: int) -> None:
        """Frees what a ticket that runs holds above `num_sessions`."""
        if ticket in self._running and num_sessions < ticket.num_sessions:
            self._free(ticket, ticket.num_sessions - num_sessions)
            ticket.num_sessions = num_sessions
            self._dispatch()

    def _free(self, ticket: Ticket, num_sessions: int) -> None:
        self._num_sessions -= num_sessions
        ticket.caller.num_running -= num_sessions

    def tell_places(self) -> None:
        """Keeps the places up where somebody wants to know: a request of higher priority may still come between."""
        if not any(ticket.tells for ticket in self._waiting):
            return
        now_s = time.monotonic()
        for place, ticket in enumerate(sorted(self._waiting, key=lambda one: one.rank(now_s)), 1):
            if ticket.place != place:
                ticket.place = place
                ticket.wake()

    def left_s(self, ticket: Ticket, deadline: float | None) -> float:
        """Seconds that this ticket may go on waiting."""
        now_s = time.monotonic()
        ends = ticket.joined_s + self._max_wait_s
        return max(0.0, (ends if deadline is None else min(ends, deadline)) - now_s)

    def too_late(self, ticket: Ticket, deadline: float | None) -> ApiError:
        """Why a ticket that waited too long is refused."""
        if deadline is not None and deadline <= ticket.joined_s + self._max_wait_s:
            return ApiError(
                "DEADLINE_EXCEEDED", "The time for this request ran out while it waited for a session."
            )
        return ApiError(
            "QUEUE_TIMEOUT",
            f"No session became free within {self._max_wait_s:g} seconds.",
            retry_after_s=self._retry_s(),
        )

    def _waiting_before(self, ticket: Ticket) -> bool:
        """True: some other request would run before this one, were a place free."""
        now_s = time.monotonic()
        return any(_may_run(other) and other.rank(now_s) <= ticket.rank(now_s) for other in self._waiting)

    def _has_room(self, ticket: Ticket) -> bool:
        return self._num_sessions + ticket.num_sessions <= self._max_running

    def _require_room(self, caller: Caller, prompt_tokens: int) -> None:
        if not caller.may_wait():
            raise ApiError(
                "QUEUE_FULL",
                f"The key {caller.name!r} has {caller.num_waiting} requests waiting, as many as it may.",
                retry_after_s=self._retry_s(),
            )
        if len(self._waiting) >= self._max_waiting:
            raise ApiError(
                "QUEUE_FULL",
                f"{len(self._running)} requests are running and {len(self._waiting)} waiting; try again later.",
                retry_after_s=self._retry_s(),
            )
        waiting_tokens = self.waiting_tokens
        # A prompt larger than the bound itself may wait alone.
        if waiting_tokens and waiting_tokens + prompt_tokens > self._max_waiting_tokens:
            raise ApiError(
                "QUEUE_FULL",
                f"Prompts of {waiting_tokens} tokens are waiting, and at most {self._max_waiting_tokens} may; try again later.",
                retry_after_s=self._retry_s(),
            )

    def _retry_s(self) -> float:
        """When a place in the line should be free: the line moves by one whenever a running request ends."""
        if self._mean_s is None:
            return _FIRST_RETRY_S
        return min(_MAX_RETRY_S, max(_FIRST_RETRY_S, self._mean_s / max(1, self._max_running)))

    def _dispatch(self) -> None:
        """Lets requests run while there are sessions.  One that needs several holds up those behind it until it has them."""
        while able := [ticket for ticket in self._waiting if _may_run(ticket)]:
            now_s = time.monotonic()
            ticket = min(able, key=lambda one: one.rank(now_s))
            if not self._has_room(ticket):
                break
            self._waiting.remove(ticket)
            self._running.add(ticket)
            self._num_sessions += ticket.num_sessions
            ticket.admitted_s = now_s
            ticket.caller.num_waiting -= 1
            ticket.caller.num_running += ticket.num_sessions
            ticket.wake()
        self.tell_places()


def _may_run(ticket: Ticket) -> bool:
    return ticket.caller.may_run(ticket.num_sessions)
