"""What a model host can be in the middle of, and within which bounds it works."""

from __future__ import annotations

import enum


class State(enum.Enum):
    """What the host can do now."""

    EMPTY = "no model is loaded"
    LOADING = "the model is being loaded"
    READY = "ready"
    DRAINING = "the daemon is shutting down"
    FAILED = "the engine failed"


class HostLimits:
    """Bounds and defaults of a host."""

    def __init__(
        self,
        *,
        max_waiting: int = 64,
        max_models: int = 3,
        keep_alive_s: float = 300.0,
        load_timeout_s: float = 300.0,
        exit_on_failure: bool = False,
    ) -> None:
        """`max_waiting` requests a model beside its sessions, `max_models` in memory at once, `keep_alive_s` of a model that
        a request loaded, `load_timeout_s` that a request without a deadline waits for its model; `exit_on_failure`: a model
        whose engine failed ends the process also where others could go on.
        """
        self.max_waiting = max_waiting
        self.max_models = max_models
        self.keep_alive_s = keep_alive_s
        self.load_timeout_s = load_timeout_s
        self.exit_on_failure = exit_on_failure
