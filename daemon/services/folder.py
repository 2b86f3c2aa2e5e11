"""The model folder: GGUF files by name.  Clients give names, never paths, and a name is only ever looked up in the
folder's own listing, so there is nothing that a name could escape to.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.errors import ApiError

if TYPE_CHECKING:
    from daemon.store.manifest import Overrides

SUFFIX = ".gguf"
MAX_NAME_BYTES = 200
_SPLIT = re.compile(r"(?P<name>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})")


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model file on disk; of a split model, the first file."""

    name: str
    path: Path
    size_bytes: int  # of this file
    modified_ns: int
    overrides: Overrides | None = None  # what a name of the store adds; None for plain files
    changed_ns: int = 0  # when the name was last given; 0: with the file


def model_name(path: Path) -> str:
    """The name that requests use: the file's name without ".gguf", and without "-00001-of-00003" of a split model."""
    stem = path.name.removesuffix(SUFFIX)
    split = _SPLIT.fullmatch(stem)
    return split["name"] if split else stem


def entry_of(path: Path) -> ModelEntry:
    """The entry of a file that the operator named; OSError if it is not there."""
    facts = path.stat()
    return ModelEntry(model_name(path), path, facts.st_size, facts.st_mtime_ns)


class ModelFolder:
    """Lists and finds the models of one folder; None: no folder is configured, so there are none.

    Where the daemon may not write to that folder, `output` is a second one: new models go there and are found there too.
    A name that stands in both is the first folder's.
    """

    def __init__(self, path: Path | None, output: Path | None = None) -> None:
        self.path = path
        self.output = output or path

    def entries(self) -> list[ModelEntry]:
        """Every model by name.  Only regular files in the folders themselves count: no links, no subfolders."""
        found: dict[str, ModelEntry] = {}
        for folder in dict.fromkeys((self.path, self.output)):
            for entry in _scan(folder) if folder else ():
                found.setdefault(entry.name, entry)
        return sorted(found.values(), key=lambda one: one.name)

    def find(self, name: str) -> ModelEntry | None:
        """The model of that name, or None.  Absent, forbidden and malformed names look the same."""
        if not _can_be_a_name(name):
            return None
        if not _SPLIT.fullmatch(name):
            for folder in dict.fromkeys((self.path, self.output)):
                entry = _plain_file(folder / (name + SUFFIX)) if folder else None
                if entry is not None:
                    return entry
        return next((entry for entry in self.entries() if entry.name == name), None)

    def find_folder(self, name: str, inside: str) -> Path | None:
        """A folder of that name in the model folder that holds a file `inside`, or None.

        Raises ApiError INVALID_ARGUMENT where something in it is a link or no plain file: it could lead anywhere.
        """
        for parent in dict.fromkeys((self.path, self.output)):
            for path in _subfolders(parent) if parent else ():
                if path.name == name and _is_plain(path / inside):
                    _require_plain(path)
                    return path
        return None

    def find_plain(self, name: str) -> Path | None:
        """The file of exactly that name in the folder itself, or None; no link, nothing hidden."""
        if not _can_be_a_name(name):
            return None
        for folder in dict.fromkeys((self.path, self.output)):
            if folder is not None and _is_plain(folder / name):
                return folder / name
        return None

    def new_file(self, name: str, field: str, *, suffix: str = SUFFIX, replaces: bool = False) -> Path:
        """The path of a file yet to be made; refuses names that are no plain file name, and names that are taken.

        `replaces`: the name may be that of a plain file of the folder in which new ones are made.
        """
        if self.output is None:
            raise ApiError("PERMISSION_DENIED", "This daemon has no model folder (models_dir) to write to.")
        plain = name.removesuffix(suffix)
        if (
            not plain
            or len(plain.encode()) > MAX_NAME_BYTES
            or plain.startswith((".", "-"))
            or "/" in plain
            or not plain.isprintable()
            or _SPLIT.fullmatch(plain)
        ):
            raise ApiError(
                "INVALID_ARGUMENT",
                f"{field}: must be a plain file name of at most {MAX_NAME_BYTES} bytes",
                field=field,
            )
        path = self.output / (plain + suffix)
        found = self.find(plain) if suffix == SUFFIX else None
        is_taken = found is not None or os.path.lexists(path)
        if is_taken and not (replaces and _is_plain(path) and (found is None or found.path == path)):
            what = "a model" if suffix == SUFFIX else "a file"
            raise ApiError("OUTPUT_EXISTS", f"{field}: {what} named {plain!r} exists already", field=field)
        return path


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [
                Path(entry.path)
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
            ]
    except OSError:
        return []


def _is_plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _require_plain(folder: Path) -> None:
    for path, folders, files in os.walk(folder):
        for name in (*folders, *files):
            mode = os.lstat(os.path.join(path, name)).st_mode  # noqa: PTH118 - names of os.walk
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise ApiError(
                    "INVALID_ARGUMENT",
                    f"source: the folder holds {name!r}, which is a link or no plain file",
                    field="source",
                )


def _scan(folder: Path) -> list[ModelEntry]:
    try:
        with os.scandir(folder) as files:
            entries = [_entry(file) for file in sorted(files, key=lambda one: one.name)]
    except OSError:
        # A folder that is gone or closed to us holds no models; a client need not know which.
        return []
    return [entry for entry in entries if entry is not None]


def _can_be_a_name(name: str) -> bool:
    """Of a file in the folder itself, and not a hidden one."""
    return (
        name != ""
        and "/" not in name
        and "\0" not in name
        and not name.startswith(".")
        and len(name.encode()) <= MAX_NAME_BYTES
    )


def _plain_file(path: Path) -> ModelEntry | None:
    try:
        facts = path.lstat()
    except (OSError, UnicodeEncodeError):
        return None
    return (
        ModelEntry(model_name(path), path, facts.st_size, facts.st_mtime_ns)
        if stat.S_ISREG(facts.st_mode)
        else None
    )


def _entry(file: os.DirEntry[str]) -> ModelEntry | None:
    if not file.name.endswith(SUFFIX) or file.name.startswith("."):
        return None
    try:
        facts = file.stat(follow_symlinks=False)
    except OSError:
        return None
    split = _SPLIT.fullmatch(file.name.removesuffix(SUFFIX))
    if not stat.S_ISREG(facts.st_mode) or (split and int(split["index"]) != 1):
        return None
    path = Path(file.path)
    return ModelEntry(model_name(path), path, facts.st_size, facts.st_mtime_ns)
