"""How many cores this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Return the cores that the affinity mask and the control group's CPU quota leave us, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(_OWN_CGROUPS, _CGROUP_ROOT)
    # Half a core more than a whole number still deserves a thread.
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def cpu_quota(own_cgroups: Path, root: Path) -> float | None:
    """Return the cores that the tightest control group above us grants, None without a quota."""
    quotas = []
    for line in _read(own_cgroups).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            quotas += [_quota_v2(folder) for folder in _up_to(root, root / path.lstrip("/"))]
        elif "cpu" in controllers.split(","):
            base = root / "cpu"
            quotas += [_quota_v1(folder) for folder in _up_to(base, base / path.lstrip("/"))]
    return min((quota for quota in quotas if quota is not None), default=None)


def _up_to(root: Path, folder: Path) -> list[Path]:
    """Return folder and its parents up to and including root."""
    return [each for each in (folder, *folder.parents) if each.is_relative_to(root)]


def _quota_v2(folder: Path) -> float | None:
    parts = _read(folder / "cpu.max").split()
    if len(parts) != 2 or parts[0] == "max":
        return None
    return _ratio(parts[0], parts[1])


def _quota_v1(folder: Path) -> float | None:
    return _ratio(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float | None:
    try:
        cores = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None
    return cores if cores > 0 else None  # version 1 writes -1 for none


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
