"""The memory plan: what serving a model takes, made before anything is allocated.

    weights   the mapped files, in full: a weight that is not resident is read from disk at every token
    arena     KV pages for all sessions, taken once
    scratch   buffers of the native core for the largest step
    process   interpreter, libraries and tokenizer

Where other models are served beside it, what they take is taken off first.  The sum stands beside what the machine or
the control group can still give.  A plan that does not fit is refused with every number and with what would fit, so that
serving never ends in an out-of-memory kill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from runtime.cpu import usable_cores
from runtime.errors import MemoryPlanError, RequestError
from runtime.machine_memory import (
    Available,
    available_memory,
    available_memory_bytes,
    own_anonymous_bytes,
)
from runtime.models.config import Experts
from runtime.speculation import copier_table_bytes

__all__ = [
    "KV_TYPES",
    "PROCESS_BYTES",
    "MemoryPlan",
    "RuntimeSettings",
    "available_memory_bytes",
    "format_bytes",
    "plan_memory",
]

KV_TYPES = ("f16", "q8_0")
MAX_SESSIONS = 256

_DEFAULT_CONTEXT_TOKENS = 4096
_DEFAULT_BUDGET_BYTES = 1 << 30
_LEAST_CONTEXT_TOKENS = 512  # a default arena is not cut below this for each session; it is refused instead

# Anonymous memory of the daemon beside arena, scratch and tokenizer, measured on x86-64 with Python 3.11: 57 MiB once it
# serves and while it answers; the rest is for more callers at once, grammars and logs.
PROCESS_BYTES = 72 << 20
# A tokenizer once it is built, measured: 11.5 MiB with the 280,147 merges of Llama 3's 128,256 tokens, 0.6 MiB for Llama 2.
# Tables grow by doubling: these are what an entry takes at worst.
_BPE_ENTRY_BYTES, _BPE_MERGE_BYTES = 48, 52
_TOKENIZER_ENTRY_BYTES = 48
# A key of 32 bytes with its object and two entries of tables that grow by doubling: measured, 240 bytes.
_INDEX_ENTRY_BYTES = 256


class SizedFile(Protocol):
    """The part of runtime.gguf.ModelFile that a plan needs."""

    @property
    def size_bytes(self) -> int: ...


@runtime_checkable
class _WithMetadata(Protocol):
    """A file that tells its metadata, as runtime.gguf.ModelFile does."""

    def length(self, key: str) -> int: ...
    def string(self, key: str, default: str | None = None) -> str: ...


class ModelShape(Protocol):
    """The part of runtime.model.ModelConfig that a plan needs."""

    @property
    def n_layers(self) -> int: ...
    @property
    def n_embd(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def n_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def n_ff(self) -> int: ...
    @property
    def n_vocab(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def experts(self) -> Experts | None: ...


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """How a model is served.  None means: chosen by the memory plan or from the machine."""

    sessions: int = 4  # sequences that run at the same time
    context_tokens: int | None = None  # of one session; None: min(model context, 4096, the session's share)
    kv_budget_bytes: int | None = None  # KV arena; None: 1 GiB, or less where less is needed or left
    kv_type: str = "f16"  # cached keys and values: "f16" or "q8_0"
    prefix_cache: bool = True  # compute a prefix once for all requests that begin with it
    speculate: bool = True  # guess tokens of answers that repeat their text, where that pays
    threads: int | None = None  # None: usable cores (affinity and cgroup quota)
    page_tokens: int = 32  # tokens of one KV page
    max_step_rows: int = 256  # token positions that one step computes at most
    level: str | None = None  # CPU level of the kernels; None: the best that this CPU has


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Memory of a served model, in bytes, beside what the machine has."""

    weights_bytes: int  # the mapped file(s); counted in full, because weights must stay resident to be fast
    kv_arena_bytes: int  # n_pages pages
    scratch_bytes: int  # run state of the native core
    process_bytes: int  # interpreter, libraries, tokenizer
    total_bytes: int  # sum of the four
    available_bytes: int  # what the machine or the control group can still give
    fits: bool  # total_bytes <= available_bytes
    sessions: int
    session_context_tokens: int  # tokens that one session can hold
    session_share_tokens: int  # tokens that each session is guaranteed; more is borrowed from idle pages
    n_pages: int
    page_tokens: int
    kv_type: str
    max_sessions: int  # sessions of this context that would fit; 0: not one
    max_context_tokens: int  # context that would fit in each of these sessions; 0: not one page
    explanation: str  # plain lines: what takes how much, and what would fit where it does not
    others_bytes: int = 0  # other models that stay in memory; available_bytes is what is left beside them

    @property
    def model_bytes(self) -> int:
        """What this model takes in a process that is there already: everything but the process's own part."""
        return self.total_bytes - PROCESS_BYTES

    @property
    def anonymous_bytes(self) -> int:
        """The part of model_bytes that is not the mapped file."""
        return self.model_bytes - self.weights_bytes

    def ensure_fits(self) -> None:
        """Raise MemoryPlanError, which carries this plan, unless it fits."""
        if not self.fits:
            raise MemoryPlanError(self.explanation, self)


def plan_memory(
    file: SizedFile,
    config: ModelShape,
    settings: RuntimeSettings,
    *,
    available: Available | None = None,
    others: Sequence[MemoryPlan] = (),
    leaving: Sequence[MemoryPlan] = (),
) -> MemoryPlan:
    """Plan one model with these settings against `available` (None: this machine now).

    `others` are the models of this process that stay in memory, `leaving` those that go before this one comes.  Returns a
    plan also where it does not fit; `ensure_fits` refuses it.  Raises RequestError, naming the field, for settings that no
    machine could serve.
    """
    _check(config, settings)
    process_bytes = PROCESS_BYTES + _tokenizer_bytes(file, config)
    if settings.speculate:
        process_bytes += settings.sessions * copier_table_bytes(
            settings.context_tokens or min(config.context_length, _DEFAULT_CONTEXT_TOKENS)
        )
    others_bytes = sum(other.model_bytes for other in others)
    if available is None:
        held_bytes = sum(model.anonymous_bytes for model in (*others, *leaving))
        available = _available_to_us(process_bytes + held_bytes)
    available = replace(available, n_bytes=max(0, available.n_bytes - others_bytes))
    fixed_scratch_bytes = _scratch_bytes(config, settings)
    room_bytes = available.n_bytes - file.size_bytes - fixed_scratch_bytes - process_bytes
    page_bytes = _page_bytes(config, settings.kv_type, settings.page_tokens)
    # Of one page: the native core's page tables, the attention of few rows, and the entry in the index of prefixes.
    table_bytes = (
        4
        + 16 * _threads(settings)
        + _attention_part_bytes(config, settings)
        + _INDEX_ENTRY_BYTES * settings.prefix_cache
    )
    n_pages = _n_pages(
        config,
        settings,
        page_bytes=page_bytes,
        # An arena whose size is ours to choose leaves a tenth of what is available to everybody else.
        room_pages=(room_bytes - available.n_bytes // 10) // (page_bytes + table_bytes),
    )
    room_pages = max(0, room_bytes) // (page_bytes + table_bytes)
    share_tokens = n_pages // settings.sessions * settings.page_tokens
    context_tokens = settings.context_tokens or min(
        config.context_length, _DEFAULT_CONTEXT_TOKENS, share_tokens
    )
    scratch_bytes = fixed_scratch_bytes + n_pages * table_bytes
    total_bytes = file.size_bytes + n_pages * page_bytes + scratch_bytes + process_bytes
    plan = MemoryPlan(
        weights_bytes=file.size_bytes,
        kv_arena_bytes=n_pages * page_bytes,
        scratch_bytes=scratch_bytes,
        process_bytes=process_bytes,
        total_bytes=total_bytes,
        available_bytes=available.n_bytes,
        fits=total_bytes <= available.n_bytes,
        sessions=settings.sessions,
        session_context_tokens=context_tokens,
        session_share_tokens=min(share_tokens, context_tokens),
        n_pages=n_pages,
        page_tokens=settings.page_tokens,
        kv_type=settings.kv_type,
        max_sessions=min(MAX_SESSIONS, room_pages // _pages(context_tokens, settings)),
        max_context_tokens=min(config.context_length, room_pages // settings.sessions * settings.page_tokens),
        explanation="",
        others_bytes=others_bytes,
    )
    return replace(plan, explanation=_explain(plan, config, available))


def format_bytes(n_bytes: int) -> str:
    """Bytes for people: "512 B", "1.5 GiB"."""
    value, unit = float(n_bytes), "B"
    for bigger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024:
            break
        value, unit = value / 1024, bigger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _check(config: ModelShape, settings: RuntimeSettings) -> None:
    """Refuse settings that no machine could serve."""
    if not 1 <= settings.sessions <= MAX_SESSIONS:
        raise RequestError("sessions", f"sessions is {settings.sessions}; 1 to {MAX_SESSIONS} are served")
    if settings.kv_type not in KV_TYPES:
        raise RequestError("kv_type", f"kv type {settings.kv_type!r} is none of {', '.join(KV_TYPES)}")
    if settings.kv_type == "q8_0" and config.head_dim % 32:
        raise RequestError(
            "kv_type", f"heads of {config.head_dim} values cannot be kept as q8_0, which packs 32; use f16"
        )
    context_tokens = settings.context_tokens
    if context_tokens is None:
        return
    if context_tokens < settings.page_tokens:
        raise RequestError(
            "session_context_tokens",
            f"a context of {context_tokens} tokens is less than one KV page of {settings.page_tokens}",
        )
    if context_tokens > config.context_length:
        raise RequestError(
            "session_context_tokens",
            f"a context of {context_tokens} tokens is more than the model was made for, {config.context_length}",
        )


def _available_to_us(planned_bytes: int) -> Available:
    """What is available now, and the part of `planned_bytes` of anonymous memory that this process holds already."""
    available = available_memory()
    return replace(available, n_bytes=available.n_bytes + min(own_anonymous_bytes(), planned_bytes))


def _tokenizer_bytes(file: SizedFile, config: ModelShape) -> int:
    if isinstance(file, _WithMetadata) and file.string("tokenizer.ggml.model", "") == "gpt2":
        return _BPE_ENTRY_BYTES * config.n_vocab + _BPE_MERGE_BYTES * file.length("tokenizer.ggml.merges")
    return _TOKENIZER_ENTRY_BYTES * config.n_vocab


def _pages(tokens: int, settings: RuntimeSettings) -> int:
    return -(-tokens // settings.page_tokens)


def _page_bytes(config: ModelShape, kv_type: str, page_tokens: int) -> int:
    """Keys and values of one page, all layers."""
    row_bytes = config.head_dim * 2 if kv_type == "f16" else config.head_dim // 32 * 34
    return 2 * config.n_layers * config.n_kv_heads * page_tokens * row_bytes


def _n_pages(config: ModelShape, settings: RuntimeSettings, *, page_bytes: int, room_pages: int) -> int:
    """Pages of the arena: what the sessions can use, within the budget."""
    sessions = settings.sessions
    context_tokens = settings.context_tokens or min(config.context_length, _DEFAULT_CONTEXT_TOKENS)
    useful_pages = sessions * _pages(context_tokens, settings)
    least_pages = max(sessions, _pages(settings.context_tokens, settings) if settings.context_tokens else 1)
    if settings.kv_budget_bytes is None:
        ceiling_pages = max(_DEFAULT_BUDGET_BYTES // page_bytes, least_pages)
        # A context that was asked for is not made smaller behind the user's back.
        if settings.context_tokens is not None:
            return min(useful_pages, ceiling_pages)
        decent_pages = sessions * _pages(min(_LEAST_CONTEXT_TOKENS, context_tokens), settings)
        least_pages = max(least_pages, min(decent_pages, ceiling_pages))
        return min(useful_pages, max(least_pages, min(ceiling_pages, room_pages)))
    budget_pages = settings.kv_budget_bytes // page_bytes
    if budget_pages < least_pages:
        why = (
            f"one session of {settings.context_tokens} tokens"
            if least_pages > sessions
            else f"one page of {settings.page_tokens} tokens for each of {sessions} sessions"
        )
        raise RequestError(
            "kv_budget_bytes",
            f"a KV budget of {settings.kv_budget_bytes} bytes is too small for {why}:"
            f" at least {least_pages * page_bytes} bytes are needed with kv type {settings.kv_type}",
        )
    return min(useful_pages, budget_pages)


def _threads(settings: RuntimeSettings) -> int:
    return settings.threads or usable_cores()


def _scratch_bytes(config: ModelShape, settings: RuntimeSettings) -> int:
    """Buffers of the native core (runtime/native/program.cpp takes them), an upper estimate without page tables."""
    rows, q_width = settings.max_step_rows, config.n_heads * config.head_dim
    kv_width = config.n_kv_heads * config.head_dim
    # Floats of a row: residual stream, normed, branch and last row, queries and heads, keys and values, feed-forward, angles.
    floats = 4 * config.n_embd + 2 * q_width + 2 * kv_width + config.n_ff + 2 * config.head_dim
    # Quantized copies of what matrices read, in at most two forms of a little more than one byte a value.
    quantized = (config.n_embd + q_width + config.n_ff) * 5 // 2
    if config.experts is not None:
        # Of a row for each expert that it uses: gathered input, hidden, output; and the router's logits.
        used, n_ff = config.experts.n_used, config.experts.n_ff
        floats += used * (2 * config.n_embd + n_ff + 3) + config.experts.n_experts
        quantized += used * (config.n_embd + n_ff) * 5 // 2
    # A tile of logits: 4 to 64 rows, about 8 MiB.
    logits_bytes = 4 * config.n_vocab * min(rows, max(4, min(64, (2 << 20) // config.n_vocab + 1)))
    # Of a thread: gate and up tiles, one expanded weight row, sampler arrays of 20 bytes an entry, attention: scores of
    # six heads over a range and the queries of 32 rows.
    group = config.n_heads // config.n_kv_heads
    thread_bytes = (
        2 * rows * 64 * 4
        + 4 * max(config.n_embd, q_width, config.n_ff)
        + 20 * config.n_vocab
        + 24 * (512 + config.head_dim)
        + 32 * group * (4 + 2 * config.head_dim)
        + (64 << 10)
    )
    row_bytes = 4 * floats + quantized + 8 * config.n_heads + 1280
    return rows * row_bytes + logits_bytes + _threads(settings) * thread_bytes


def _attention_part_bytes(config: ModelShape, settings: RuntimeSettings) -> int:
    """Of one page: states of ranges of 256 positions that few rows compute apart (program.cpp, at most 4 MiB in all)."""
    few_rows = (4 * _threads(settings) - 1) // config.n_kv_heads
    state_bytes = 4 * config.n_heads * (config.head_dim + 2)
    return -(-few_rows * state_bytes * settings.page_tokens // 256)


def _explain(plan: MemoryPlan, config: ModelShape, available: Available) -> str:
    """The plan in plain lines."""
    lines = [
        f"weights   {format_bytes(plan.weights_bytes):>10}  the mapped model file",
        f"KV arena  {format_bytes(plan.kv_arena_bytes):>10}  {plan.n_pages} pages of {plan.page_tokens} tokens, {plan.kv_type}",
        f"scratch   {format_bytes(plan.scratch_bytes):>10}  buffers of the largest step",
        f"process   {format_bytes(plan.process_bytes):>10}  interpreter, libraries, tokenizer",
        f"total     {format_bytes(plan.total_bytes):>10}",
        f"available {format_bytes(plan.available_bytes):>10}  {available.source}{_beside(plan)}",
        _sessions_line(plan),
    ]
    if plan.fits:
        most = f"at most {plan.max_sessions} sessions of this context, or {plan.max_context_tokens} tokens in each of {plan.sessions}"
        return "\n".join(["The plan fits.", *lines, f"{most}, would fit"])
    missing = format_bytes(plan.total_bytes - plan.available_bytes)
    return "\n".join([f"The plan does not fit: {missing} are missing.", *lines, *_what_fits(plan, config)])


def _beside(plan: MemoryPlan) -> str:
    if not plan.others_bytes:
        return ""
    return f", beside {format_bytes(plan.others_bytes)} of other models in memory"


def _sessions_line(plan: MemoryPlan) -> str:
    line = f"{plan.sessions} sessions of up to {plan.session_context_tokens} tokens"
    if plan.session_share_tokens < plan.session_context_tokens:
        line += f", {plan.session_share_tokens} of them guaranteed and the rest borrowed from idle pages"
    return line


def _what_fits(plan: MemoryPlan, config: ModelShape) -> list[str]:
    """What the machine could serve instead."""
    page_bytes = plan.kv_arena_bytes // plan.n_pages
    room_bytes = plan.available_bytes - (plan.total_bytes - plan.kv_arena_bytes)
    if room_bytes < page_bytes:
        taken = format_bytes(plan.total_bytes - plan.kv_arena_bytes)
        return [
            f"Without the KV arena it takes {taken} already: only a smaller model or more memory would help."
        ]
    lines = [
        f"What would fit is a KV arena of at most {room_bytes} bytes ({format_bytes(room_bytes)}), such as:"
    ]
    if plan.max_sessions:
        lines.append(f"  {plan.max_sessions} sessions of {plan.session_context_tokens} tokens")
    if plan.max_context_tokens:
        lines.append(f"  {plan.sessions} sessions of {plan.max_context_tokens} tokens")
    elif not plan.max_sessions:
        lines.append(f"  1 session of {room_bytes // page_bytes * plan.page_tokens} tokens")
    if plan.kv_type == "f16" and config.head_dim % 32 == 0:
        q8_pages = room_bytes // _page_bytes(config, "q8_0", plan.page_tokens)
        tokens = min(plan.session_context_tokens, q8_pages // plan.sessions * plan.page_tokens)
        if tokens:
            lines.append(f"  {plan.sessions} sessions of {tokens} tokens with KV type q8_0")
    return lines
