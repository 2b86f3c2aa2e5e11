"""Names of models: `[host[:port]/][owner/]name[:tag]`.  Every name that becomes a path or a URL passes here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from daemon.errors import ApiError

DEFAULT_TAG = "latest"
MAX_NAME_BYTES = 200
MAX_PARTS = 4

# No part begins with a dot or a dash, so "..", ".", options and hidden files cannot be spelled.
_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,127})", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,127})(?::\d{1,5})?", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class ModelName:
    """A checked name; `str` gives it back with its tag."""

    path: str  # "llama3.2", "library/llama3.2", "hf.co/owner/repo"
    tag: str = DEFAULT_TAG

    def __str__(self) -> str:
        return f"{self.path}:{self.tag}"

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts between slashes."""
        return tuple(self.path.split("/"))

    @property
    def file_name(self) -> str:
        """The name as a plain file name, for the manifest."""
        return quote(str(self), safe="") + ".json"

    @classmethod
    def of_file_name(cls, file_name: str) -> ModelName | None:
        """The inverse of `file_name`; None for any other file."""
        name = _parse(unquote(file_name.removesuffix(".json")))
        return name if name is not None and name.file_name == file_name else None

    @classmethod
    def parse(cls, text: str, field: str = "name") -> ModelName:
        """Checks a name; INVALID_ARGUMENT names the field."""
        name = _parse(text)
        if name is None:
            raise ApiError(
                "INVALID_ARGUMENT",
                f"{field}: must be a name such as llama3.2:3b or hf.co/owner/repo:Q4_K_M"
                f" (letters, digits, '.', '_', '-'; at most {MAX_NAME_BYTES} bytes), not {text[:100]!r}",
                field=field,
            )
        return name

    @classmethod
    def find(cls, text: str) -> ModelName | None:
        """The name if it is one: for lookups, where a malformed name is simply not there."""
        return _parse(text)


def _parse(text: str) -> ModelName | None:
    if len(text) > MAX_NAME_BYTES:
        return None
    path, colon, tag = text.rpartition(":")
    if not colon or "/" in tag:
        path, tag = text, DEFAULT_TAG
    parts = path.split("/")
    if not 1 <= len(parts) <= MAX_PARTS or not _PART.fullmatch(tag):
        return None
    first = _HOST if len(parts) > 2 else _PART
    if not first.fullmatch(parts[0]) or not all(_PART.fullmatch(part) for part in parts[1:]):
        return None
    return ModelName(path, tag)
