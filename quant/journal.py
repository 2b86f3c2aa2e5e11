"""What a run has finished, beside its partial file, so that the next run goes on at the tensor where a kill hit it.

The first line names the job; each line after it one finished tensor with the hash of all data so far and the tensor's
error.  Lines are not synced: before one is believed, the partial file's bytes are hashed again and must agree, so it
does not matter which of the two reached the disk.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Finished:
    """One finished tensor."""

    name: str
    data_sha256: str  # of the data section up to and with this tensor and its padding
    error: float


class Journal:
    """The file `PARTIAL.journal`; only the holder of the partial file's lock uses it."""

    def __init__(self, path: Path, job: str) -> None:
        self._path = path
        self._job = job
        self._fd = -1

    def read(self) -> list[Finished]:
        """Return the finished tensors of this very job; [] where there is nothing to go on from."""
        try:
            lines = self._path.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return []
        if lines[0] != json.dumps({"job": self._job}):
            return []
        found = []
        for line in lines[1:-1]:  # the last one was being written, or is empty
            try:
                entry = json.loads(line)
                found.append(Finished(str(entry["tensor"]), str(entry["sha256"]), float(entry["error"])))
            except (ValueError, TypeError, LookupError):
                break
        return found

    def start(self, finished: list[Finished]) -> None:
        """Begin anew with what is believed."""
        flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self._path, flags, 0o666)
        lines = [json.dumps({"job": self._job}), *map(_line, finished)]
        os.write(self._fd, ("\n".join(lines) + "\n").encode())

    def add(self, finished: Finished) -> None:
        """Note a tensor."""
        os.write(self._fd, (_line(finished) + "\n").encode())

    def close(self) -> None:
        """Close the file; what is in it stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Close and remove it."""
        self.close()
        self._path.unlink(missing_ok=True)


def _line(finished: Finished) -> str:
    return json.dumps({"tensor": finished.name, "sha256": finished.data_sha256, "error": finished.error})
