"""API keys: the file that holds them, hashed, and reading it again when it changes.

    [[keys]]
    name = "ci"                    # shown in logs and metrics, never secret
    sha256 = "9f86d0818...0a08"    # of the key itself, which is nowhere on this machine
    max_sessions = 2               # answers that are made at the same time (n of a request count as n); more wait
    max_waiting = 8                # requests that may wait; one more is refused
    tokens_per_minute = 6000       # prompt and answer together
    priority = 0                   # -10 to 10; higher is served first
    manage = false                 # true: may load, unload, pull, create, copy, delete and quantize models

A key has 256 random bits, so one round of SHA-256 keeps it: there is nothing to guess, and a request costs microseconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import threading
import time
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from daemon.errors import ApiError
from daemon.log import get_logger

log = get_logger("quantd.access")

PREFIX = "qd-"
MAX_FILE_BYTES = 1 << 20
MAX_KEYS = 4096
MAX_SECRET_CHARS = 512  # longer credentials are refused before they are hashed
CHECK_S = 1.0  # the file is looked at most so often

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_RANGES = {
    "max_sessions": (1, 256),
    "max_waiting": (0, 4096),
    "tokens_per_minute": (1, 10**9),
    "priority": (-10, 10),
}


@dataclass(frozen=True, slots=True)
class Key:
    """One key with its limits; None: no limit beyond those of the daemon."""

    name: str
    sha256: str  # hex, of the secret's UTF-8
    max_sessions: int | None = None
    max_waiting: int | None = None
    tokens_per_minute: int | None = None
    priority: int = 0
    manage: bool = False


def new_secret() -> str:
    """A new key: 256 random bits, URL-safe."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(secret: str) -> str:
    """What the file keeps of a key."""
    return hashlib.sha256(secret.encode()).hexdigest()


def parse_keys(text: str, where: str) -> dict[str, Key]:
    """Hash -> key.  Raises ApiError INVALID_CONFIG that names `where` and the entry."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as failure:
        raise ApiError("INVALID_CONFIG", f"{where}: {failure}") from failure
    entries = document.pop("keys", [])
    if document or not isinstance(entries, list) or len(entries) > MAX_KEYS:
        raise ApiError(
            "INVALID_CONFIG", f"{where}: holds [[keys]] tables and nothing else, at most {MAX_KEYS}"
        )
    found: dict[str, Key] = {}
    names: set[str] = set()
    for index, entry in enumerate(entries):
        key = _read_entry(entry, f"{where}: keys[{index}]")
        if key.name in names or key.sha256 in found:
            raise ApiError("INVALID_CONFIG", f"{where}: keys[{index}]: the name or the key is there twice")
        names.add(key.name)
        found[key.sha256] = key
    return found


def _read_entry(entry: Any, where: str) -> Key:
    def wrong(message: str) -> ApiError:
        return ApiError("INVALID_CONFIG", f"{where}: {message}")

    if not isinstance(entry, dict):
        raise wrong("must be a table")
    unknown = sorted(set(entry) - {field.name for field in fields(Key)})
    if unknown:
        raise wrong(f"{str(unknown[0])[:64]!r} is no setting of a key")
    name, sha256 = entry.get("name"), entry.get("sha256")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise wrong("name must be 1 to 64 letters, digits, dots, - or _")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise wrong(f"sha256 of {name!r} must be 64 lowercase hexadecimal digits: use `quantd key add`")
    for setting, (least, most) in _RANGES.items():
        value = entry.get(setting, least)
        if type(value) is not int or not least <= value <= most:
            raise wrong(f"{setting} of {name!r} must be a whole number, {least} to {most}")
    if type(entry.get("manage", False)) is not bool:
        raise wrong(f"manage of {name!r} must be true or false")
    return Key(**entry)


def read_keys(path: Path) -> dict[str, Key]:
    """The keys of a file; ApiError INVALID_CONFIG where it cannot be read or says something wrong."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as failure:
        raise ApiError("INVALID_CONFIG", f"{path}: {failure.strerror}") from failure
    if len(data) > MAX_FILE_BYTES:
        raise ApiError("INVALID_CONFIG", f"{path}: is larger than {MAX_FILE_BYTES} bytes")
    try:
        return parse_keys(data.decode("utf-8"), str(path))
    except UnicodeDecodeError as failure:
        raise ApiError("INVALID_CONFIG", f"{path}: is no UTF-8 (byte {failure.start})") from failure


def write_keys(path: Path, keys: Iterable[Key]) -> None:
    """Write the file aside (mode 0600 where it is new), sync it, rename it: readers see the old keys or the new ones.

    Raises ApiError CANNOT_CREATE.
    """
    lines = [
        "# API keys of quantd, hashed; `quantd key --help` says how to change them.  Read again when it changes.",
        "",
    ]
    for key in keys:
        lines.append("[[keys]]")
        for field in fields(Key):
            value = getattr(key, field.name)
            if value is not None and value != field.default:
                lines.append(f"{field.name} = {json.dumps(value)}")  # JSON's strings and numbers are TOML's
        lines.append("")
    try:
        _replace(path, "\n".join(lines))
    except OSError as failure:
        raise ApiError("CANNOT_CREATE", f"{path}: {failure.strerror}") from failure


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class KeyFile:
    """The keys in force.  The file is read again when its identity, size or time of change is another; while what it says
    is wrong, the keys read last stay in force and the log says so once.
    """

    def __init__(self, path: Path) -> None:
        """Raises ApiError INVALID_CONFIG where the file cannot be used: a daemon does not start on guessed keys."""
        self._path = path
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._keys = read_keys(path)
        self._checked_s = time.monotonic()

    def find(self, secret: str) -> Key | None:
        """The key that this secret is; None: nobody's."""
        self._refresh()
        return self._keys.get(hash_of(secret)) if len(secret) <= MAX_SECRET_CHARS else None

    def _look(self) -> tuple[int, int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def _refresh(self) -> None:
        if time.monotonic() - self._checked_s < CHECK_S:
            return
        with self._lock:
            self._checked_s = time.monotonic()
            stamp = self._look()
            if stamp == self._stamp:
                return
            self._stamp = stamp
            try:
                self._keys = read_keys(self._path)
            except ApiError as failure:
                log.error(  # noqa: TRY400  the message says it all
                    "keys_file_unusable", error=failure.message, keys_in_force=len(self._keys)
                )
            else:
                log.info("keys_reloaded", num_keys=len(self._keys))
