"""`python -m daemon.lowprio COMMAND...`: a quantd command as a child that gives way to serving.

It runs at idle priority for processor and disk, may take only so much memory, is the first to go when memory runs out, and
ends when the daemon ends, however that happens.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
OOM_SCORE_FIRST = 1000
PARENT_VARIABLE = "QUANTD_PARENT_PID"
MEMORY_VARIABLE = "QUANTD_CHILD_MEMORY_BYTES"  # limit of private memory; mapped files do not count
# linux/ioprio.h, and the number of ioprio_set by machine
IOPRIO_WHO_PROCESS, IOPRIO_IDLE = 1, 3 << 13
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}


def main() -> None:
    """Gives way, then runs the command line."""
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # lets the command remove its files
    _end_with_parent()
    _give_way()
    _limit_memory()
    from daemon.__main__ import main as command_line  # noqa: PLC0415  after the priority is lowered

    command_line()


def _end_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    # The parent may have ended before the line above.
    expected = os.environ.pop(PARENT_VARIABLE, "")
    if expected and int(expected) != os.getppid():
        sys.exit(128 + signal.SIGTERM)


def _give_way() -> None:
    """Each of these may be forbidden by a sandbox: then the others still help."""
    with contextlib.suppress(OSError):
        os.nice(19)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, IOPRIO_WHO_PROCESS, 0, IOPRIO_IDLE)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_FIRST), encoding="ascii")


def _limit_memory() -> None:
    """Bounds what this process can take for itself, whatever the control group of the daemon allows."""
    limit = int(os.environ.pop(MEMORY_VARIABLE, "0"))
    if limit:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


if __name__ == "__main__":
    main()
