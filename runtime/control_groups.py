"""The control groups that this process is in, and reading their files; versions 1 and 2."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Group:
    """One control group of some controller."""

    version: int  # 1 or 2
    folder: Path
    name: str  # path from the root of the hierarchy, "/system.slice/quantd.service"


def own_groups(own: Path, root: Path, controller: str) -> Iterator[Group]:
    """Our group and each of its parents up to the root.

    `own` is /proc/self/cgroup and `root` /sys/fs/cgroup; tests bring others.  In a container the path may be the host's
    and the folder absent; then the limits are those of the root, which is always part of the walk.
    """
    for line in read_text(own).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and controllers == "":
            bases = [(2, root), (2, root / "unified")]
        elif controller in controllers.split(","):
            bases = [(1, root / controller)]
        else:
            continue
        parts = [part for part in os.path.normpath("/" + path.lstrip("/")).split("/") if part]
        for version, base in bases:
            for length in range(len(parts), -1, -1):
                yield Group(version, base.joinpath(*parts[:length]), "/" + "/".join(parts[:length]))


def read_text(path: Path) -> str:
    """A file of /proc or /sys without its last newline; "" where it is absent, closed to us or no text."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
