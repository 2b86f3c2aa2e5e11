"""What one caller uses now, against what its key allows."""

from __future__ import annotations

import time
from collections.abc import Callable

from daemon.access.keys import Key
from daemon.errors import ApiError

ANONYMOUS = Key(name="", sha256="", manage=True)
"""Who asks where no keys are configured: this machine's own programs, without limits of their own."""


class TokenBudget:
    """Tokens per minute as a bucket that fills steadily and holds one minute's worth.

    A prompt is charged when its request is taken, the answer when it ends: the bucket can go into debt, and then the next
    request waits until the debt is paid.
    """

    def __init__(self, tokens_per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.tokens_per_minute = tokens_per_minute
        self._clock = clock
        self._level = float(tokens_per_minute)
        self._at_s = clock()

    def charge(self, tokens: int) -> None:
        """Take tokens, into debt if need be."""
        self._fill()
        self._level -= tokens

    def wait_s(self, tokens: int) -> float:
        """Seconds until `tokens` are there; a wish for more than a minute's worth counts as a full bucket."""
        self._fill()
        missing = min(tokens, self.tokens_per_minute) - self._level
        return max(0.0, missing * 60.0 / self.tokens_per_minute)

    def _fill(self) -> None:
        now_s = self._clock()
        gained = (now_s - self._at_s) * self.tokens_per_minute / 60.0
        self._level = min(float(self.tokens_per_minute), self._level + gained)
        self._at_s = now_s


class Caller:
    """One key in use.  Belongs to one event loop; lives as long as the daemon, so that limits outlast connections."""

    def __init__(self, key: Key, clock: Callable[[], float] = time.monotonic) -> None:
        self.key = key
        self.num_running = 0  # sessions: a request for several answers takes one for each
        self.num_waiting = 0
        self._clock = clock
        self._budget = TokenBudget(key.tokens_per_minute, clock) if key.tokens_per_minute else None

    @property
    def name(self) -> str:
        return self.key.name

    @property
    def cache_scope(self) -> str:
        """Callers share cached prefixes only within a scope: another key's prompts cannot be probed by timing."""
        return self.key.sha256

    @property
    def in_use(self) -> bool:
        """True: requests of this key run or wait."""
        return bool(self.num_running or self.num_waiting)

    def renew(self, key: Key) -> None:
        """The file says something else of this key now; what is in use stays counted."""
        if key == self.key:
            return
        if key.tokens_per_minute != self.key.tokens_per_minute:
            self._budget = TokenBudget(key.tokens_per_minute, self._clock) if key.tokens_per_minute else None
        self.key = key

    def require_manage(self) -> None:
        """Raises ApiError PERMISSION_DENIED where the key may only use models, not change them."""
        if not self.key.manage:
            raise ApiError(
                "PERMISSION_DENIED",
                f"The key {self.name!r} may use models, not manage them; a key with manage = true may.",
            )

    def require_tokens(self, prompt_tokens: int) -> None:
        """Charges the prompt; raises ApiError RATE_LIMITED, with the time to come back, where the budget is used up."""
        if self._budget is None:
            return
        wait_s = self._budget.wait_s(prompt_tokens)
        if wait_s > 0:
            raise ApiError(
                "RATE_LIMITED",
                f"The key {self.name!r} has used its {self.key.tokens_per_minute} tokens per minute.",
                retry_after_s=wait_s,
            )
        self._budget.charge(prompt_tokens)

    def charge(self, tokens: int) -> None:
        """Counts tokens that were generated."""
        if self._budget is not None:
            self._budget.charge(tokens)

    def may_wait(self) -> bool:
        """False: this key has as many requests waiting as it may."""
        return self.key.max_waiting is None or self.num_waiting < self.key.max_waiting

    def may_run(self, num_sessions: int = 1) -> bool:
        """False: with these, this key would have more sessions running than it may."""
        return self.key.max_sessions is None or self.num_running + num_sessions <= self.key.max_sessions

    def require_sessions(self, num_sessions: int) -> None:
        """Raises ApiError INVALID_ARGUMENT for a request that takes more sessions than the key may ever have."""
        if self.key.max_sessions is not None and num_sessions > self.key.max_sessions:
            raise ApiError(
                "INVALID_ARGUMENT",
                f"{num_sessions} answers at once take as many sessions; the key {self.name!r} may have"
                f" {self.key.max_sessions}.",
                field="options.num_choices",
            )
