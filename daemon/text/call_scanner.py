"""Reads tool calls from text as it comes, so that arguments can be handed on before they are complete."""

from __future__ import annotations

import json
from collections.abc import Collection
from enum import Enum, auto

from daemon.text.calls import CallSyntax

_SPACE = " \n\t\r"
_ARGUMENTS = ("arguments", "parameters")  # models mix them up
_MAX_HEAD_CHARS = 1024  # of what stands in front of a call and of its name


class _State(Enum):
    BEFORE = auto()  # in front of a call
    KEY = auto()  # in front of a key, or of the end of the call
    COLON = auto()
    VALUE = auto()  # in front of a value
    IN_VALUE = auto()
    AFTER = auto()  # behind a value
    NAMED = auto()  # in a name that stands in front of the arguments
    CLOSING = auto()  # behind the last call
    DONE = auto()


class _Value:
    """Finds the end of one JSON value, a character at a time."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False
        self._kind = ""

    def push(self, char: str) -> bool | None:
        """True: `char` ends the value and is part of it; None: it ended before `char`; False: it goes on."""
        if not self._kind:
            self._kind = char
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._in_string = False
                return self._depth == 0
            return False
        if char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            if self._depth == 0:
                return None
            self._depth -= 1
            return self._depth == 0
        elif self._depth == 0 and (char == "," or char in _SPACE):
            return None
        return False


class CallScanner:
    """Reads what follows one mark.  Only the structure is looked at: what is not JSON makes it `broken`."""

    def __init__(self, syntax: CallSyntax, mark: str, tools: Collection[str]) -> None:
        self.broken = False
        self._syntax = syntax
        self._tools = tools
        self._events: list[tuple[str, str]] = []
        self._raw = mark  # of the call that was not told yet
        self._state = _State.BEFORE if syntax.name else _State.NAMED
        self._in_list = False
        self._begin_call()
        self._closing = ""
        if syntax.mark_is_json and mark == syntax.begins[0]:
            self._raw = ""
            self.push(mark)

    def push(self, text: str) -> str | None:
        """Take in more; the text behind the calls once they are complete, otherwise None."""
        for position, char in enumerate(text):
            if self._state is _State.DONE:
                return text[position:]
            self._raw += char
            self._step(char)
            if self.broken:
                self._raw += text[position + 1 :]
                return None
        return "" if self._state is _State.DONE else None

    def take(self) -> list[tuple[str, str]]:
        """What became known: (name, "") at the beginning of each call, then ("", more of its arguments)."""
        events, self._events = self._events, []
        return events

    def unsaid(self) -> str:
        """The text that became no call."""
        return "" if self._told else self._raw

    def _begin_call(self) -> None:
        self._name = ""
        self._key = ""
        self._word = ""
        self._arguments = ""  # that wait for the name
        self._had_arguments = False
        self._told = False  # the call's name was handed on
        self._value = _Value()

    def _step(self, char: str) -> None:
        match self._state:
            case _State.BEFORE:
                self._before(char)
            case _State.KEY:
                self._in_key(char)
            case _State.COLON:
                if char == ":":
                    self._state, self._value, self._word = _State.VALUE, _Value(), ""
                else:
                    self._need_space(char)
            case _State.VALUE:
                if char not in _SPACE:
                    self._state = _State.IN_VALUE
                    self._in_value(char)
            case _State.IN_VALUE:
                self._in_value(char)
            case _State.AFTER:
                self._after(char)
            case _State.NAMED:
                self._named(char)
            case _State.CLOSING:
                self._close(char)
            case _State.DONE:
                pass

    def _need_space(self, char: str) -> None:
        self.broken = self.broken or char not in _SPACE

    def _before(self, char: str) -> None:
        if char == "{":
            self._state = _State.KEY
        elif char == "[" and self._syntax.is_list and not self._in_list:
            self._in_list = True
        elif char == "]" and self._in_list:
            self._state = _State.DONE
        elif not (char == "," and self._in_list):
            self._need_space(char)
        self.broken = self.broken or (not self._told and len(self._raw) > _MAX_HEAD_CHARS)

    def _in_key(self, char: str) -> None:
        if self._word:
            self._word += char
            if char == '"' and not self._word.endswith('\\"'):
                self._key, self._word, self._state = self._word[1:-1], "", _State.COLON
            self.broken = len(self._word) > _MAX_HEAD_CHARS
        elif char == '"':
            self._word = '"'
        elif char == "}":
            self._end_call()
        elif char != ",":
            self._need_space(char)

    def _in_value(self, char: str) -> None:
        ended = self._value.push(char)
        if ended is not None:
            self._take_value(char)
        if ended is None or ended:
            if self._key == "name":
                self._learn_name(self._word)
            self._word = ""
            self._state = _State.AFTER
            if ended is None:
                self._after(char)

    def _take_value(self, char: str) -> None:
        if self._key in _ARGUMENTS:
            self._had_arguments = True
            self._tell(char)
        elif self._key == "name":
            self._word += char
            self.broken = len(self._word) > _MAX_HEAD_CHARS

    def _after(self, char: str) -> None:
        if char == ",":
            self._state = _State.KEY
        elif char == "}":
            self._end_call()
        else:
            self._need_space(char)

    def _named(self, char: str) -> None:
        if self._told:  # the arguments
            if self._had_arguments or char not in _SPACE:
                self._had_arguments = True
                ended = self._value.push(char)
                self._tell(char)
                if ended or ended is None:
                    self._state = _State.DONE
            return
        self._word += char
        if self._word.endswith(self._syntax.arguments):
            self._learn_name(json.dumps(self._word.removesuffix(self._syntax.arguments).strip()))
            self._word = ""
        self.broken = self.broken or len(self._word) > _MAX_HEAD_CHARS

    def _learn_name(self, text: str) -> None:
        try:
            name = json.loads(text)
        except ValueError:
            name = None
        if not isinstance(name, str) or name not in self._tools:
            self.broken = True
            return
        self._name, self._told = name, True
        self._raw = ""
        self._events.append((name, ""))
        if self._arguments:
            self._tell("")

    def _tell(self, text: str) -> None:
        """Hand on arguments, once there is a name to hand them on under."""
        self._arguments += text
        if self._told and self._arguments:
            if self._events and not self._events[-1][0]:
                self._events[-1] = ("", self._events[-1][1] + self._arguments)
            else:
                self._events.append(("", self._arguments))
            self._arguments = ""

    def _end_call(self) -> None:
        if not self._told:
            self.broken = True
            return
        if not self._had_arguments:
            self._tell("{}")
        self._raw = ""
        self._begin_call()
        closing = self._syntax.closing.strip()
        if self._in_list:
            self._state = _State.BEFORE
        elif closing and closing != "]":
            self._state, self._closing = _State.CLOSING, closing
        else:
            self._state = _State.DONE

    def _close(self, char: str) -> None:
        """The closing mark, or whatever stands there in its place."""
        if char in _SPACE and self._closing == self._syntax.closing.strip():
            return
        if not self._closing.startswith(char):
            self.broken = True
            return
        self._closing = self._closing[1:]
        if not self._closing:
            self._raw = ""
            self._state = _State.DONE
