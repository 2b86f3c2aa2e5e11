"""Runs one small quantization again and again, killed at the first, second, third... call that touches a file.

`python -m tests.quant.kill_everywhere SOURCE FOLDER`: every run is a fork that kills itself without any clean-up.
Prints the number of calls that a whole run makes.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from quant.quantizer import Quantizer

CALLS = (
    "open",
    "pwrite",
    "write",
    "ftruncate",
    "posix_fallocate",
    "fdatasync",
    "fsync",
    "link",
    "unlink",
    "close",
)


def run(source: Path, target: Path, kill_at: int) -> int:
    """Return the calls that were made; does not return if the kill came first."""
    count = 0

    def counted(real):
        def call(*arguments, **options):
            nonlocal count
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    job = Quantizer(source, target, "Q4_K_M", threads=1)
    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    Path.unlink = counted(Path.unlink)
    Path.replace = counted(Path.replace)
    job.run()
    return count


def main() -> None:
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    whole = folder / "whole.gguf"
    Quantizer(source, whole, "Q4_K_M", threads=1).run()
    expected = whole.read_bytes()
    kill_at, resumed = 0, 0
    while True:
        kill_at += 1
        target = folder / "out.gguf"
        child = os.fork()
        if child == 0:
            run(source, target, kill_at)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if target.exists() and target.read_bytes() != expected:
            raise SystemExit(f"killed at call {kill_at}: the file under the final name is not whole")
        done = target.exists()
        result = Quantizer(source, target, "Q4_K_M", threads=1).run()
        if target.read_bytes() != expected or result.was_done is not done:
            raise SystemExit(f"killed at call {kill_at}: the next run did not finish the work")
        left = sorted(path.name for path in folder.iterdir())
        if left != ["out.gguf", "out.gguf.manifest.json", "whole.gguf", "whole.gguf.manifest.json"]:
            raise SystemExit(f"killed at call {kill_at}: left behind: {left}")
        resumed += result.resumed_tensors > 0
        if os.WIFEXITED(status):
            break
        for path in folder.glob("out*"):
            path.unlink()
    print(kill_at - 1, resumed)


if __name__ == "__main__":
    main()
