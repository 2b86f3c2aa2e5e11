"""Finding special-token text: leftmost, then longest, in time linear in the text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_END = ""  # key of a token's id in a node; no character of a text is empty


class SpecialTokens:
    """A set of token texts that are taken whole; `texts` maps text to token id, none empty."""

    def __init__(self, texts: Mapping[str, int]) -> None:
        self._root: dict[str, Any] = {}
        for text, token_id in texts.items():
            node = self._root
            for char in text:
                node = node.setdefault(char, {})
            node[_END] = token_id
        first = "".join(map(re.escape, self._root))
        self._first = re.compile(f"[{first}]") if first else None

    def match(self, text: str, start: int) -> tuple[int, int] | None:
        """The longest token at `start`: (token id, end), or None."""
        node = self._root
        found = None
        for position in range(start, len(text)):
            child = node.get(text[position])
            if child is None:
                break
            node = child
            token_id = node.get(_END)
            if token_id is not None:
                found = (token_id, position + 1)
        return found

    def find_all(self, text: str) -> Iterator[tuple[int, int, int]]:
        """Every token in `text` from left to right, without overlaps: (start, end, token id)."""
        if self._first is None:
            return
        candidate = self._first.search(text)
        while candidate is not None:
            start = candidate.start()
            found = self.match(text, start)
            if found is not None:
                yield start, found[1], found[0]
            candidate = self._first.search(text, start + 1 if found is None else found[1])

    def ends_inside(self, text: str) -> int | None:
        """Where a token begins that `text` cuts off at its end, or None."""
        for start in range(max(0, len(text) - 256), len(text)):
            node: dict[str, Any] | None = self._root
            for char in text[start:]:
                node = node.get(char) if node is not None else None
            if node is not None:
                return start
        return None
