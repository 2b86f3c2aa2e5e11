"""An answer's text taken apart as it comes: what the model thinks, what it says, and the tools it calls."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from daemon.text.call_scanner import CallScanner
from daemon.text.calls import CallSyntax
from daemon.text.stream import held_back


@dataclass(frozen=True, slots=True)
class ThinkTags:
    """The marks around what a model thinks."""

    open: str = "<think>"
    close: str = "</think>"


@dataclass(frozen=True, slots=True)
class Said:
    """Text for the caller."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """Text of the model's thoughts."""

    text: str


@dataclass(frozen=True, slots=True)
class Called:
    """More of a tool call: its name once, at its beginning, then fragments of its arguments."""

    index: int
    name: str
    arguments: str


Part = Said | Thought | Called


class PartSplitter:
    """Takes text in pieces of any size and gives its parts; the joined parts do not depend on the pieces.

    A mark that is not complete yet is held back.  What begins like a call and turns out to be none is text again.
    """

    def __init__(
        self,
        *,
        think: ThinkTags | None = None,
        begins_thinking: bool = False,
        calls: CallSyntax | None = None,
        tools: Collection[str] = (),
    ) -> None:
        """`begins_thinking`: the prompt has opened the thoughts already; `tools`: names that may be called."""
        self._think = think
        self._calls = calls
        self._tools = tools
        self.thinking = begins_thinking and think is not None
        self._scanner: CallScanner | None = None
        self._num_calls = 0
        self._held = ""
        self._at_start = True  # nothing but white space was said
        self._trim = self.thinking  # white space around thoughts belongs to the marks

    @property
    def num_calls(self) -> int:
        """Calls that have begun."""
        return self._num_calls

    @property
    def saying(self) -> bool:
        """True while text goes to the caller as it is."""
        return not self.thinking and self._scanner is None

    def push(self, text: str) -> list[Part]:
        """The parts that `text` makes ready."""
        self._held += text
        parts: list[Part] = []
        while self._advance(parts):
            pass
        return parts

    def finish(self) -> list[Part]:
        """The parts that were held back for what did not come."""
        parts: list[Part] = []
        if self._scanner is not None:
            self._give_up_call(parts)
        if self._held:
            self._say(self._held, parts) if not self.thinking else parts.append(Thought(self._held))
            self._held = ""
        return parts

    def _advance(self, parts: list[Part]) -> bool:
        """Do one thing with what is held; False when more text is needed."""
        if self._scanner is not None:
            return self._scan_call(parts)
        return self._scan_thought(parts) if self.thinking else self._scan_text(parts)

    def _scan_thought(self, parts: list[Part]) -> bool:
        assert self._think is not None
        if self._trim:
            self._held = self._held.lstrip("\n")
        at = self._held.find(self._think.close)
        keep = held_back(self._held, (self._think.close,)) if at < 0 else 0
        ready = self._held[: at if at >= 0 else len(self._held) - keep]
        if at < 0:  # line ends before the closing mark belong to it
            keep += len(ready) - len(ready.rstrip("\n"))
        ready = ready.rstrip("\n")
        if ready:
            parts.append(Thought(ready))
            self._trim = False
        if at < 0:
            self._held = self._held[len(self._held) - keep :]
            return False
        self._held = self._held[at + len(self._think.close) :]
        self.thinking, self._trim = False, True
        return True

    def _scan_text(self, parts: list[Part]) -> bool:
        if self._trim:
            self._held = self._held.lstrip("\n")
        marks = self._marks()
        if not marks:
            self._say(self._held, parts)
            self._held = ""
            return False
        found = [(at, -len(mark), mark) for mark in marks if (at := self._held.find(mark)) >= 0]
        if not found:
            cut = len(self._held) - held_back(self._held, marks)
            if self._may_grow_at_start(marks):
                return False
            if (
                self._calls is not None and not self._calls.at_start
            ):  # line ends in front of a call belong to it
                cut = max(len(self._held[:cut].rstrip("\n")), cut - 4)
            self._say(self._held[:cut], parts)
            self._held = self._held[cut:]
            return False
        at, _, mark = min(found)
        before = self._held[:at]
        if self._only_at_start(mark) and (before.strip() or not self._at_start):
            self._say(self._held[: at + len(mark)], parts)
            self._held = self._held[at + len(mark) :]
            return bool(self._held)
        if self._think is not None and mark == self._think.open:
            self.thinking, self._trim = True, True
        else:
            assert self._calls is not None
            # The line end in front of a call belongs to the mark.
            self._say(before.rstrip("\n"), parts)
            self._scanner = CallScanner(self._calls, mark, self._tools)
        self._held = self._held[at + len(mark) :]
        return True

    def _marks(self) -> Sequence[str]:
        marks = list(self._calls.begins) if self._calls is not None else []
        if self._think is not None and self._at_start:
            marks.append(self._think.open)
        if self._calls is not None and self._calls.at_start and not self._at_start:
            return [mark for mark in marks if not self._only_at_start(mark)]
        return marks

    def _only_at_start(self, mark: str) -> bool:
        if self._think is not None and mark == self._think.open:
            return True
        return self._calls is not None and self._calls.at_start

    def _may_grow_at_start(self, marks: Sequence[str]) -> bool:
        """True while nothing but white space came, which a mark would swallow."""
        return self._at_start and not self._held.strip() and bool(marks) and len(self._held) < 64

    def _say(self, text: str, parts: list[Part]) -> None:
        if not text:
            return
        if text.strip():
            self._at_start = False
        self._trim = False
        parts.append(Said(text))

    def _scan_call(self, parts: list[Part]) -> bool:
        scanner = self._scanner
        assert scanner is not None
        text, self._held = self._held, ""
        rest = scanner.push(text)
        for name, arguments in scanner.take():
            if name:
                self._num_calls += 1
                self._at_start = False
            parts.append(Called(self._num_calls - 1, name, arguments))
        if scanner.broken:
            self._give_up_call(parts)
            return bool(self._held)
        if rest is None:
            return False
        self._scanner, self._held = None, rest
        self._trim = True
        return bool(rest)

    def _give_up_call(self, parts: list[Part]) -> None:
        """What was no call, or none any more, is text."""
        assert self._scanner is not None
        text, self._scanner = self._scanner.unsaid(), None
        self._say(text, parts)
