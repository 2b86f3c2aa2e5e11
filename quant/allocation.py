"""Recipes best-NAME: the bytes of recipe NAME, given to the tensors that need them.

Two things are measured.  How much each tensor matters: one tensor at a time is quantized coarsely in the unquantized model, a
text runs through it, and the KL divergence to the original's answers counts.  And what each type loses of each tensor: its
weighted error on a sample of rows.  The divergence of a tensor is taken to be in proportion to its error, and that of the
model to be the sum; then the best types within the bytes are those that buy the most per byte everywhere.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quant.chunks import CHUNK_ELEMENTS, chunks_of, encode_chunk
from quant.feedback import ErrorFeedback
from quant.gguf_header import DEFAULT_ALIGNMENT, TensorEntry, header_bytes
from quant.importance import DEFAULT_CTX, MIN_TOKENS, Importance
from quant.input_files import Bytes, InputFiles
from quant.logits import TopLogits, sequence_logits
from quant.plan import TensorPlan, plan_quantization, tensor_bytes
from quant.policy import NO_OVERRIDES, Overrides, TensorShape, expert_rows, fits, is_quantized
from quant.recipes import (
    BEST,
    IQ4_NL,
    IQ4_XS,
    Q2_K,
    Q3_K,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    Q8_0,
    Recipe,
)
from quant.source import ModelSource, SourceTensor, open_gguf
from runtime._native import dequantize, new_buffer, quantize_rows, type_traits
from runtime.cpu import usable_cores
from runtime.errors import RequestError
from runtime.gguf import ModelFile
from runtime.memory import RuntimeSettings
from runtime.model import LoadedModel, load_model

# What a tensor may become, for rows of whole super-blocks and for others; the first is what it is tried with.
_SUPER_BLOCKS = (Q3_K, IQ4_XS, Q4_K, Q5_K, Q6_K, Q8_0)
_SMALL_BLOCKS = (Q4_0, IQ4_NL, Q4_1, Q5_0, Q5_1, Q8_0)
_FEW_BITS = frozenset({Q2_K, Q3_K})  # recipes of these may go down to Q2_K
_SAMPLED_ROWS = 256
_MAX_TOKENS, _MIN_TOKENS = 4096, 256
_WORK = 1e14  # multiplications and additions of all runs together that are aimed at: some minutes
_BISECTIONS = 200

Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Allocation:
    """The type of each tensor that was free, and what was expected of it."""

    recipe: str  # whose bytes it has
    types: Mapping[str, int]
    divergence_of_recipe: float  # expected KL divergence to the original, of the text that was used
    divergence: float
    n_tokens: int

    def describe(self) -> str:
        """Return what identifies it in a manifest."""
        lines = "".join(f"{name} {type_id}\n" for name, type_id in sorted(self.types.items()))
        return f"allocation={hashlib.sha256(lines.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class TensorCosts:
    """What one tensor costs in each type that it may get."""

    name: str
    base: int  # its type by the recipe
    n_bytes: Mapping[int, int]
    divergence: Mapping[int, float]  # that it is expected to add


def allocate(
    model: str | os.PathLike[str],
    recipe: Recipe,
    text: str,
    *,
    overrides: Overrides = NO_OVERRIDES,
    importance: Importance | None = None,
    feedback: ErrorFeedback | None = None,
    threads: int | None = None,
    on_progress: Report | None = None,
) -> Allocation:
    """Measure a model that the runtime serves and choose its types; tensors that `overrides` fixes stay so.

    `on_progress` gets tensors done and in all.  Raises RequestError for a text of less than MIN_TOKENS tokens, and what
    open_gguf and load_model raise.
    """
    source = open_gguf(model)
    plan = plan_quantization(source, recipe, overrides, calibrated=importance is not None)
    free = [tensor for tensor in plan.tensors if _is_free(tensor, overrides)]
    if not free:
        raise RequestError("recipe", f"recipe: no tensor of {source.path} is free to get another type")
    settings = RuntimeSettings(
        sessions=1, context_tokens=DEFAULT_CTX, threads=threads, max_step_rows=DEFAULT_CTX
    )
    loaded = load_model(model, settings)
    try:
        tokens = _tokens(loaded, text, _n_tokens(source, len(free)))
        original = TopLogits.of(sequence_logits(loaded, tokens, DEFAULT_CTX))
        costs = []
        with InputFiles(source.files, source.file_sizes) as files:
            for done, tensor in enumerate(free):
                probe = _Probe(files, importance, feedback, threads or usable_cores())
                menu = _menu(tensor, recipe)
                errors = probe.errors(tensor, (*menu, tensor.target_type))
                with probe.encoded(tensor.source, menu[0]) as other:
                    tried = loaded.with_tensors_of(other)
                    divergence = original.divergence_of(sequence_logits(tried, tokens, DEFAULT_CTX))
                    tried.close()
                costs.append(_costs(tensor, errors, menu[0], divergence))
                if on_progress is not None:
                    on_progress(done + 1, len(free))
    finally:
        loaded.close()
    types = choose(costs)
    return Allocation(
        f"{BEST}{recipe.name}",
        types,
        sum(one.divergence[one.base] for one in costs),
        sum(one.divergence[types[one.name]] for one in costs),
        len(tokens),
    )


def choose(costs: list[TensorCosts]) -> dict[str, int]:
    """Return the types of least divergence within the bytes of the base types.

    One price of a byte for all tensors, the lowest at which they fit; what is left over goes to the best single changes.
    """
    budget = sum(one.n_bytes[one.base] for one in costs)
    low, high = 0.0, 1.0  # prices: too many bytes, few enough
    best = {one.name: one.base for one in costs}
    for _ in range(_BISECTIONS):
        price = (low + high) / 2
        types = {
            one.name: min(one.n_bytes, key=lambda t: (one.divergence[t] + price * one.n_bytes[t], t))
            for one in costs
        }
        if sum(one.n_bytes[types[one.name]] for one in costs) <= budget:
            best, high = types, price
        else:
            low = price
    best = _spend_rest(costs, best, budget)
    base = {one.name: one.base for one in costs}
    return min(best, base, key=lambda types: sum(one.divergence[types[one.name]] for one in costs))


def _spend_rest(costs: list[TensorCosts], types: dict[str, int], budget: int) -> dict[str, int]:
    left = budget - sum(one.n_bytes[types[one.name]] for one in costs)
    while True:
        changes = []
        for one in costs:
            now = types[one.name]
            for type_id, n_bytes in one.n_bytes.items():
                gain = one.divergence[now] - one.divergence[type_id]
                more = n_bytes - one.n_bytes[now]
                if gain > 0 and more <= left:
                    changes.append((gain / max(more, 1), one.name, type_id, more))
        if not changes:
            return types
        _, name, type_id, more = max(changes)
        types[name] = type_id
        left -= more


def _is_free(tensor: TensorPlan, overrides: Overrides) -> bool:
    shape = TensorShape(tensor.name, tensor.source.type_id, tensor.source.shape)
    return (
        not tensor.is_copied
        and is_quantized(shape)
        and fits(Q8_0, shape.shape[0])
        and not overrides.is_fixed(tensor.name)
    )


def _menu(tensor: TensorPlan, recipe: Recipe) -> tuple[int, ...]:
    if not fits(Q4_K, tensor.source.shape[0]):
        return _SMALL_BLOCKS
    return (*_SUPER_BLOCKS, Q2_K) if recipe.default_type in _FEW_BITS else _SUPER_BLOCKS


def _n_tokens(source: ModelSource, n_runs: int) -> int:
    n_weights = sum(tensor.n_elements for tensor in source.tensors.values())
    return int(min(max(_WORK / (2 * n_weights * n_runs), _MIN_TOKENS), _MAX_TOKENS))


def _tokens(loaded: LoadedModel, text: str, n_tokens: int) -> NDArray[np.int32]:
    """Return token ids spread over the whole text, (n,): its first and its last part may be of different kinds."""
    found = np.array(loaded.tokenizer.encode(text, add_special=True, parse_special=True), np.int32)
    if len(found) < MIN_TOKENS:
        raise RequestError("calibrate", f"the text has {len(found)} tokens; at least {MIN_TOKENS} are needed")
    if len(found) <= n_tokens:
        return found
    n_parts = max(n_tokens // DEFAULT_CTX, 1)
    size = n_tokens // n_parts
    starts = np.linspace(0, len(found) - size, n_parts).astype(np.int64)
    return np.concatenate([found[start : start + size] for start in starts])


def _costs(
    tensor: TensorPlan, errors: Mapping[int, float], probe_type: int, divergence: float
) -> TensorCosts:
    sensitivity = divergence / errors[probe_type] if errors[probe_type] > 0 else 0.0
    return TensorCosts(
        tensor.name,
        tensor.target_type,
        {type_id: tensor_bytes(tensor.source.shape, type_id) for type_id in errors},
        {type_id: sensitivity * error for type_id, error in errors.items()},
    )


class _Probe:
    """Encodes tensors to see what is lost."""

    def __init__(
        self, files: InputFiles, importance: Importance | None, feedback: ErrorFeedback | None, threads: int
    ) -> None:
        self._files = files
        self._importance = importance
        self._feedback = feedback
        self._threads = threads

    def errors(self, tensor: TensorPlan, types: tuple[int, ...]) -> dict[int, float]:
        """Return the squared error of each type over the squares, on a sample of rows.

        Of the tensor's products with the calibration's inputs where their moments are known, else of its weights, each
        weighted by its column's importance.
        """
        source = tensor.source
        n_in = source.shape[0]
        n_matrices, n_rows = expert_rows(source.shape)
        total = n_matrices * n_rows
        lost = dict.fromkeys(types, 0.0)
        whole = 0.0
        for matrix in range(n_matrices):
            rows = np.unique(np.linspace(0, n_rows - 1, max(_SAMPLED_ROWS * n_rows // total, 1)).astype(int))
            raw = [source.read(self._files, (matrix * n_rows + int(row)) * n_in, n_in) for row in rows]
            data = memoryview(b"".join(raw))
            x = _floats(data, source.type_id).reshape(len(rows), n_in)
            used = self._importance.of(source.name, n_in, matrix) if self._importance else None
            whole += self._loss(source.name, x, used)
            for type_id in types:
                out = new_buffer(tensor_bytes(x.shape, type_id))
                fault = quantize_rows(
                    data, source.type_id, len(rows), n_in, type_id, out, self._threads, importance=used
                )
                if fault is not None:
                    raise RequestError("source", f"{source.name} holds a weight that cannot be quantized")
                if self._feedback is not None:
                    self._feedback.apply(
                        source.name, data, source.type_id, len(rows), n_in, type_id, out, self._threads
                    )
                blocks = np.frombuffer(out, np.uint8)
                y = dequantize(type_traits(type_id)[0], blocks, x.size).reshape(x.shape)
                lost[type_id] += self._loss(source.name, x - y, used)
        return {type_id: lost[type_id] / whole if whole else 0.0 for type_id in types}

    def _loss(self, name: str, errors: NDArray[np.float32], importance: NDArray[np.float32] | None) -> float:
        """Return the weighted sum of squares of errors (n_rows, n_in)."""
        if self._feedback is not None and self._feedback.moments.n_seen(name):
            return self._feedback.moments.loss(name, errors)
        weight = np.ones(errors.shape[1]) if importance is None else importance.astype(np.float64)
        return float((np.square(errors) @ weight).sum())

    @contextmanager
    def encoded(self, source: SourceTensor, type_id: int) -> Iterator[ModelFile]:
        """Open a file in memory that holds nothing but this tensor, in a type."""
        n_bytes = tensor_bytes(source.shape, type_id)
        header = header_bytes((), [TensorEntry(source.name, source.shape, type_id, 0)], DEFAULT_ALIGNMENT)
        fd = os.memfd_create("quantd-probe", os.MFD_CLOEXEC)
        try:
            os.truncate(fd, len(header) + n_bytes)
            os.pwrite(fd, header, 0)
            for chunk in chunks_of(TensorPlan(source, type_id, n_bytes, 0), CHUNK_ELEMENTS):
                data = source.read(self._files, chunk.first, chunk.n_elements)
                encoded = encode_chunk(chunk, data, self._threads, self._importance, self._feedback)
                os.pwrite(fd, encoded, len(header) + chunk.target_offset)
            yield ModelFile.open(Path(f"/proc/self/fd/{fd}"))
        finally:
            os.close(fd)


def _floats(data: Bytes, type_id: int) -> NDArray[np.float32]:
    name, _, element_bytes, _ = type_traits(type_id)
    return dequantize(name, np.frombuffer(data, np.uint8), len(data) // element_bytes)
