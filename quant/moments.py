"""How the input channels of a layer go together: second moments of what each matrix is multiplied with, in runs of 256 columns.

They are the blocks on the diagonal of each layer's Hessian.  A text runs through the model once and the native core adds up
products of columns, 256 KiB for each run: 730 MB for a 7 B model.  They lie in an unnamed file beside the output, whose pages the
system writes out and takes back as it needs the memory.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

from quant.errors import CannotCreateError, DiskFullError
from runtime.model import LoadedModel

RUN = 256  # columns
_RUN_BYTES = 4 * RUN * RUN
_HASHED_AT_ONCE = 64  # runs

Floats = NDArray[np.float32]


class InputMoments:
    """The moments of a model's matrices, until closed."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Keep them in a file in `folder` that has no name.  Raises CannotCreateError where that is not possible."""
        self._folder = Path(folder)
        try:
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=self._folder, prefix=".quantd-moments-")  # noqa: SIM115 - closed by close
        except OSError as failure:
            raise CannotCreateError(f"{self._folder}: {failure.strerror}") from failure
        self._sums: Floats = np.empty((0, RUN, RUN), np.float32)
        self._places: dict[str, tuple[int, int]] = {}  # name: first run, number of runs
        self._seen: dict[str, int] = {}

    def collect_from(self, loaded: LoadedModel) -> None:
        """Let the model add to them from its next step on; they begin at zero.  Raises DiskFullError, CannotCreateError."""
        self._places = loaded.collect_moments()
        n_runs = max((first + n for first, n in self._places.values()), default=0)
        if n_runs:
            try:
                # Taken now: a page that finds no room later would end the process.
                os.posix_fallocate(self._file.fileno(), 0, n_runs * _RUN_BYTES)
            except OSError as failure:
                raise DiskFullError(
                    f"{self._folder} has no room for {n_runs * _RUN_BYTES:,} bytes that error feedback needs while it works: "
                    f"{failure.strerror}; quantize without it (--no-error-feedback)"
                ) from failure
            self._sums = np.memmap(self._file, np.float32, "r+", shape=(n_runs, RUN, RUN))
        loaded.keep_moments(np.asarray(self._sums))

    def finish(self, loaded: LoadedModel) -> None:
        """Note how many inputs each matrix saw."""
        self._seen = {name: int(counts.sum()) for name, (_, counts) in loaded.input_statistics().items()}

    def n_seen(self, name: str) -> int:
        """Return the number of inputs that the sums of a tensor are of, 0 where there are none."""
        return self._seen.get(name, 0) if name in self._places else 0

    def of(self, name: str) -> Floats:
        """Return the sums of products of a tensor's input columns, (n_runs, 256, 256), zero below the diagonals."""
        first, n_runs = self._places[name]
        return np.asarray(self._sums[first : first + n_runs])

    def loss(self, name: str, errors: Floats) -> float:
        """Return what errors of a tensor's weights, rows (n, n_in), do to its products: the sum of squares over all inputs."""
        total = 0.0
        for index, sums in enumerate(self.of(name)):
            part = errors[:, index * RUN : (index + 1) * RUN].astype(np.float64)
            n = part.shape[1]
            upper = np.triu(sums[:n, :n]).astype(np.float64)
            both = upper + upper.T - np.diag(np.diag(upper))
            total += float(((part @ both) * part).sum())
        return max(total, 0.0)

    def describe(self) -> str:
        """Return what identifies them in a manifest: a hash of the numbers."""
        digest = hashlib.sha256()
        for name, place in sorted(self._places.items()):
            digest.update(f"{name} {place} {self.n_seen(name)}\n".encode())
        for start in range(0, len(self._sums), _HASHED_AT_ONCE):
            digest.update(
                np.asarray(self._sums[start : start + _HASHED_AT_ONCE]).astype("<f4", copy=False).data
            )
        return f"error-feedback={digest.hexdigest()[:16]}"

    def close(self) -> None:
        """Give the file back."""
        self._sums = np.empty((0, RUN, RUN), np.float32)
        self._places = {}
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
