"""From tokens to text that may be shown: whole characters only, and nothing of a stop text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol


class TokenBytes(Protocol):
    """What the stream needs of a tokenizer."""

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token adds to the text."""
        ...


class TextStream:
    """Turns tokens into text as they come.

    Bytes that may still become a character, and text that may still become a stop text, are held back.  The
    text given out does not depend on how it was cut into tokens.  `stopped` is the stop text that was met;
    it and what follows are never given out.
    """

    def __init__(self, tokenizer: TokenBytes, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = StopFilter(stop)

    @property
    def stopped(self) -> str | None:
        """The stop text that was met."""
        return self._stops.stopped

    def push(self, token_id: int) -> str:
        """Return the text that a token makes ready; often empty."""
        return self._stops.push(self._decoder.decode(self._tokenizer.token_bytes(token_id)))

    def finish(self) -> str:
        """Return what was held back; bytes that never became a character are U+FFFD."""
        return self._stops.push(self._decoder.decode(b"", final=True)) + self._stops.finish()


class StopFilter:
    """Gives text out up to the first stop text; holds back what may still become one."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.stopped: str | None = None
        self._stop = tuple(text for text in stop if text)
        self._held = ""

    def push(self, text: str) -> str:
        """Return what `text` makes ready."""
        if self.stopped is not None:
            return ""
        self._held += text
        if not self._stop:
            return self.finish()
        met = self._find_stop()
        if met is not None:
            start, self.stopped = met
            ready, self._held = self._held[:start], ""
            return ready
        cut = len(self._held) - held_back(self._held, self._stop)
        ready, self._held = self._held[:cut], self._held[cut:]
        return ready

    def finish(self) -> str:
        """Return what was held back."""
        ready, self._held = self._held, ""
        return ready

    def _find_stop(self) -> tuple[int, str] | None:
        """The stop text that is complete first, as reading character by character would find it."""
        found = ((self._held.find(stop), stop) for stop in self._stop)
        complete = [(start + len(stop), start, stop) for start, stop in found if start >= 0]
        if not complete:
            return None
        _, start, stop = min(complete)
        return start, stop


def held_back(text: str, marks: Sequence[str]) -> int:
    """How many characters at the end of `text` could begin one of `marks`."""
    longest = max(map(len, marks), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        tail = text[-size:]
        if any(mark.startswith(tail) for mark in marks):
            return size
    return 0
