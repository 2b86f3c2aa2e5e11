"""Quantizing a model file: read, encode and write at the same time, in chunks, within a fixed amount of memory."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quant.convert import is_folder_of_weights, open_folder
from quant.errors import CannotCreateError, OutputError, QuantizeCancelledError
from quant.input_files import Bytes, InputFiles
from quant.plan import QuantizePlan, TensorPlan, plan_quantization, tensor_bytes
from quant.policy import NO_OVERRIDES, Overrides
from quant.recipes import BF16, DEFAULT_RECIPE, F16, F32, find_recipe
from quant.served import check_served
from quant.source import ModelSource, open_gguf
from quant.writer import PartialFile, check_target
from runtime._native import quantize_rows
from runtime.cpu import usable_cores
from runtime.errors import ModelFormatError, RequestError, UnsupportedModelError
from runtime.gguf import ModelFile

CHUNK_ELEMENTS = 1 << 21  # 4 MiB of F16; a multiple of every block
FLUSH_BYTES = 64 << 20  # written bytes that may wait for the disk
PROGRESS_INTERVAL_S = 0.1
MAX_THREADS = 256

# Bits that are all set in infinities and NaN: (unsigned type of the element's size, exponent)
_EXPONENTS = {F32: (np.uint32, 0x7F800000), F16: (np.uint16, 0x7C00), BF16: (np.uint16, 0x7F80)}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a quantization is."""

    tensors_done: int
    tensors_total: int
    bytes_done: int  # of the source
    bytes_total: int
    bytes_per_s: float  # since the start
    eta_s: float
    tensor: str  # the one being worked on


@dataclass(frozen=True, slots=True)
class QuantizeResult:
    """What came out of a quantization."""

    output: Path
    recipe: str
    output_bytes: int
    source_bytes: int  # of the source files
    seconds: float
    bits_per_weight: float
    types: dict[str, tuple[int, int]]  # type: (tensors, bytes)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A run of elements of one tensor."""

    tensor: TensorPlan
    first: int  # element of the tensor
    n_elements: int

    @property
    def source_bytes(self) -> int:
        return self.n_elements * self.tensor.source.n_bytes // self.tensor.source.n_elements

    @property
    def is_last(self) -> bool:
        return self.first + self.n_elements == self.tensor.source.n_elements


def open_source(path: str | os.PathLike[str]) -> ModelSource:
    """Open what is to be quantized: a GGUF file, or a Hugging Face folder with a config.json."""
    path = Path(path)
    if path.is_dir() and not is_folder_of_weights(path):
        raise UnsupportedModelError(
            f"{path} is a folder without a config.json; name a GGUF file or a Hugging Face folder"
        )
    return open_folder(path) if is_folder_of_weights(path) else open_gguf(path)


class Quantizer:
    """One quantization job.  Made: everything that can be refused has been refused.  `run` does the work once."""

    def __init__(
        self,
        source: str | os.PathLike[str],
        output: str | os.PathLike[str],
        recipe: str = DEFAULT_RECIPE,
        *,
        overrides: Overrides = NO_OVERRIDES,
        threads: int | None = None,
        force: bool = False,
    ) -> None:
        """Plan the job; `source` is a GGUF file (any shard of a split one) or a Hugging Face folder.

        Raises UnsupportedRecipeError, RequestError (threads, source and output the same), ModelFormatError,
        UnsupportedModelError, OutputExistsError, CannotCreateError, OSError for an unreadable source.
        """
        if threads is not None and not 1 <= threads <= MAX_THREADS:
            raise RequestError("threads", f"threads must be 1 to {MAX_THREADS}, not {threads}")
        chosen = find_recipe(recipe)
        self.output = Path(output)
        self.force = force
        self.threads = threads or usable_cores()
        self.source = open_source(source)
        _refuse_same_file(self.source.files, self.output)
        check_target(self.output, force=force)
        self.plan: QuantizePlan = plan_quantization(self.source, chosen, overrides)
        if self.source.is_converted:
            check_served(self.plan)

    def run(
        self,
        on_progress: Callable[[Progress], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> QuantizeResult:
        """Write the output; QuantizeCancelledError soon after `cancel` is set.

        Raises DiskFullError, OutputError, OutputExistsError; ModelFormatError (code NOT_FINITE or OUT_OF_RANGE) where a
        weight cannot be quantized; ModelChangedError where the source changed.  Nothing is left behind then.
        """
        started = time.monotonic()
        meter = _Meter(self.plan, on_progress or (lambda _: None), started)
        with (
            InputFiles(self.source.files, self.source.file_sizes) as reader,
            PartialFile(self.output, self.plan.output_bytes, force=self.force) as partial,
        ):
            self._write(reader, partial, meter, cancel or threading.Event())
            reader.check_unchanged()
            partial.commit(self._check)
        return QuantizeResult(
            output=self.output,
            recipe=self.plan.recipe.name,
            output_bytes=self.plan.output_bytes,
            source_bytes=self.source.size_bytes,
            seconds=time.monotonic() - started,
            bits_per_weight=self.plan.bits_per_weight,
            types=self.plan.types(),
        )

    def _write(
        self, reader: InputFiles, partial: PartialFile, meter: _Meter, cancel: threading.Event
    ) -> None:
        """Encode chunk after chunk while the next one is read and the one before is written."""
        chunks = _chunks(self.plan)
        partial.write(self.plan.header, 0)
        unflushed = _Unflushed(partial, drop=reader.drops_cache)
        with (
            ThreadPoolExecutor(1, "quantize-read") as reading,
            ThreadPoolExecutor(1, "quantize-write") as writing,
        ):
            current = next(chunks, None)
            read = _start_read(reading, reader, current)
            write: Future[None] | None = None
            while current is not None and read is not None:
                data = read.result()
                following = next(chunks, None)
                read = _start_read(reading, reader, following)
                if cancel.is_set():
                    raise QuantizeCancelledError("the quantization was cancelled; no file was left")
                encoded = self._encode(current, data)
                if write is not None:
                    write.result()
                offset = len(self.plan.header) + current.tensor.offset + _target_offset(current)
                write = writing.submit(unflushed.write, encoded, offset)
                meter.advance(current)
                current = following
            if write is not None:
                write.result()

    def _encode(self, chunk: _Chunk, data: Bytes) -> Bytes:
        tensor, row = chunk.tensor, chunk.tensor.source.shape[0]
        if tensor.is_copied:
            self._check_finite(chunk, data)
            return data
        out = np.empty(tensor_bytes((chunk.n_elements,), tensor.target_type), np.uint8)
        n_cols = row if chunk.n_elements % row == 0 else chunk.n_elements  # a piece of a very long row
        n_rows = chunk.n_elements // n_cols
        fault = quantize_rows(
            data, tensor.source.type_id, n_rows, n_cols, tensor.target_type, out, self.threads
        )
        if fault is not None:
            self._refuse_weight(chunk, fault[0] * n_cols + fault[1], fault[2])
        return out

    def _check_finite(self, chunk: _Chunk, data: Bytes) -> None:
        found = _EXPONENTS.get(chunk.tensor.target_type)
        if found is None:
            return
        unsigned, exponent = found
        bad = (data.view(unsigned) & exponent) == exponent
        if bad.any():
            self._refuse_weight(chunk, int(bad.argmax()), math.nan)

    def _refuse_weight(self, chunk: _Chunk, element: int, value: float) -> None:
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

    def _check(self, path: Path) -> None:
        """Read the written file back and compare its tensor table with the plan."""
        with contextlib.suppress(ModelFormatError):
            found = {t.name: (t.type_id, t.n_bytes, t.offset) for t in ModelFile.open(path).tensors.values()}
            start = len(self.plan.header)
            planned = {t.name: (t.target_type, t.target_bytes, start + t.offset) for t in self.plan.tensors}
            if found == planned and path.stat().st_size == self.plan.output_bytes:
                return
        raise OutputError(
            f"{self.output}: the written file does not read back as planned; is the disk sound?"
        )


class _Meter:
    """Counts what is done and reports it, at most every PROGRESS_INTERVAL_S."""

    def __init__(self, plan: QuantizePlan, report: Callable[[Progress], None], started: float) -> None:
        self._plan = plan
        self._report = report
        self._started = started
        self._reported = 0.0
        self._tensors_done = 0
        self._bytes_done = 0

    def advance(self, chunk: _Chunk) -> None:
        self._bytes_done += chunk.source_bytes
        self._tensors_done += chunk.is_last
        now = time.monotonic()
        done = self._bytes_done == self._plan.source_bytes
        if not done and now - self._reported < PROGRESS_INTERVAL_S:
            return
        self._reported = now
        rate = self._bytes_done / max(now - self._started, 1e-6)
        left = self._plan.source_bytes - self._bytes_done
        self._report(
            Progress(
                tensors_done=self._tensors_done,
                tensors_total=len(self._plan.tensors),
                bytes_done=self._bytes_done,
                bytes_total=self._plan.source_bytes,
                bytes_per_s=rate,
                eta_s=left / max(rate, 1.0),
                tensor=chunk.tensor.name,
            )
        )


class _Unflushed:
    """Writes, and keeps what waits for the disk below FLUSH_BYTES, so that the last sync is short."""

    def __init__(self, partial: PartialFile, *, drop: bool) -> None:
        self._partial = partial
        self._drop = drop
        self._start = 0
        self._bytes = 0

    def write(self, data: Bytes, offset: int) -> None:
        self._partial.write(data, offset)
        self._bytes += len(data)
        if self._bytes >= FLUSH_BYTES:
            self._partial.flush(self._start, offset + len(data) - self._start, drop=self._drop)
            self._start, self._bytes = offset + len(data), 0


def _chunks(plan: QuantizePlan) -> Iterator[_Chunk]:
    """Cut the tensors into runs of whole units that do not cross from one slice (one expert) to the next."""
    for tensor in plan.tensors:
        source = tensor.source
        slice_elements = math.prod(source.shape[:2])
        size = max(CHUNK_ELEMENTS // source.unit_elements, 1) * source.unit_elements
        for start in range(0, source.n_elements, slice_elements):
            for first in range(start, start + slice_elements, size):
                yield _Chunk(tensor, first, min(size, start + slice_elements - first))


def _start_read(pool: ThreadPoolExecutor, reader: InputFiles, chunk: _Chunk | None) -> Future[Bytes] | None:
    if chunk is None:
        return None
    return pool.submit(chunk.tensor.source.read, reader, chunk.first, chunk.n_elements)


def _target_offset(chunk: _Chunk) -> int:
    return tensor_bytes((chunk.first,), chunk.tensor.target_type)


def _refuse_same_file(sources: tuple[Path, ...], output: Path) -> None:
    for path in sources:
        same = False
        with contextlib.suppress(OSError):
            same = path.samefile(output)
        if same:
            raise CannotCreateError(f"{output} is the source itself; write to another name")
