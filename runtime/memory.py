"""The memory plan: what serving a model takes, made before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.errors import MemoryPlanError

KV_TYPES = ("f16", "q8_0")


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """How a model is served.  None means: chosen by the memory plan or from the machine."""

    sessions: int = 4  # sequences that run at the same time
    context_tokens: int | None = None  # of one session; None: min(model context, 4096, the session's share)
    kv_budget_bytes: int | None = None  # KV arena; None: 1 GiB, or less where less is needed or left
    kv_type: str = "f16"  # cached keys and values: "f16" or "q8_0"
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
    n_pages: int
    page_tokens: int
    kv_type: str
    explanation: str  # plain lines: what takes how much, and what would fit where it does not

    def ensure_fits(self) -> None:
        """Raise MemoryPlanError, which carries this plan, unless it fits."""
        if not self.fits:
            raise MemoryPlanError(self.explanation, self)
