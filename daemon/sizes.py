"""Sizes in bytes as people write them: "1GiB", "512 MiB", "1.5G", "1000000"."""

from __future__ import annotations

import re

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
_SIZE = re.compile(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]i?)?b?\s*", re.ASCII | re.IGNORECASE)
MAX_BYTES = 2**62


def parse_size(text: str | int) -> int:
    """Bytes of "1GiB" (2^30), "1GB" or "1G" (10^9), "4096" or 4096; ValueError says what is allowed."""
    if isinstance(text, int) and not isinstance(text, bool):
        size = text
    else:
        match = _SIZE.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(
                f"{str(text)[:40]!r} is no size: write bytes or a number with KiB, MiB, GiB, TiB, KB, MB, GB, TB"
            )
        number, unit = match.groups()
        factor = _UNITS[(unit or "").lower()]
        size = round(float(number) * factor) if "." in number else int(number) * factor
    if not 0 <= size <= MAX_BYTES:
        raise ValueError(f"{size} bytes is out of range")
    return size


def format_size(n_bytes: int) -> str:
    """Bytes for people, in binary units: "512 B", "1.5 GiB"."""
    value = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
