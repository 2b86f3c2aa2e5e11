"""How much memory this process can still get: from the machine, and from every control group above it.

Pages of mapped files count as available, because the kernel gives them back when asked; anonymous memory does not.
Swap does not count: a model in swap is not served.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime.control_groups import own_groups, read_text

_KIB = 1024
_NO_LIMIT_BYTES = 1 << 60  # version 1 writes a number near 2^63 for "no limit"


@dataclass(frozen=True, slots=True)
class Available:
    """Bytes that can still be taken, and who says so."""

    n_bytes: int
    source: str  # "MemAvailable", "control group /quantd.slice (limit 4294967296 bytes)", ...


def available_memory(proc: Path = Path("/proc"), sysfs: Path = Path("/sys")) -> Available:
    """The least of what the machine has and what the control groups leave.  The folders are for tests."""
    candidates = [_machine(proc, sysfs), *_groups(proc, sysfs / "fs" / "cgroup")]
    return min(candidates, key=lambda available: available.n_bytes)


def available_memory_bytes() -> int:
    """Bytes that this process can still take."""
    return available_memory().n_bytes


def own_anonymous_bytes(proc: Path = Path("/proc")) -> int:
    """Anonymous memory that this process holds already, and that `available_memory` therefore no longer counts."""
    return _fields(proc / "self" / "status").get("RssAnon", 0) * _KIB


def _machine(proc: Path, sysfs: Path) -> Available:
    """MemAvailable; where /proc/meminfo is hidden (ProcSubset=pid), the same from the memory nodes or sysinfo(2)."""
    available = _fields(proc / "meminfo").get("MemAvailable")
    if available is not None:
        return Available(available * _KIB, "MemAvailable")
    nodes = [_node_bytes(path) for path in sorted((sysfs / "devices/system/node").glob("node[0-9]*/meminfo"))]
    if any(nodes):
        return Available(sum(nodes), "free and reclaimable memory of all memory nodes")
    # Knows no page cache, so it says too little on a machine that has been running for a while.
    return Available(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "free memory")


def _node_bytes(path: Path) -> int:
    """Free and reclaimable bytes of one memory node, less what the kernel keeps for itself."""
    fields = {}
    for line in read_text(path).splitlines():
        words = line.split()  # "Node 0 MemFree:  4643136 kB"
        if len(words) >= 4 and words[3].isdecimal():
            fields[words[2].rstrip(":")] = int(words[3]) * _KIB
    reclaimable = sum(
        fields.get(name, 0) for name in ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable")
    )
    reserve = fields.get("MemTotal", 0) // 100  # about the watermarks that MemAvailable takes off
    return max(0, reclaimable - reserve)


def _groups(proc: Path, root: Path) -> Iterator[Available]:
    """What each control group from our own up to the root leaves."""
    for group in own_groups(proc / "self" / "cgroup", root, "memory"):
        limits = _group_v2 if group.version == 2 else _group_v1
        yield from limits(group.folder, group.name)


def _group_v2(folder: Path, name: str) -> Iterator[Available]:
    limits = [
        int(text)
        for text in (read_text(folder / "memory.max"), read_text(folder / "memory.high"))
        if text.isdecimal()
    ]
    used = read_text(folder / "memory.current")
    if not limits or not used.isdecimal():
        return
    stat = _fields(folder / "memory.stat")
    reclaimable = sum(stat.get(key, 0) for key in ("active_file", "inactive_file", "slab_reclaimable"))
    yield _left(name, min(limits), int(used) - reclaimable)


def _group_v1(folder: Path, name: str) -> Iterator[Available]:
    limit, used = read_text(folder / "memory.limit_in_bytes"), read_text(folder / "memory.usage_in_bytes")
    if not limit.isdecimal() or not used.isdecimal() or int(limit) >= _NO_LIMIT_BYTES:
        return
    stat = _fields(folder / "memory.stat")
    reclaimable = stat.get("total_active_file", 0) + stat.get("total_inactive_file", 0)
    yield _left(name, int(limit), int(used) - reclaimable)


def _left(name: str, limit_bytes: int, used_bytes: int) -> Available:
    return Available(
        max(0, limit_bytes - max(0, used_bytes)), f"control group {name} (limit {limit_bytes} bytes)"
    )


def _fields(path: Path) -> dict[str, int]:
    """The "name value" or "name: value kB" lines of a file."""
    fields = {}
    for line in read_text(path).splitlines():
        words = line.split()
        if len(words) >= 2 and words[1].isdecimal():
            fields[words[0].rstrip(":")] = int(words[1])
    return fields


def return_free_memory() -> None:
    """Give the system what was freed and the C library keeps: tens of MiB after a model, in the heaps of its threads."""
    import ctypes  # noqa: PLC0415  milliseconds of a start, for what few processes ever do

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; others keep little
    if trim is not None:
        trim(0)
