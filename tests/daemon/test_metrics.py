"""The exposition as a scraper sees it."""

from prometheus_client.parser import text_string_to_metric_families

from daemon.metrics import MAX_MODEL_LABELS, OTHER_MODELS, Metrics, Snapshot, anonymous_bytes


def samples(metrics):
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def test_requests_are_counted_under_the_names_that_vllm_dashboards_use():
    metrics = Metrics(Snapshot, process_metrics=False)
    metrics.first_token("demo", 0.05)
    metrics.inter_token("demo", 0.01)
    metrics.finished(
        "demo", "stop", prompt_tokens=7, generated_tokens=3, queue_s=0.1, prefill_s=0.2, decode_s=0.3
    )
    seen = samples(metrics)
    labels = (("engine", "0"), ("model_name", "demo"))
    assert seen["vllm:request_prompt_tokens_sum", labels] == 7
    assert seen["vllm:request_generation_tokens_sum", labels] == 3
    assert (
        seen[
            "vllm:request_success_total",
            (("engine", "0"), ("finished_reason", "stop"), ("model_name", "demo")),
        ]
        == 1
    )
    assert seen["vllm:time_to_first_token_seconds_count", labels] == 1
    assert seen["vllm:inter_token_latency_seconds_sum", labels] == 0.01
    assert abs(seen["vllm:e2e_request_latency_seconds_sum", labels] - 0.6) < 1e-9


def test_gauges_come_from_one_snapshot_and_arena_states_add_up():
    state = Snapshot(
        model_name="demo", requests_running=2, requests_waiting=1, pages_total=10, pages_used=4, pages_reserved=7,
        pages_cached=5, cache_queried_tokens_total=90, cache_hit_tokens_total=64,
        preemptions_total=2, drafts_total=8, drafted_tokens_total=20, accepted_tokens_total=15,
        page_bytes=100, prompt_tokens_per_s=11.0, generation_tokens_per_s=5.0,
        prompt_tokens_total=70, generation_tokens_total=30, model_mapped_bytes=50,
        model_resident_bytes=40, memory_budget_bytes=2000, memory_available_bytes=9000,
    )  # fmt: skip
    calls = []
    metrics = Metrics(lambda: calls.append(1) or state, process_metrics=False)
    assert not calls, "registering must not scrape"
    seen = samples(metrics)
    assert len(calls) == 1
    arena = [
        seen["quantd_kv_cache_bytes", (("state", name),)] for name in ("used", "reserved", "cached", "free")
    ]
    assert arena == [400, 300, 300, 0]  # of five cached pages, two stand where reservations will be taken
    assert seen["quantd_kv_cache_budget_bytes", ()] == 1000
    assert seen["vllm:kv_cache_usage_perc", (("engine", "0"), ("model_name", "demo"))] == 0.4
    assert seen["quantd_tokens_per_second", (("kind", "generation"), ("model_name", "demo"))] == 5
    assert seen["vllm:prompt_tokens_total", (("engine", "0"), ("model_name", "demo"))] == 70
    assert seen["vllm:generation_tokens_total", (("engine", "0"), ("model_name", "demo"))] == 30
    assert seen["vllm:prefix_cache_queries_total", (("engine", "0"), ("model_name", "demo"))] == 90
    assert seen["vllm:prefix_cache_hits_total", (("engine", "0"), ("model_name", "demo"))] == 64
    for name, value in (("drafts", 8), ("draft_tokens", 20), ("accepted_tokens", 15)):
        labels = (("engine", "0"), ("model_name", "demo"))
        assert seen[f"vllm:spec_decode_num_{name}_total", labels] == value
    assert seen["quantd_process_anonymous_bytes", ()] > 1 << 20


def test_a_reason_made_by_a_client_cannot_open_a_time_series():
    metrics = Metrics(Snapshot, process_metrics=False)
    metrics.rejected("QUEUE_FULL")
    metrics.rejected("made up by a client\n")
    seen = samples(metrics)
    assert seen["quantd_requests_rejected_total", (("reason", "QUEUE_FULL"),)] == 1
    assert seen["quantd_requests_rejected_total", (("reason", "OTHER"),)] == 1


def test_process_metrics_are_there_and_anonymous_memory_survives_a_hidden_proc(tmp_path):
    text = Metrics(Snapshot).render().decode()
    assert "process_resident_memory_bytes" in text
    assert anonymous_bytes(tmp_path / "absent") == 0


def test_time_series_are_bounded_however_many_names_are_served():
    metrics = Metrics(Snapshot, process_metrics=False)
    for index in range(MAX_MODEL_LABELS + 6):
        metrics.first_token(f"m{index}", 0.05)
        metrics.engine_failed(f"m{index}")
    metrics.first_token("m0", 0.05)
    seen = samples(metrics)
    count = "vllm:time_to_first_token_seconds_count"
    assert sum(name == count for name, _ in seen) == MAX_MODEL_LABELS + 1
    assert seen[count, (("engine", "0"), ("model_name", "m0"))] == 2
    assert seen[count, (("engine", "0"), ("model_name", OTHER_MODELS))] == 6
    assert seen["quantd_engine_failures_total", (("model_name", OTHER_MODELS),)] == 6
