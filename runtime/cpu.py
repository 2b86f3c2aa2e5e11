"""How many cores this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

from runtime.control_groups import own_groups, read_text

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
    quotas = [
        _quota_v2(group.folder) if group.version == 2 else _quota_v1(group.folder)
        for group in own_groups(own_cgroups, root, "cpu")
    ]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_v2(folder: Path) -> float | None:
    parts = read_text(folder / "cpu.max").split()
    if len(parts) != 2 or parts[0] == "max":
        return None
    return _ratio(parts[0], parts[1])


def _quota_v1(folder: Path) -> float | None:
    return _ratio(read_text(folder / "cpu.cfs_quota_us"), read_text(folder / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float | None:
    try:
        cores = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None
    return cores if cores > 0 else None  # version 1 writes -1 for none
