"""How much of the machine other processes took while something was measured: a figure is worth what this is small."""

from __future__ import annotations

import os
import time
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_BUSY = (0, 1, 2, 5, 6, 7)  # of /proc/stat: user, nice, system, irq, softirq, steal


class Others:
    """Follows the CPU time of the machine beside that of this process, its ended children and `pids`."""

    def __init__(self, *pids: int) -> None:
        self._pids = pids
        self._begin_s = time.perf_counter()
        self._begin = self._used_s()

    def cores(self) -> float:
        """Cores that others kept busy, on average since this object was made: 0.02 is a quiet machine."""
        return round(max(0.0, (self._used_s() - self._begin) / (time.perf_counter() - self._begin_s)), 2)

    def _used_s(self) -> float:
        first, *_ = Path("/proc/stat").read_text().splitlines()
        fields = first.split()[1:]
        busy_s = sum(int(fields[index]) for index in _BUSY) * _TICK_S
        own = os.times()
        own_s = own.user + own.system + own.children_user + own.children_system
        return busy_s - own_s - sum(map(_process_s, self._pids))


def _process_s(pid: int) -> float:
    """CPU seconds of a running process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S
