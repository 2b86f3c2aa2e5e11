"""What a service knows of the call that it answers, whatever border it came over."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from daemon.access.limits import ANONYMOUS, Caller


def new_request_id() -> str:
    """A short unique id, shown to the client and written to the log."""
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a client."""

    request_id: str = field(default_factory=new_request_id)
    deadline: float | None = None  # time.monotonic() seconds; None: no deadline
    on_stall: Callable[[], object] | None = None  # told when the client reads nothing for too long
    caller: Caller = field(default_factory=lambda: Caller(ANONYMOUS))  # whose limits count

    @property
    def cache_scope(self) -> str:
        """Callers share computed prefixes only within a scope: that of their API key."""
        return self.caller.cache_scope

    @classmethod
    def within(cls, seconds: float | None, request_id: str = "", caller: Caller | None = None) -> Call:
        """A call that must end within `seconds` from now (None: no limit)."""
        deadline = None if seconds is None else time.monotonic() + seconds
        return cls(request_id or new_request_id(), deadline, caller=caller or Caller(ANONYMOUS))
