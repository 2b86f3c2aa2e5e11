"""From a credential to the caller: the one place that decides who asks."""

from __future__ import annotations

from pathlib import Path

from daemon.access.keys import MAX_KEYS, KeyFile
from daemon.access.limits import ANONYMOUS, Caller
from daemon.errors import ApiError


class Gate:
    """Knows every caller of this daemon; belongs to its event loop."""

    def __init__(self, keys_file: Path | None) -> None:
        """None: everybody may ask, without a key.  Raises ApiError INVALID_CONFIG for a file that cannot be used."""
        self._keys = None if keys_file is None else KeyFile(keys_file)
        self._anonymous = Caller(ANONYMOUS)
        self._callers: dict[str, Caller] = {}

    @property
    def needs_key(self) -> bool:
        """True: a request without a key is refused."""
        return self._keys is not None

    def caller(self, credential: str | None) -> Caller:
        """Whose request this is; raises ApiError UNAUTHENTICATED for no key, or one that is nobody's."""
        if self._keys is None:
            return self._anonymous
        if not credential:
            raise ApiError(
                "UNAUTHENTICATED",
                "An API key is needed: send Authorization: Bearer KEY (over gRPC as metadata).",
            )
        key = self._keys.find(credential)
        if key is None:
            raise ApiError("UNAUTHENTICATED", "This API key is not known here.")
        known = self._callers.get(key.name)
        if known is None:
            if len(self._callers) >= 2 * MAX_KEYS:  # names that came and went: those in use are kept
                self._callers = {name: one for name, one in self._callers.items() if one.in_use}
            known = self._callers[key.name] = Caller(key)
        known.renew(key)
        return known
