"""How long a model stays in memory after its last request: "5m", "1h30m", seconds, -1 for ever, 0 not at all."""

from __future__ import annotations

import math
import re

FOREVER = math.inf
MAX_S = 10 * 365 * 86400.0  # beyond this it is for ever, whoever counts

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(ns|us|ms|s|m|h|d)", re.ASCII)
_NUMBER = re.compile(r"-?\d{1,18}(?:\.\d{1,9})?", re.ASCII)


def parse_keep_alive(value: str | float) -> float:
    """Seconds of a duration as people and Ollama's clients write it; FOREVER for anything negative.

    A plain number is seconds.  ValueError says what is allowed.
    """
    if isinstance(value, bool):
        raise _wrong(value)
    if isinstance(value, int | float):
        seconds = float(value)
    else:
        text = value.strip()
        if _NUMBER.fullmatch(text):
            seconds = float(text)
        else:
            sign = -1.0 if text.startswith("-") else 1.0
            text = text.removeprefix("-")
            parts = _PART.findall(text)
            if not parts or "".join(number + unit for number, unit in parts) != text:
                raise _wrong(value)
            seconds = sign * sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    if math.isnan(seconds):
        raise _wrong(value)
    return FOREVER if seconds < 0 or seconds > MAX_S else seconds


def from_ms(milliseconds: int) -> float:
    """Seconds of a keep_alive_ms field of the wire."""
    return parse_keep_alive(milliseconds / 1e3)


def format_keep_alive(seconds: float) -> str:
    """A duration for people: "for ever", "4 min 59 s", "2 h 5 min"."""
    if seconds == FOREVER:
        return "for ever"
    whole = max(0, round(seconds))
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, last = divmod(rest, 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (last, "s")]
    shown = [f"{count} {unit}" for count, unit in parts if count][:2]
    return " ".join(shown) or "0 s"


def _wrong(value: object) -> ValueError:
    return ValueError(
        f"{str(value)[:40]!r} is no duration: write seconds, or numbers with h, m, s, ms, such as 5m or 1h30m; -1 is for ever"
    )
