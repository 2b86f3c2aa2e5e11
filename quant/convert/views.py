"""How the rows of an output tensor come out of stored tensors: read as they are, reordered, joined, computed.

A view is a matrix (n_rows, n_cols) of F32, F16 or BF16 that is read in runs of rows; nothing is read before.  Views
take other views, so a mapping is written as an expression: Permuted(weights("q_proj"), heads=32).
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quant.convert.safetensors import DTYPES, StoredTensor
from quant.input_files import InputFiles
from quant.recipes import BF16, F16, F32

Rows = NDArray[Any]  # (n, n_cols) float32, float16, or uint16 that holds bfloat16
_BLOCK_ELEMENTS = 1 << 16  # the sum of a block stays in the second-level cache
_NUMPY: dict[int, np.dtype[Any]] = {
    F32: np.dtype(np.float32),
    F16: np.dtype(np.float16),
    BF16: np.dtype(np.uint16),
}


class View(Protocol):
    """What every view has."""

    @property
    def type_id(self) -> int: ...
    @property
    def n_rows(self) -> int: ...
    @property
    def n_cols(self) -> int: ...
    @property
    def unit_rows(self) -> int:
        """Reads start and end at multiples of this; divides n_rows."""

    @property
    def origin(self) -> str:
        """Names of the stored tensors, for messages."""

    def read(self, files: InputFiles, first: int, n: int) -> Rows:
        """Return rows first to first + n as (n, n_cols)."""


def to_f32(rows: Rows) -> NDArray[np.float32]:
    """Widen rows of any of the three types; exact."""
    if rows.dtype == np.uint16:
        return (rows.astype(np.uint32) << 16).view(np.float32)
    return rows.astype(np.float32, copy=False)


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as it lies in its file; more than two dimensions count as rows."""

    tensor: StoredTensor

    @property
    def type_id(self) -> int:
        return DTYPES[self.tensor.dtype][0]

    @property
    def n_cols(self) -> int:
        return self.tensor.shape[-1] if self.tensor.shape else 1

    @property
    def n_rows(self) -> int:
        n_rows = 1
        for size in self.tensor.shape[:-1]:
            n_rows *= size
        return n_rows

    @property
    def unit_rows(self) -> int:
        return 1

    @property
    def origin(self) -> str:
        return self.tensor.name

    def read(self, files: InputFiles, first: int, n: int) -> Rows:
        row_bytes = self.n_cols * DTYPES[self.tensor.dtype][1]
        data = files.read(self.tensor.file, self.tensor.offset + first * row_bytes, n * row_bytes)
        return np.frombuffer(data, _NUMPY[self.type_id]).reshape(n, self.n_cols)


@dataclass(frozen=True, slots=True)
class _Wrapper:
    """A view over one other view, the same in everything that is not overridden."""

    of: View

    @property
    def type_id(self) -> int:
        return self.of.type_id

    @property
    def n_rows(self) -> int:
        return self.of.n_rows

    @property
    def n_cols(self) -> int:
        return self.of.n_cols

    @property
    def unit_rows(self) -> int:
        return self.of.unit_rows

    @property
    def origin(self) -> str:
        return self.of.origin


@dataclass(frozen=True, slots=True)
class Permuted(_Wrapper):
    """Rotation pairs from halves of a head (i, i + d/2) to neighbours (2i, 2i + 1), as GGUF's llama wants them."""

    heads: int

    @property
    def unit_rows(self) -> int:
        return self.n_rows // self.heads

    def read(self, files: InputFiles, first: int, n: int) -> Rows:
        rows = self.of.read(files, first, n)
        half = self.unit_rows // 2
        # (heads, 2, half, n_cols) -> (heads, half, 2, n_cols)
        swapped = rows.reshape(-1, 2, half, self.n_cols).swapaxes(1, 2)
        return np.ascontiguousarray(swapped).reshape(n, self.n_cols)


@dataclass(frozen=True, slots=True)
class PermutedVector(_Wrapper):
    """The same for a bias (heads * d,), which is one row here."""

    heads: int

    def read(self, files: InputFiles, first: int, n: int) -> Rows:
        row = self.of.read(files, first, n)
        swapped = row.reshape(self.heads, 2, -1).swapaxes(1, 2)
        return np.ascontiguousarray(swapped).reshape(n, self.n_cols)


@dataclass(frozen=True, slots=True)
class Widened(_Wrapper):
    """The same values in F32: what GGUF wants of vectors, norms and routers."""

    @property
    def type_id(self) -> int:
        return F32

    def read(self, files: InputFiles, first: int, n: int) -> Rows:
        return to_f32(self.of.read(files, first, n))


@dataclass(frozen=True, slots=True)
class Plus(_Wrapper):
    """F32 values with a number added: Gemma stores its norms less one."""

    addend: float

    @property
    def type_id(self) -> int:
        return F32

    def read(self, files: InputFiles, first: int, n: int) -> Rows:
        return to_f32(self.of.read(files, first, n)) + np.float32(self.addend)


@dataclass(frozen=True, slots=True)
class Slice(_Wrapper):
    """A run of rows; `start` and `count` must be multiples of the view's unit."""

    start: int
    count: int

    @property
    def n_rows(self) -> int:
        return self.count

    def read(self, files: InputFiles, first: int, n: int) -> Rows:
        return self.of.read(files, self.start + first, n)


class Stacked:
    """Views of the same type and width below each other: experts, fused projections."""

    def __init__(self, parts: list[View]) -> None:
        types = {part.type_id for part in parts}
        # Mixed types meet in F32, which holds them all.
        self._parts = parts if len(types) == 1 else [Widened(part) for part in parts]
        self._starts = [0]
        for part in self._parts:
            self._starts.append(self._starts[-1] + part.n_rows)
        self.type_id = self._parts[0].type_id
        self.n_rows = self._starts[-1]
        self.n_cols = parts[0].n_cols
        self.unit_rows = max(part.unit_rows for part in parts)
        more = f" and {len(parts) - 1} more" if len(parts) > 1 else ""
        self.origin = parts[0].origin + more

    def read(self, files: InputFiles, first: int, n: int) -> Rows:
        pieces, row = [], first
        while row < first + n:
            index = bisect.bisect_right(self._starts, row) - 1
            stop = min(first + n, self._starts[index + 1])
            pieces.append(self._parts[index].read(files, row - self._starts[index], stop - row))
            row = stop
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class Computed:
    """F32 values that no file holds, such as rotation factors."""

    type_id = F32
    unit_rows = 1

    def __init__(self, values: NDArray[np.float32], origin: str) -> None:
        self._values = np.atleast_2d(values)
        self.n_rows, self.n_cols = self._values.shape
        self.origin = origin

    def read(self, files: InputFiles, first: int, n: int) -> Rows:
        del files
        return self._values[first : first + n]


class Merged:
    """A matrix with scale * b a added (a (rank, n_cols), b (n_rows, rank)), in F32.

    The same bits on every CPU, because each element is summed in order.
    """

    type_id = F32

    def __init__(self, of: View, a: Stored, b: Stored, scale: float) -> None:
        self._of = of
        self._a = a
        self._b = b
        self._scale = np.float32(scale)
        self.n_rows = of.n_rows
        self.n_cols = of.n_cols
        self.unit_rows = of.unit_rows
        self.origin = f"{of.origin} with {a.origin}"

    def read(self, files: InputFiles, first: int, n: int) -> Rows:
        """Return rows first to first + n as (n, n_cols)."""
        rows = np.array(to_f32(self._of.read(files, first, n)))
        a = to_f32(self._a.read(files, 0, self._a.n_rows))  # (rank, n_cols)
        b = to_f32(self._b.read(files, first, n)) * self._scale  # (n, rank)
        step = max(_BLOCK_ELEMENTS // self.n_cols, 1)
        product = np.empty((min(step, n), self.n_cols), np.float32)
        for start in range(0, n, step):
            block = rows[start : start + step]
            out = product[: len(block)]
            for k in range(len(a)):
                np.multiply(b[start : start + step, k : k + 1], a[k], out=out)
                block += out
        return rows
