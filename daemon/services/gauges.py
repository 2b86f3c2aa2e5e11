"""What the gauges show of one model in memory."""

from __future__ import annotations

from daemon.metrics import Snapshot
from daemon.services.served import Served


def snapshot(served: Served, num_preparing: int, available_bytes: int) -> Snapshot:
    """Read at the time of a scrape; any thread."""
    stats, plan, file = served.engine.stats(), served.model.plan, served.model.file
    return Snapshot(
        model_name=served.name,
        requests_running=stats.running,
        requests_waiting=stats.waiting + num_preparing,
        pages_total=stats.pages_total,
        pages_used=stats.pages_used,
        pages_reserved=stats.pages_reserved,
        pages_cached=stats.pages_cached,
        page_bytes=plan.kv_arena_bytes // max(1, plan.n_pages),
        prompt_tokens_total=stats.prompt_tokens_total,
        generation_tokens_total=stats.generation_tokens_total,
        cache_queried_tokens_total=stats.cache_queried_tokens_total,
        cache_hit_tokens_total=stats.cache_hit_tokens_total,
        preemptions_total=stats.preemptions_total,
        drafts_total=stats.drafts_total,
        drafted_tokens_total=stats.drafted_tokens_total,
        accepted_tokens_total=stats.accepted_tokens_total,
        prompt_tokens_per_s=stats.prompt_tokens_per_s,
        generation_tokens_per_s=stats.generation_tokens_per_s,
        model_mapped_bytes=file.size_bytes,
        model_resident_bytes=file.resident_bytes(),
        memory_budget_bytes=plan.total_bytes,
        memory_available_bytes=available_bytes,
    )
