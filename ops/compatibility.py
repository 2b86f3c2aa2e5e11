"""Writes ops/compatibility.md from the rows that tests/compatibility proves: python ops/compatibility.py"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "ops" / "compatibility.md"

HEAD = """# Compatibility with the APIs of OpenAI, Anthropic and Ollama

Written by `ops/compatibility.py` from `tests/compatibility/registry.py`; each row is a test there. *Done*: the field does what
its API documents. *Refused*: a 400 that names it. *Ignored*: taken and without effect, for the reason given. A field that an API
does not document is ignored, as OpenAI does.
"""


def render() -> str:
    """The whole page."""
    sys.path.insert(0, str(ROOT))
    from tests.compatibility.registry import ENDPOINTS, FIELDS

    lines = [HEAD, "## Endpoints\n", "| endpoint | what | answer |", "| --- | --- | --- |"]
    lines += [f"| {one.method} {one.path} | {one.what} | {one.status} |" for one in ENDPOINTS]
    for path, rows in FIELDS.items():
        method = next(one.method for one in ENDPOINTS if one.path == path)
        lines += [
            f"\n## {method} {path}\n",
            "| field | outcome | tried with | note |",
            "| --- | --- | --- | --- |",
        ]
        for row in rows:
            value = json.dumps(row.value).replace("|", "\\|")
            lines.append(f"| `{row.field}` | {row.outcome} | `{value}` | {row.note} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
