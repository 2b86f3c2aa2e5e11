"""A model that is ready to compute: the file, its tokenizer, the memory plan and the native program.

model = load_model("model.gguf", RuntimeSettings())
result = model.step(plan)      # one native call, without the GIL; of an encoder: model.embed([ids, ...])
model.close()
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime._native import Arena, Program, ThreadPool, kernel_levels
from runtime.admission import native_sampler
from runtime.cpu import usable_cores
from runtime.errors import ContextLengthError, EngineStoppedError, MemoryPlanError, RequestError
from runtime.gguf import ModelFile
from runtime.memory import MemoryPlan, RuntimeSettings, plan_memory
from runtime.models import build_graph
from runtime.models.config import ModelConfig, read_config
from runtime.models.loader import bind_weights, build_program
from runtime.sampling import SamplingParams
from runtime.step_plan import Float32Array, Outcome, StepPlan, StepResult
from runtime.tokenizer import Tokenizer, build_tokenizer

_ENCODER_STEP_ROWS = (
    2048  # an encoder computes a sequence in one step: the longest one that it takes by default
)

__all__ = ["LoadedModel", "ModelConfig", "load_model", "read_config", "settings_for"]


class LoadedModel:
    """A model with all its memory taken.  `step` is for one thread at a time; everything else is constant."""

    def __init__(
        self,
        *,
        file: ModelFile,
        config: ModelConfig,
        tokenizer: Tokenizer,
        plan: MemoryPlan,
        settings: RuntimeSettings,
        program: Program,
        pool: ThreadPool,
        arena: Arena,
    ) -> None:
        self.file = file
        self.config = config
        self.tokenizer = tokenizer
        self.plan = plan
        self.settings = settings
        self.name = model_name(file)
        self.chat_template = _chat_template(file)
        self.eog_token_ids: frozenset[int] = frozenset(tokenizer.eog_ids)
        self.page_tokens = plan.page_tokens
        self.n_pages = plan.n_pages
        self.context_tokens = plan.session_context_tokens
        self.generates = config.generates  # False: an encoder, which gives embeddings
        self._program: Program | None = program
        self._pool: ThreadPool | None = pool
        self._arena: Arena | None = arena
        self._embedding = threading.Lock()
        self.is_warm = False  # warm_up has run, and gave numbers

    @property
    def level(self) -> str:
        """The CPU level of the kernels in use."""
        return self._running().level

    @property
    def n_vocab(self) -> int:
        """Tokens of the vocabulary: the width of a row of logits."""
        return self.config.n_vocab

    @property
    def scratch_bytes(self) -> int:
        """The run state that the native core holds, beside the arena."""
        return self._running().scratch_bytes

    @property
    def n_threads(self) -> int:
        """Threads that compute, the one that calls `step` included."""
        return self._threads().size

    def use_threads(self, n_threads: int) -> None:
        """Let only so many of them take part from the next step on, 1 to n_threads; results stay the same."""
        self._threads().use(n_threads)

    def collect_inputs(self) -> None:
        """From now on sum the squares of what every matrix is multiplied with (calibration)."""
        self._running().collect_inputs()

    def input_statistics(self) -> dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]]:
        """Return (sums of squares (n_matrices, n_in), rows seen (n_matrices,)) of each tensor that was used since
        collect_inputs: one matrix, or one for each expert.
        """
        return self._running().input_statistics()

    def collect_moments(self) -> dict[str, tuple[int, int]]:
        """As collect_inputs, and with `keep_moments` sum products of input columns too, in runs of 256 columns.

        Gives (first run, number of runs) of each matrix of which they are kept: not of experts, the embedding and the head.
        """
        return self._running().collect_moments()

    def keep_moments(self, sums: NDArray[np.float32]) -> None:
        """Add the products to `sums` (n_runs, 256, 256), zeros at first, on and above the diagonals; n_runs of all matrices."""
        self._running().keep_moments(sums)

    def with_tensors_of(self, other: ModelFile) -> LoadedModel:
        """Return this model with the tensors of `other` in place of its own of these names; all else is shared.

        Only one of the two may be used at a time: the KV arena is the same.  Raises what loading the weights raises.
        """
        pool, arena = self._threads(), self._arena
        assert arena is not None  # as long as there are threads
        file = self.file.with_tensors_of(other)
        program = build_program(
            build_graph(self.config),
            self.config,
            file,
            pool=pool,
            arena=arena,
            max_rows=self.settings.max_step_rows,
            context_tokens=self.plan.session_context_tokens,
            level=self.level,
        )
        return LoadedModel(
            file=file,
            config=self.config,
            tokenizer=self.tokenizer,
            plan=self.plan,
            settings=self.settings,
            program=program,
            pool=pool,
            arena=arena,
        )

    def step(self, plan: StepPlan, logits: Float32Array | None = None) -> StepResult:
        """Compute one step; the raw logits go to `logits` (n_out, n_vocab) if given.

        Raises ValueError for a plan with an index out of range (nothing was touched then), ModelChangedError when the
        mapped file changed under the computation, RequestError for a model that does not generate.
        """
        if not self.generates:
            raise RequestError("model", f"model {self.name} gives embeddings; it does not generate")
        result = StepResult(
            *self._running().step(
                plan.tokens,
                plan.positions,
                plan.seq_starts,
                plan.page_starts,
                plan.pages,
                plan.out_rows,
                plan.samplers,
                plan.targets,
                logits,
            )
        )
        self.file.check_unchanged()
        return result

    def embed(self, sequences: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Return the embeddings (n_sequences, n_embd) of sequences of token ids, each of length 1.

        What is embedded together changes nothing.  For any thread; calls wait for each other.  Raises RequestError for a
        model that is no encoder, no sequence or an empty one, or an id outside the vocabulary; ContextLengthError for a
        sequence that is too long.
        """
        if self.generates:
            raise RequestError("model", f"model {self.name} generates text; it gives no embeddings")
        for sequence in sequences:
            self._check_sequence(sequence)
        if not sequences:
            raise RequestError("input", "there is nothing to embed")
        with self._embedding:
            program = self._running()
            parts = [program.embed_step(*self._whole(part)) for part in self._steps(sequences)]
            self.file.check_unchanged()
        return np.concatenate(parts)

    @property
    def max_embedding_tokens(self) -> int:
        """Tokens of the longest sequence that `embed` takes."""
        pages_tokens = self.n_pages * self.page_tokens
        return min(self.settings.max_step_rows, self.context_tokens, pages_tokens)

    def _check_sequence(self, sequence: Sequence[int]) -> None:
        if not sequence:
            raise RequestError("input", "an empty sequence has no embedding")
        if len(sequence) > self.max_embedding_tokens:
            raise ContextLengthError(
                "input",
                f"a sequence of {len(sequence)} tokens; the model takes {self.max_embedding_tokens}",
                prompt_tokens=len(sequence),
                context_tokens=self.max_embedding_tokens,
            )
        if min(sequence) < 0 or max(sequence) >= self.config.n_vocab:
            raise RequestError("input", f"token ids are 0 to {self.config.n_vocab - 1}")

    def _steps(self, sequences: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
        """Yield the sequences in order, as many together as a step and the pages hold."""
        part: list[Sequence[int]] = []
        rows = pages = 0
        for sequence in sequences:
            needed_pages = -(-len(sequence) // self.page_tokens)
            if part and (
                rows + len(sequence) > self.settings.max_step_rows or pages + needed_pages > self.n_pages
            ):
                yield part
                part, rows, pages = [], 0, 0
            part.append(sequence)
            rows, pages = rows + len(sequence), pages + needed_pages
        yield part

    def _whole(self, sequences: list[Sequence[int]]) -> tuple[NDArray[np.int32], ...]:
        """Tokens, positions, sequence starts, page starts and pages of a step of whole sequences."""
        n_tokens = [len(sequence) for sequence in sequences]
        page_starts = np.cumsum([0, *(-(-n // self.page_tokens) for n in n_tokens)])
        arrays = (
            np.concatenate([np.asarray(sequence) for sequence in sequences]),
            np.concatenate([np.arange(n) for n in n_tokens]),
            np.cumsum([0, *n_tokens]),
            page_starts,
            np.arange(page_starts[-1]),
        )
        return tuple(array.astype(np.int32) for array in arrays)

    def warm_up(self, n_threads: int | None = None) -> None:
        """Compute one row on page 0, so that the weights are mapped; `n_threads`: with no more threads than that.

        Then `is_warm` says that it gave a token, as it does not where weights are no numbers.
        """
        if n_threads is not None:
            self.use_threads(min(n_threads, self.n_threads))
        try:
            self.is_warm = self._try_step()
        finally:
            self.use_threads(self.n_threads)

    def _try_step(self) -> bool:
        """Whether a step of one row gives a token, or of an encoder a vector."""
        if not self.generates:
            return bool(np.isfinite(self.embed([[0]])).all())

        def ints(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
            return np.array(values, np.int32)

        result = self.step(
            StepPlan(
                tokens=ints(0),
                positions=ints(0),
                seq_starts=ints(0, 1),
                page_starts=ints(0, 1),
                pages=ints(0),
                out_rows=ints(0),
                samplers=[native_sampler(SamplingParams(temperature=0.0))],
                targets=ints(-1),
            )
        )
        return bool(result.outcomes[0] == Outcome.FINE)

    def close(self) -> None:
        """Give back threads, arena and scratch; the mapping goes with the last reader of `file`."""
        self._program = self._pool = self._arena = None

    def _running(self) -> Program:
        if self._program is None:
            raise EngineStoppedError(f"model {self.name} is closed")
        return self._program

    def _threads(self) -> ThreadPool:
        if self._pool is None:
            raise EngineStoppedError(f"model {self.name} is closed")
        return self._pool


def load_model(
    path: str | os.PathLike[str],
    settings: RuntimeSettings | None = None,
    *,
    others: Sequence[MemoryPlan] = (),
) -> LoadedModel:
    """Open, check and plan a model beside the `others` of this process, then take its memory.

    Raises ModelFormatError, UnsupportedModelError, RequestError for settings that this model cannot be served with,
    MemoryPlanError (before any large allocation) or OSError.
    """
    settings = settings or RuntimeSettings()
    level = _level(settings)
    file = ModelFile.open(path)
    config = read_config(file)
    settings = settings_for(config, settings)
    graph = build_graph(config)
    bind_weights(graph, file)
    plan = plan_memory(file, config, settings, others=others)
    plan.ensure_fits()
    try:
        # Both take a good part of a start: the arena is touched without the GIL, and the tokenizer needs it.
        with ThreadPoolExecutor(1, thread_name_prefix="quantd-arena") as beside:
            arena_to_be = beside.submit(_make_arena, config, plan)
            tokenizer = build_tokenizer(file)
            arena = arena_to_be.result()
        pool = ThreadPool(settings.threads or usable_cores())
        program = build_program(
            graph,
            config,
            file,
            pool=pool,
            arena=arena,
            max_rows=settings.max_step_rows,
            context_tokens=plan.session_context_tokens,
            level=level,
        )
    except MemoryError:
        raise MemoryPlanError(
            f"{path}: the system refused the planned memory\n{plan.explanation}", plan
        ) from None
    return LoadedModel(
        file=file,
        config=config,
        tokenizer=tokenizer,
        plan=plan,
        settings=settings,
        program=program,
        pool=pool,
        arena=arena,
    )


def _make_arena(config: ModelConfig, plan: MemoryPlan) -> Arena:
    """The KV arena of the plan, with all its memory."""
    return Arena(
        n_layers=config.n_layers,
        n_kv_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        page_tokens=plan.page_tokens,
        n_pages=plan.n_pages,
        kv_type=plan.kv_type,
    )


def settings_for(config: ModelConfig, settings: RuntimeSettings) -> RuntimeSettings:
    """Return the settings with which a model is planned and served: an encoder's steps hold its longest sequence."""
    if config.generates:
        return settings
    longest = min(config.context_length, settings.context_tokens or _ENCODER_STEP_ROWS)
    return replace(settings, max_step_rows=max(settings.max_step_rows, longest))


def _level(settings: RuntimeSettings) -> str | None:
    """Return the CPU level to use, None for the best; RequestError for one that this CPU lacks."""
    level = settings.level or os.environ.get("QUANTD_CPU_LEVEL") or None
    if level is not None and level not in kernel_levels():
        known = ", ".join(kernel_levels())
        raise RequestError(
            "level", f"CPU level {level!r} is unknown or not available here; there are {known}"
        )
    return level


def model_name(file: ModelFile) -> str:
    """Return the name under which a model is served: its file's name without .gguf and shard numbers."""
    stem = Path(file.path).name.removesuffix(".gguf")
    head, separator, tail = stem.rpartition("-00001-of-")
    return head if separator and tail.isdecimal() else stem


def _chat_template(file: ModelFile) -> str | None:
    key = "tokenizer.chat_template"
    return file.string(key) if file.kind(key) == "string" else None
