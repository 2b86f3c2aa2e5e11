"""A tensor in runs that fit in the cache's neighbourhood: read as floats, encoded, and compared with what was lost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quant.input_files import Bytes
from quant.plan import TensorPlan, tensor_bytes
from quant.policy import expert_rows
from quant.recipes import FLOATS
from runtime._native import encoding_loss, find_not_finite, new_buffer, quantize_rows
from runtime.errors import ModelFormatError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from quant.feedback import ErrorFeedback
    from quant.importance import Importance

CHUNK_ELEMENTS = 1 << 21  # 4 MiB of F16; a multiple of every block
ERROR_EVERY_ROWS = 16  # the error is measured on every sixteenth row

Loss = tuple[float, float]  # sum of the squared differences, sum of the squared values


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of whole units of one tensor, inside one slice (one expert)."""

    tensor: TensorPlan
    first: int  # element of the tensor
    n_elements: int

    @property
    def source_bytes(self) -> int:
        return self.n_elements * self.tensor.source.n_bytes // self.tensor.source.n_elements

    @property
    def target_offset(self) -> int:
        """Byte of the output's data section."""
        return self.tensor.offset + tensor_bytes((self.first,), self.tensor.target_type)

    @property
    def is_last(self) -> bool:
        return self.first + self.n_elements == self.tensor.source.n_elements


def chunks_of(tensor: TensorPlan, chunk_elements: int) -> Iterator[Chunk]:
    """Cut a tensor into runs of about `chunk_elements`."""
    source = tensor.source
    slice_elements = math.prod(source.shape[:2])
    size = max(chunk_elements // source.unit_elements, 1) * source.unit_elements
    for start in range(0, source.n_elements, slice_elements):
        for first in range(start, start + slice_elements, size):
            yield Chunk(tensor, first, min(size, start + slice_elements - first))


class TensorError:
    """What encoding loses of a tensor: root mean square of the difference over that of the values, on a sample of rows."""

    def __init__(self) -> None:
        self._lost = 0.0
        self._whole = 0.0

    def add(self, loss: Loss) -> None:
        """Count a run; the runs in their order."""
        self._lost += loss[0]
        self._whole += loss[1]

    def result(self) -> float:
        """Return the relative error with four digits, so that the order of sums on another CPU does not show."""
        return float(f"{math.sqrt(self._lost / self._whole):.4g}") if self._whole else 0.0


def encode_chunk(
    chunk: Chunk,
    data: Bytes,
    threads: int,
    importance: Importance | None = None,
    feedback: ErrorFeedback | None = None,
) -> Bytes:
    """Return the run in the target's blocks; `importance` says which columns' errors count more, `feedback` lets errors make
    up for each other.

    Raises ModelFormatError, code NOT_FINITE or OUT_OF_RANGE, naming tensor, row and column of a weight that cannot be
    quantized.
    """
    tensor, row = chunk.tensor, chunk.tensor.source.shape[0]
    if tensor.is_copied:
        _check_finite(chunk, data)
        return data
    out = new_buffer(tensor_bytes((chunk.n_elements,), tensor.target_type))
    n_cols = row if chunk.n_elements % row == 0 else chunk.n_elements  # a piece of a very long row
    n_rows = chunk.n_elements // n_cols
    weights = _importance(chunk, importance, n_cols)
    fault = quantize_rows(
        data, tensor.source.type_id, n_rows, n_cols, tensor.target_type, out, threads, importance=weights
    )
    if fault is not None:
        _refuse_weight(chunk, fault[0] * n_cols + fault[1], fault[2])
    if feedback is not None and n_cols == row:
        feedback.apply(
            tensor.source.name, data, tensor.source.type_id, n_rows, row, tensor.target_type, out, threads
        )
    return out


def chunk_loss(chunk: Chunk, data: Bytes, encoded: Bytes) -> Loss:
    """Return what encoding lost of the sampled rows of a run."""
    tensor, row = chunk.tensor, chunk.tensor.source.shape[0]
    if tensor.is_copied or chunk.n_elements % row:
        return 0.0, 0.0
    return encoding_loss(
        data,
        tensor.source.type_id,
        chunk.n_elements // row,
        row,
        tensor.target_type,
        encoded,
        -(chunk.first // row) % ERROR_EVERY_ROWS,
        ERROR_EVERY_ROWS,
    )


def _importance(chunk: Chunk, importance: Importance | None, n_cols: int) -> NDArray[np.float32] | None:
    """Return (n_cols,) for the run's matrix, or for its piece of a very long row."""
    source = chunk.tensor.source
    if importance is None:
        return None
    row = source.shape[0]
    _, rows_of_matrix = expert_rows(source.shape)
    found = importance.of(source.name, row, chunk.first // (row * rows_of_matrix))
    if found is None or n_cols == row:
        return found
    return found[chunk.first % row :][:n_cols].copy()


def _check_finite(chunk: Chunk, data: Bytes) -> None:
    if chunk.tensor.target_type not in FLOATS:
        return
    element = find_not_finite(data, chunk.tensor.target_type)
    if element >= 0:
        _refuse_weight(chunk, element, math.nan)


def _refuse_weight(chunk: Chunk, element: int, value: float) -> None:
    source = chunk.tensor.source
    row, column = divmod(chunk.first + element, source.shape[0])
    finite = math.isfinite(value)
    reason = "is larger than the type's scale can hold" if finite else "is not finite"
    path, offset = source.place(chunk.first + element)
    origin = "" if source.origin == source.name else f" ({source.origin})"
    raise ModelFormatError(
        "OUT_OF_RANGE" if finite else "NOT_FINITE",
        source.name,
        offset,
        f"{path}: tensor {source.name}{origin}, row {row}, column {column}: {value} {reason}",
    )
