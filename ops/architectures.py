"""Writes the README's table of architectures from tests/reference/architectures.py: python ops/architectures.py"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "README.md"
_TABLE = re.compile(r"\| general\.architecture \|.*?\nAll types: [^\n]*", re.DOTALL)


def main() -> None:
    """Put the table in the place of the one that stands there."""
    sys.path.insert(0, str(ROOT))
    from tests.reference.architectures import table

    text, n_tables = _TABLE.subn(lambda _: table(), PAGE.read_text(encoding="utf-8"))
    if n_tables != 1:
        raise SystemExit(f"{PAGE.name} has {n_tables} tables of architectures")
    PAGE.write_text(text, encoding="utf-8")
    print(f"wrote the table of {PAGE.name}")


if __name__ == "__main__":
    main()
