"""Quantizing a model: read, encode and write at the same time, in chunks, within a fixed amount of memory."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from quant.checksums import InputHashes
from quant.chunks import CHUNK_ELEMENTS, Chunk, Loss, TensorError, chunk_loss, chunks_of, encode_chunk
from quant.errors import CannotCreateError, OutputError, OutputExistsError, QuantizeCancelledError
from quant.input_files import Bytes, InputFiles
from quant.journal import Finished
from quant.manifest import UNKNOWN_HASH, InputFile, Manifest, begun, read_embedded, write_beside
from quant.plan import QuantizePlan, TensorPlan, plan_quantization
from quant.policy import NO_OVERRIDES, Overrides
from quant.progress import Meter, Progress
from quant.recipes import AUTO, BEST, DEFAULT_RECIPE, Recipe, base_of, find_recipe
from quant.source import ModelSource, open_gguf
from quant.writer import Flusher, PartialFile, check_target, remove_leftovers
from runtime import _native
from runtime.cpu import usable_cores
from runtime.errors import ModelFormatError, RequestError, UnsupportedModelError
from runtime.gguf import ModelFile

if TYPE_CHECKING:
    from quant.allocation import Allocation
    from quant.auto import Choice
    from quant.convert.lora import Adapter
    from quant.feedback import ErrorFeedback
    from quant.importance import Importance

__all__ = ["Progress", "QuantizeResult", "Quantizer", "open_source"]

MAX_THREADS = 256
MAX_WORKERS = 4  # chunks that are encoded at the same time, each by its share of the threads
_WAITING_WRITES = 8  # encoded chunks that may wait for the one that is being written
_REREAD_BYTES = 4 << 20


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
    data_sha256: str  # of the output's data section
    resumed_tensors: int  # that an earlier, killed run had finished
    was_done: bool  # the output was there already, of the same inputs and options


def open_source(path: str | os.PathLike[str], adapters: Sequence[Adapter] = ()) -> ModelSource:
    """Open what is to be quantized: a GGUF file, or a Hugging Face folder with a config.json."""
    path = Path(path)
    if adapters and not path.is_dir():
        raise RequestError("lora", f"lora: adapters are merged into a Hugging Face folder; {path} is a file")
    if not path.is_dir():
        return open_gguf(path)
    from quant.convert import is_folder_of_weights, open_folder  # noqa: PLC0415 - see _choose

    if not is_folder_of_weights(path):
        raise UnsupportedModelError(
            f"{path} is a folder without a config.json; name a GGUF file or a Hugging Face folder"
        )
    return open_folder(path, adapters)


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
        hash_inputs: bool = True,
        adapters: Sequence[Adapter] = (),
        memory_bytes: int | None = None,
        importance: Importance | None = None,
        allocation: Allocation | None = None,
        feedback: ErrorFeedback | None = None,
    ) -> None:
        """Plan the job; `source` is a GGUF file (any shard of a split one) or a Hugging Face folder.

        `importance` (quant.importance) says which columns' errors count more, `feedback` (quant.feedback) lets errors make up
        for each other; recipe "best-NAME" takes its types from `allocation` (quant.allocation), measured before.  Recipe
        "auto": the best one whose output can be served within `memory_bytes`, None: of this machine now.

        Raises UnsupportedRecipeError, RequestError (threads, source and output the same), ModelFormatError,
        UnsupportedModelError, OutputExistsError, CannotCreateError, OSError for an unreadable source.
        """
        if threads is not None and not 1 <= threads <= MAX_THREADS:
            raise RequestError("threads", f"threads must be 1 to {MAX_THREADS}, not {threads}")
        known = None if recipe.lower() == AUTO else _find_recipe(recipe, allocation)
        if allocation is not None:
            overrides = replace(overrides, exact={**allocation.types, **overrides.exact})
        self.output = Path(output)
        self.force = force
        self.threads = threads or usable_cores()
        self.hash_inputs = hash_inputs
        self.source = open_source(source, adapters)
        self.choice = None if known else _choose(self.source, overrides, memory_bytes)
        chosen = known or find_recipe(self.choice.recipe if self.choice else recipe)
        self._inputs = self.source.files + self.source.side_files
        _refuse_same_file(self._inputs, self.output)
        check_target(self.output, force=True)
        inputs = [InputFile(path.name, path.stat().st_size) for path in self._inputs]
        self._importance = importance
        self._feedback = feedback
        named = [overrides.describe(), *(one.describe() for one in adapters)]
        measured = [one.describe() for one in (importance, feedback, allocation) if one is not None]
        options = " ".join(filter(None, [*named, *measured]))
        self._manifest = begun(inputs, chosen.name, options, len(self.source.tensors))
        self.plan: QuantizePlan = plan_quantization(
            self.source,
            chosen,
            overrides,
            entries=self._manifest.metadata(),
            calibrated=importance is not None,
        )
        if self.source.is_converted:
            from quant.served import check_served  # noqa: PLC0415 - see _choose

            check_served(self.plan, str(self.source.path))
        self._done = self._find_done() if hash_inputs and not force else None
        if self._done is None:
            check_target(self.output, force=force)

    def run(
        self,
        on_progress: Callable[[Progress], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> QuantizeResult:
        """Write the output; QuantizeCancelledError soon after `cancel` is set.

        Raises DiskFullError, OutputError, OutputExistsError; ModelFormatError (code NOT_FINITE or OUT_OF_RANGE) where a
        weight cannot be quantized, CHECKSUM_MISMATCH where an input is not what was published; ModelChangedError where
        the source changed.  Nothing is left behind then.
        """
        started = time.monotonic()
        meter = Meter(len(self.plan.tensors), self.plan.source_bytes, on_progress or (lambda _: None))
        cancel = cancel or threading.Event()
        with (
            InputFiles(self.source.files, self.source.file_sizes) as files,
            InputHashes(
                self._inputs if self.hash_inputs else (), len(self.source.files), drop_cache=files.drops_cache
            ) as hashes,
        ):
            files.on_read = hashes.offer
            if self._done is not None:
                return self._confirm(self._done, hashes, started)
            job = self._job_name()
            with PartialFile(self.output, self.plan.output_bytes, force=self.force, job=job) as partial:
                known = self._importance, self._feedback
                work = _Work(self.plan, self.threads, files, hashes, partial, meter, *known)
                resumed = work.take_over(partial.resumable)
                work.write(cancel)
                manifest = self._finished_manifest(work)
                partial.write(self._header(manifest), 0)
                partial.commit(self._check)
        write_beside(self.output, manifest.to_json(self.plan))
        return self._result(manifest, started, resumed=resumed)

    def _find_done(self) -> Manifest | None:
        """Return the manifest of an output of this very job, but for the contents of the inputs."""
        found = read_embedded(self.output, self._manifest) if self.output.is_file() else None
        if found is None or self.output.stat().st_size != self.plan.output_bytes:
            return None
        header = self._header(found)
        with self.output.open("rb") as file:
            return found if file.read(len(header)) == header else None

    def _confirm(self, done: Manifest, hashes: InputHashes, started: float) -> QuantizeResult:
        """Do nothing where the inputs are those that the output was made of."""
        if UNKNOWN_HASH in done.input_sha256 or list(done.input_sha256) != hashes.result():
            raise OutputExistsError(
                f"{self.output} exists already and was made of other inputs; choose another name, or replace it with "
                "--force"
            )
        remove_leftovers(self.output)
        write_beside(self.output, done.to_json(self.plan))
        return self._result(done, started, was_done=True)

    def _finished_manifest(self, work: _Work) -> Manifest:
        return replace(
            self._manifest,
            input_sha256=tuple(work.input_sha256) if self.hash_inputs else self._manifest.input_sha256,
            data_sha256=work.sha256.hexdigest(),
            tensor_errors=tuple(work.errors),
        )

    def _header(self, manifest: Manifest) -> bytes:
        header = self.plan.header_with(manifest.metadata())
        assert len(header) == len(self.plan.header), "the manifest has a fixed size"
        return header

    def _job_name(self) -> str:
        """Return a hash of everything that a resumed run must agree in: plan, inputs, and the encoders themselves."""
        digest = hashlib.sha256(self.plan.header)
        for path in (*self._inputs, Path(_native.__file__ or "")):
            stat = path.stat()
            digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def _result(
        self, manifest: Manifest, started: float, *, resumed: int = 0, was_done: bool = False
    ) -> QuantizeResult:
        return QuantizeResult(
            output=self.output,
            recipe=self.plan.recipe.name,
            output_bytes=self.plan.output_bytes,
            source_bytes=self.source.size_bytes,
            seconds=time.monotonic() - started,
            bits_per_weight=self.plan.bits_per_weight,
            types=self.plan.types(),
            data_sha256=manifest.data_sha256,
            resumed_tensors=resumed,
            was_done=was_done,
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


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A chunk in the target's blocks, and what that lost."""

    blocks: Bytes
    loss: Loss


class _Work:
    """The tensors on their way: a few chunks are read and encoded, and one is written, at any time."""

    def __init__(  # noqa: PLR0917 - what a run consists of
        self,
        plan: QuantizePlan,
        threads: int,
        files: InputFiles,
        hashes: InputHashes,
        partial: PartialFile,
        meter: Meter,
        importance: Importance | None,
        feedback: ErrorFeedback | None,
    ) -> None:
        self._plan = plan
        self._threads = threads
        self._files = files
        self._hashes = hashes
        self._partial = partial
        self._meter = meter
        self._importance = importance
        self._feedback = feedback
        self._start = len(plan.header)  # of the data section
        self._todo = plan.tensors
        self._error = TensorError()
        self._flusher = Flusher(partial, plan.output_bytes, drop=files.drops_cache)
        self.sha256 = hashlib.sha256()  # of the data section so far
        self.input_sha256: list[str] = []  # known once everything is written
        self.errors: list[float] = []

    def take_over(self, finished: list[Finished]) -> int:
        """Believe what an earlier run finished as far as its bytes agree; returns the number of tensors."""
        believed: list[Finished] = []
        sha256 = self.sha256
        for tensor, one in zip(self._plan.tensors, finished, strict=False):
            sha256 = sha256.copy()
            start, stop = self._start + tensor.offset, self._end_of(tensor)
            for position in range(start, stop, _REREAD_BYTES):
                sha256.update(self._partial.read(position, min(_REREAD_BYTES, stop - position)))
            if tensor.name != one.name or sha256.hexdigest() != one.data_sha256:
                break
            self.sha256 = sha256
            believed.append(one)
        self.errors = [one.error for one in believed]
        self._todo = self._plan.tensors[len(believed) :]
        self._partial.journal.start(believed)
        done = self._plan.tensors[: len(believed)]
        self._meter.skip(len(believed), sum(tensor.source.n_bytes for tensor in done))
        return len(believed)

    def write(self, cancel: threading.Event) -> None:
        """Encode several chunks at once, one behind another in the file, while those before are written.

        A chunk belongs to one worker from the read to the blocks: nobody waits for the slowest thread of a chunk.
        """
        n_workers = min(self._threads, MAX_WORKERS)
        threads = self._threads // n_workers
        turns = threading.Semaphore(n_workers)
        chunks = self._chunks()
        self._partial.write(self._plan.header, 0)
        with (
            # One worker more than compute: it waits for the disk to read.
            ThreadPoolExecutor(n_workers + 1, "quantize-encode") as encoding,
            ThreadPoolExecutor(1, "quantize-write") as writing,
            self._flusher,
        ):
            under_way: deque[tuple[Chunk, Future[_Encoded]]] = deque()
            writes: deque[Future[None]] = deque()
            try:
                while True:
                    while len(under_way) < 2 * n_workers and (chunk := next(chunks, None)) is not None:
                        under_way.append((chunk, encoding.submit(self._encode, chunk, threads, turns)))
                    if not under_way:
                        break
                    chunk, future = under_way.popleft()
                    encoded = future.result()
                    if cancel.is_set():
                        raise QuantizeCancelledError("the quantization was cancelled; no file was left")
                    self._hashes.check()
                    if len(writes) == _WAITING_WRITES:
                        writes.popleft().result()
                    writes.append(writing.submit(self._finish, chunk, encoded))
                    self._meter.advance(chunk.source_bytes, chunk.tensor.name, is_last=chunk.is_last)
                for write in writes:
                    write.result()
                self._flusher.written(self._plan.output_bytes)
                self._files.check_unchanged()
                self.input_sha256 = self._hashes.result()  # beside the last flush
                self._flusher.wait()
            finally:
                encoding.shutdown(wait=False, cancel_futures=True)

    def _encode(self, chunk: Chunk, threads: int, turns: threading.Semaphore) -> _Encoded:
        """Read a chunk and, when it is its turn to compute, encode it and look at what that lost."""
        data = chunk.tensor.source.read(self._files, chunk.first, chunk.n_elements)
        with turns:
            encoded = encode_chunk(chunk, data, threads, self._importance, self._feedback)
            return _Encoded(encoded, chunk_loss(chunk, data, encoded))

    def _chunks(self) -> Iterator[Chunk]:
        for tensor in self._todo:
            yield from chunks_of(tensor, CHUNK_ELEMENTS)

    def _finish(self, chunk: Chunk, encoded: _Encoded) -> None:
        """Write a chunk; in the writing thread, in the order of the file."""
        offset = self._start + chunk.target_offset
        self._partial.write(encoded.blocks, offset)
        self.sha256.update(encoded.blocks)
        self._error.add(encoded.loss)
        end = offset + len(encoded.blocks)
        self._flusher.written(end)
        if chunk.is_last:
            self.sha256.update(bytes(self._end_of(chunk.tensor) - end))
            self.errors.append(self._error.result())
            self._error = TensorError()
            self._partial.finish_tensor(Finished(chunk.tensor.name, self.sha256.hexdigest(), self.errors[-1]))

    def _end_of(self, tensor: TensorPlan) -> int:
        """Return the byte of the file behind a tensor and its padding."""
        end = self._start + tensor.offset + tensor.target_bytes
        return end + -end % self._plan.alignment


def _choose(source: ModelSource, overrides: Overrides, memory_bytes: int | None) -> Choice:
    """Recipe "auto".  What only some jobs use is imported by them: the others would wait for it, on one core."""
    from quant.auto import choose_recipe  # noqa: PLC0415

    return choose_recipe(source, overrides, memory_bytes)


def _find_recipe(name: str, allocation: Allocation | None) -> Recipe:
    """Return a recipe; one of the name best-NAME is NAME with other types."""
    base = base_of(name)
    if base is None:
        return find_recipe(name)
    if allocation is None or allocation.recipe != f"{BEST}{base.name}":
        raise RequestError(
            "recipe",
            f"recipe: {name} needs a model that can be measured first: a GGUF file that quantd serves; of a folder make one "
            "with --recipe F16 or BF16",
        )
    return replace(base, name=allocation.recipe)


def _refuse_same_file(sources: tuple[Path, ...], output: Path) -> None:
    for path in sources:
        same = False
        with contextlib.suppress(OSError):
            same = path.samefile(output)
        if same:
            raise CannotCreateError(f"{output} is the source itself; write to another name")
