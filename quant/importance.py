"""Which input channels of a layer carry the large values: the importance matrix that the block searches weigh errors with.

The importance of a column is the mean square of what it is multiplied with, the diagonal of the layer's Hessian.  It
comes from running a short text through the unquantized model, whose weights are used where they lie in the mapped file,
or from an imatrix file of llama.cpp: GGUF (`NAME.in_sum2`, `NAME.counts`) or the older .dat form.
Source: the imatrix tool of llama.cpp (tools/imatrix).
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quant.errors import CannotCreateError
from quant.gguf_header import DEFAULT_ALIGNMENT, KeyValue, TensorEntry, align, header_bytes
from quant.moments import InputMoments
from quant.perplexity import sequence_plan
from runtime.errors import ModelFormatError, RequestError
from runtime.gguf import ModelFile
from runtime.memory import RuntimeSettings
from runtime.model import LoadedModel, load_model

DEFAULT_CTX = 512
DEFAULT_TOKENS = 4096  # of the text; more changes little
MIN_TOKENS = 64
# The head's output and the embedding are searched without importance, as llama-quantize does: an embedding is looked up, and
# the head's input differs most from text to text.
UNWEIGHTED = frozenset({"output.weight", "token_embd.weight"})
_F32 = 0
_MAX_ENTRIES = 1 << 20
_MAX_NAME_BYTES = 1 << 12
_MAX_DAT_BYTES = 1 << 32

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TensorImportance:
    """What one weight tensor was multiplied with: (n_matrices, n_in) mean squares; one matrix but for experts."""

    mean_squares: Floats
    counts: NDArray[np.float32]  # (n_matrices,) input rows that each mean is of

    def of_matrix(self, index: int) -> Floats:
        """Return (n_in,) of one matrix; that of all matrices together where this one met no input."""
        if self.counts[index] > 0 or not self.counts.any():
            return np.ascontiguousarray(self.mean_squares[index])
        weights = self.counts / self.counts.sum()
        return np.ascontiguousarray((weights[:, None] * self.mean_squares).sum(0), np.float32)


@dataclass(frozen=True, slots=True)
class Importance:
    """The importance matrix of a model; `datasets` names the texts, never with their folders."""

    tensors: dict[str, TensorImportance]
    datasets: tuple[str, ...] = ()
    n_chunks: int = 0
    chunk_tokens: int = DEFAULT_CTX
    n_tokens: int = field(default=0)

    def describe(self) -> str:
        """Return what identifies it in a manifest: the texts' names and a hash of the numbers."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            digest.update(name.encode() + b"\0")
            digest.update(tensor.mean_squares.astype("<f4").tobytes() + tensor.counts.astype("<f4").tobytes())
        names = ",".join(self.datasets) or "unnamed"
        return f"importance={names}:{digest.hexdigest()[:16]}"

    def of(self, name: str, n_in: int, matrix: int = 0) -> Floats | None:
        """Return (n_in,) for one matrix of a tensor, None where nothing is known.

        Raises RequestError where the file that this came from was made for a model of another shape.
        """
        found = self.tensors.get(name)
        if found is None or name in UNWEIGHTED:
            return None
        if "_exps" in name and len(found.counts) == 1 and found.mean_squares.size % n_in == 0:
            # The older file says how many values there are, not of how many experts.
            means = found.mean_squares.reshape(-1, n_in)
            found = TensorImportance(means, np.ones(len(means), np.float32))
        n_matrices, width = found.mean_squares.shape
        if width != n_in or matrix >= n_matrices:
            raise RequestError(
                "imatrix",
                f"the importance of {name} has {n_matrices} x {width} values, the tensor has rows of {n_in}: "
                "it was made for another model",
            )
        return found.of_matrix(matrix)


def collect(
    model: str | os.PathLike[str],
    text: str,
    *,
    dataset: str = "built-in",
    ctx: int = DEFAULT_CTX,
    max_tokens: int = DEFAULT_TOKENS,
    threads: int | None = None,
    moments: InputMoments | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Importance:
    """Run the text through a model that the runtime serves; `on_progress` gets tokens done and in all.

    Names of control tokens in the text are read as such, as a chat has them.  `moments` is filled on the way.

    Raises RequestError for a text of less than MIN_TOKENS tokens and what load_model raises.
    """
    settings = RuntimeSettings(sessions=1, context_tokens=ctx, threads=threads, max_step_rows=min(ctx, 256))
    loaded = load_model(model, settings)
    try:
        tokens = loaded.tokenizer.encode(text, add_special=True, parse_special=True)[:max_tokens]
        if len(tokens) < MIN_TOKENS:
            raise RequestError(
                "calibrate", f"the text has {len(tokens)} tokens; at least {MIN_TOKENS} are needed"
            )
        if moments is None:
            loaded.collect_inputs()
        else:
            moments.collect_from(loaded)
        found = _run(loaded, np.array(tokens, np.int32), dataset, ctx, on_progress or (lambda _, __: None))
        if moments is not None:
            moments.finish(loaded)
        return found
    finally:
        loaded.close()


def _run(
    loaded: LoadedModel,
    tokens: NDArray[np.int32],
    dataset: str,
    ctx: int,
    report: Callable[[int, int], None],
) -> Importance:
    bos = loaded.tokenizer.bos_id if loaded.tokenizer.add_bos else None
    step_rows = loaded.settings.max_step_rows
    n_chunks = 0
    for begin in range(0, len(tokens), ctx):
        chunk = tokens[begin : begin + ctx].copy()
        if bos is not None:
            chunk[0] = bos
        for start in range(0, len(chunk), step_rows):
            rows = chunk[start : start + step_rows]
            outputs = np.arange(len(rows), dtype=np.int32)  # so that the head's input counts as well
            loaded.step(sequence_plan(rows, start, outputs, np.full_like(outputs, -1), loaded.page_tokens))
        n_chunks += 1
        report(begin + len(chunk), len(tokens))
    tensors = {
        name: TensorImportance(
            (sums / np.maximum(counts, 1)[:, None]).astype(np.float32), counts.astype(np.float32)
        )
        for name, (sums, counts) in loaded.input_statistics().items()
    }
    return Importance(tensors, (dataset,), n_chunks, ctx, len(tokens))


def read_imatrix(path: str | os.PathLike[str]) -> Importance:
    """Read an imatrix file of llama.cpp, GGUF or .dat, whatever its name ends in.

    Raises ModelFormatError for a file that is neither or is damaged, OSError.
    """
    path = Path(path)
    with path.open("rb") as file:
        magic = file.read(4)
    return _read_gguf(path) if magic == b"GGUF" else _read_dat(path)


def write_imatrix(path: str | os.PathLike[str], importance: Importance) -> None:
    """Write what llama-quantize reads: .dat in the older form, anything else as GGUF.  Raises CannotCreateError."""
    path = Path(path)
    data = _dat_bytes(importance) if path.suffix == ".dat" else _gguf_bytes(importance)
    partial = path.with_name(f".{path.name}.partial.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as failure:
        partial.unlink(missing_ok=True)
        raise CannotCreateError(f"{path}: {failure.strerror}") from failure


def _read_gguf(path: Path) -> Importance:
    file = ModelFile.open(path)
    tensors: dict[str, TensorImportance] = {}
    for name, info in file.tensors.items():
        if not name.endswith(".in_sum2"):
            continue
        weight = name.removesuffix(".in_sum2")
        counts_info = file.tensors.get(f"{weight}.counts")
        if counts_info is None or info.type_id != _F32 or counts_info.type_id != _F32:
            raise _bad(path, f"{name} has no counts beside it, or is not F32")
        sums = file.data(name).view("<f4").reshape(-1, info.shape[0])
        counts = file.data(counts_info.name).view("<f4").astype(np.float32)
        if len(counts) != len(sums):
            raise _bad(path, f"{name} is of {len(sums)} matrices, its counts of {len(counts)}")
        means = sums / np.maximum(counts, 1)[:, None]
        tensors[weight] = _checked(path, weight, means.astype(np.float32), counts)
    if not tensors:
        raise _bad(path, "holds no tensors NAME.in_sum2; this is no imatrix file")
    datasets = file.get("imatrix.datasets")
    return Importance(
        tensors,
        tuple(map(str, datasets)) if isinstance(datasets, list) else (),
        file.integer("imatrix.chunk_count", 0, minimum=0, maximum=1 << 31),
        file.integer("imatrix.chunk_size", DEFAULT_CTX, minimum=1, maximum=1 << 31),
    )


def _read_dat(path: Path) -> Importance:
    size = path.stat().st_size
    if size > _MAX_DAT_BYTES:
        raise _bad(path, "is too large for an imatrix file")
    raw, at = path.read_bytes(), 0

    def take(n_bytes: int) -> bytes:
        nonlocal at
        if n_bytes < 0 or at + n_bytes > len(raw):
            raise _bad(
                path,
                f"ends at byte {len(raw)} in the middle of an entry; this is no imatrix file, or half of one",
            )
        at += n_bytes
        return raw[at - n_bytes : at]

    def integer() -> int:
        return int(struct.unpack("<i", take(4))[0])

    n_entries = integer()
    if not 1 <= n_entries <= _MAX_ENTRIES:
        raise _bad(path, "is no imatrix file: neither GGUF nor the older form")
    tensors: dict[str, TensorImportance] = {}
    for _ in range(n_entries):
        name_bytes = integer()
        if not 1 <= name_bytes <= _MAX_NAME_BYTES:
            raise _bad(path, f"byte {at - 4}: a name of {name_bytes} bytes; this is no imatrix file")
        name = take(name_bytes).decode("utf-8", "replace")
        n_calls, n_values = integer(), integer()
        values = np.frombuffer(take(4 * n_values), "<f4") / np.float32(max(n_calls, 1))
        tensors[name] = _checked(path, name, values[None].astype(np.float32), np.ones(1, np.float32))
    n_chunks, dataset = 0, ""
    if at < len(raw):  # files of early versions end here
        n_chunks = integer()
    if at < len(raw):
        dataset = take(integer()).decode("utf-8", "replace")
    return Importance(tensors, (dataset,) if dataset else (), n_chunks)


def _checked(path: Path, name: str, means: Floats, counts: Floats) -> TensorImportance:
    if means.size == 0 or not (np.isfinite(means).all() and (means >= 0).all()):
        raise _bad(path, f"the importance of {name} is empty, negative or not finite")
    return TensorImportance(means, counts)


def _bad(path: Path, what: str) -> ModelFormatError:
    return ModelFormatError("BAD_IMATRIX", path.name, 0, f"{path}: {what}")


def _gguf_bytes(importance: Importance) -> bytes:
    metadata = [
        KeyValue("general.type", "string", "imatrix"),
        KeyValue("imatrix.datasets", "array[string]", list(importance.datasets)),
        KeyValue("imatrix.chunk_count", "u32", importance.n_chunks),
        KeyValue("imatrix.chunk_size", "u32", importance.chunk_tokens),
    ]
    table: list[TensorEntry] = []
    parts: list[bytes] = []
    offset = 0
    for name, tensor in sorted(importance.tensors.items()):
        n_matrices, n_in = tensor.mean_squares.shape
        sums = tensor.mean_squares * tensor.counts[:, None]
        for key, shape, values in (
            (f"{name}.in_sum2", (n_in, n_matrices), sums),
            (f"{name}.counts", (1, n_matrices), tensor.counts),
        ):
            table.append(TensorEntry(key, shape, _F32, offset))
            raw = values.astype("<f4").tobytes()
            padded = align(len(raw), DEFAULT_ALIGNMENT)
            parts.append(raw.ljust(padded, b"\0"))
            offset += padded
    return header_bytes(metadata, table, DEFAULT_ALIGNMENT) + b"".join(parts)


def _dat_bytes(importance: Importance) -> bytes:
    parts = [struct.pack("<i", len(importance.tensors))]
    for name, tensor in sorted(importance.tensors.items()):
        raw = name.encode()
        values = np.stack([tensor.of_matrix(i) for i in range(len(tensor.counts))])
        n_calls = max(importance.n_chunks, 1)
        parts += (
            struct.pack("<i", len(raw)) + raw,
            struct.pack("<ii", n_calls, values.size),
            (values * np.float32(n_calls)).astype("<f4").tobytes(),
        )
    dataset = ",".join(importance.datasets).encode()
    parts.append(struct.pack("<ii", importance.n_chunks, len(dataset)) + dataset)
    return b"".join(parts)


def dataset_name(path: str | os.PathLike[str]) -> str:
    """Return how a calibration file is named in a manifest: without its folder."""
    return Path(path).name
