"""A JSON file of a Hugging Face folder, with typed access: every foreign value is checked where it is read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from runtime.errors import ModelFormatError

MAX_JSON_BYTES = 256 << 20  # the largest published tokenizer.json has 33 MB


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a file holds; ModelFormatError where it is none, OSError."""
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise ModelFormatError(
            "BAD_JSON", "", 0, f"{path}: {size:,} bytes; at most {MAX_JSON_BYTES:,} are read"
        )
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelFormatError("BAD_JSON", "", 0, f"{path}: no JSON: {str(error)[:120]}") from None
    if not isinstance(value, dict):
        raise ModelFormatError("BAD_JSON", "", 0, f"{path}: not a JSON object")
    return value


def read_json_if_there(path: Path) -> dict[str, Any]:
    """Return the object that a file holds, {} where there is no such file."""
    try:
        return read_json(path)
    except FileNotFoundError:
        return {}


class Config:
    """config.json, or a part of it."""

    def __init__(self, path: Path, values: Mapping[str, Any], prefix: str = "") -> None:
        self.path = path
        self._values = values
        self._prefix = prefix

    def __contains__(self, key: str) -> bool:
        """Say whether the key is there and not null."""
        return self._values.get(key) is not None

    def get(self, key: str) -> Any:
        """Return a value as it is, None when absent."""
        return self._values.get(key)

    def with_defaults(self, defaults: Mapping[str, Any]) -> Config:
        """Return the same with values for keys that are absent or null."""
        given = {key: value for key, value in self._values.items() if value is not None}
        return Config(self.path, {**defaults, **given}, self._prefix)

    def part(self, key: str) -> Config:
        """Return an object within, an empty one when absent."""
        value = self._values.get(key) or {}
        if not isinstance(value, dict):
            self.fail(key, "must be an object")
        return Config(self.path, value, f"{self._prefix}{key}.")

    def integer(
        self, key: str, default: int | None = None, *, minimum: int = 1, maximum: int = 1 << 24
    ) -> int:
        """Return an integer within the bounds; `default` when absent, an error when that is None."""
        value = self._values.get(key)
        if value is None:
            value = self._default(key, default)
        if type(value) is not int or not minimum <= value <= maximum:
            self.fail(key, f"is {str(value)[:40]}; it must be an integer from {minimum} to {maximum}")
        return value

    def number(
        self, key: str, default: float | None = None, *, minimum: float = -1e30, maximum: float = 1e30
    ) -> float:
        """Return a finite number within the bounds; `default` when absent, an error when that is None."""
        value = self._values.get(key)
        if value is None:
            value = self._default(key, default)
        if type(value) not in {int, float} or not math.isfinite(value) or not minimum <= value <= maximum:
            self.fail(key, f"is {str(value)[:40]}; it must be a number from {minimum:g} to {maximum:g}")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """Return a boolean; `default` when absent."""
        value = self._values.get(key)
        if value is None:
            return default
        if type(value) is not bool:
            self.fail(key, f"is {str(value)[:40]}; it must be true or false")
        return value

    def string(self, key: str, default: str) -> str:
        """Return a string; `default` when absent."""
        value = self._values.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            self.fail(key, f"is {str(value)[:40]}; it must be a string")
        return value

    def numbers(self, key: str) -> list[float]:
        """Return a list of finite numbers, empty when absent."""
        values = self._values.get(key) or []
        if not isinstance(values, list) or not all(
            type(value) in {int, float} and math.isfinite(value) for value in values
        ):
            self.fail(key, "must be a list of numbers")
        return [float(value) for value in values]

    def fail(self, key: str, what: str) -> NoReturn:
        """Raise ModelFormatError for a value."""
        key = self._prefix + key
        raise ModelFormatError("BAD_CONFIG", key, 0, f"{self.path}: {key} {what}")

    def _default(self, key: str, default: float | None) -> Any:
        if default is None:
            self.fail(key, "is missing")
        return default
