"""Prometheus metrics of the daemon.

Histograms and counters of requests are fed by the services, a few times in a request.  Gauges and the engine's own
counts are read when somebody scrapes: one collector asks for a `Snapshot` and turns it into samples, so an idle daemon
does no work for its metrics.

Where vLLM has a name for a thing, that name is used (`vllm:...`, labels `model_name` and `engine`), so that dashboards
made for vLLM show quantd too.  What no peer reports (memory, live rates, rejections) is called `quantd_...`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from runtime.memory import PROCESS_BYTES

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_LABELS = ("model_name", "engine")
# Models with time series of their own: some 15 KiB each, so about 1 MB in all.
MAX_MODEL_LABELS = 64
OTHER_MODELS = "(other models)"

# Bucket bounds in seconds, the same as vLLM's so that its dashboards fit.
_TTFT_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
    2560,
)
_ITL_S = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
)
_REQUEST_S = (
    0.05,
    0.1,
    0.3,
    0.5,
    0.8,
    1,
    1.5,
    2,
    2.5,
    5,
    10,
    15,
    20,
    30,
    40,
    50,
    60,
    120,
    240,
    480,
    960,
    1920,
    7680,
)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)

# Reasons are words of our own error table; anything else would let a client make new time series.
_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the gauges show, read at the time of a scrape.  All zero while no model is loaded."""

    model_name: str = ""
    requests_running: int = 0
    requests_waiting: int = 0
    pages_total: int = 0  # KV pages of the arena
    pages_used: int = 0  # pages that hold keys and values now
    pages_reserved: int = 0  # pages promised to admitted sessions, used ones included
    pages_cached: int = 0  # pages that nobody holds and that keep a prefix
    page_bytes: int = 0
    prompt_tokens_total: int = 0  # computed since the model was loaded, step by step
    generation_tokens_total: int = 0
    cache_queried_tokens_total: int = 0  # prompt tokens that the prefix cache was asked for
    cache_hit_tokens_total: int = 0  # of these, tokens that it had
    preemptions_total: int = 0  # requests that gave borrowed pages back
    drafts_total: int = 0  # rows of answers that had guessed tokens behind them
    drafted_tokens_total: int = 0
    accepted_tokens_total: int = 0  # of these, tokens that the model confirmed
    prompt_tokens_per_s: float = 0.0  # live, over the last seconds
    generation_tokens_per_s: float = 0.0
    model_mapped_bytes: int = 0  # size of the mapped model file(s)
    model_resident_bytes: int = 0  # the part of it that is in memory
    memory_budget_bytes: int = 0  # the memory plan's total
    memory_available_bytes: int = 0  # what the machine or the control group has left


class Metrics:
    """All metrics of one daemon, in a registry of its own."""

    def __init__(
        self, snapshot: Callable[[], Snapshot | list[Snapshot]], *, process_metrics: bool = True
    ) -> None:
        """`snapshot` is called at every scrape, from the thread that renders: one of each model in memory."""
        self.registry = CollectorRegistry()
        self._named: set[str] = set()
        if process_metrics:
            ProcessCollector(registry=self.registry)
            PlatformCollector(registry=self.registry)
        self.registry.register(_GaugeCollector(snapshot))

        def counter(name: str, text: str, labels: tuple[str, ...] = _LABELS) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, _LABELS, buckets=buckets, registry=self.registry)

        self._success = counter(
            "vllm:request_success", "Requests that ended, by reason.", (*_LABELS, "finished_reason")
        )
        self._rejected = counter("quantd_requests_rejected", "Requests refused before any work.", ("reason",))
        self._failed = counter(
            "quantd_requests_failed", "Accepted requests that ended with an error.", ("reason",)
        )
        self._ttft = histogram(
            "vllm:time_to_first_token_seconds", "From acceptance to the first token.", _TTFT_S
        )
        self._itl = histogram("vllm:inter_token_latency_seconds", "Between two tokens of a stream.", _ITL_S)
        self._e2e = histogram(
            "vllm:e2e_request_latency_seconds", "From acceptance to the last token.", _REQUEST_S
        )
        self._queue = histogram("vllm:request_queue_time_seconds", "Waiting for a session.", _REQUEST_S)
        self._prefill = histogram(
            "vllm:request_prefill_time_seconds", "From admission to the first token.", _REQUEST_S
        )
        self._decode = histogram(
            "vllm:request_decode_time_seconds", "From the first token to the last.", _REQUEST_S
        )
        self._request_prompt = histogram("vllm:request_prompt_tokens", "Prompt tokens of a request.", _TOKENS)
        self._request_generated = histogram(
            "vllm:request_generation_tokens", "Tokens generated for a request.", _TOKENS
        )

        self._embeddings = counter("quantd_embeddings", "Texts that were embedded.")
        self._embedding_tokens = counter("quantd_embedding_tokens", "Tokens of the texts that were embedded.")
        self._embedding_s = histogram(
            "quantd_embedding_request_seconds",
            "From acceptance of a request for embeddings to its end.",
            _REQUEST_S,
        )
        self._loads = counter("quantd_model_loads", "Loads of models, by result.", ("result",))
        self._engine_failures = counter("quantd_engine_failures", "Engines that failed.", ("model_name",))
        self._evictions = counter("quantd_model_evictions", "Idle models that made room for another.", ())
        self._load_s = Histogram(
            "quantd_model_load_seconds",
            "From the first request for a model to its readiness.",
            buckets=_REQUEST_S,
            registry=self.registry,
        )

    def _name(self, model: str) -> str:
        """The model as a label.  A daemon can serve thousands of names one after the other, and a time series once made stays:
        the first MAX_MODEL_LABELS names get series of their own, all others share one.
        """
        if model in self._named or len(self._named) < MAX_MODEL_LABELS:
            self._named.add(model)
            return model
        return OTHER_MODELS

    def first_token(self, model: str, seconds: float) -> None:
        """The first token of a request came `seconds` after it was accepted."""
        self._ttft.labels(self._name(model), "0").observe(seconds)

    def inter_token(self, model: str, seconds: float) -> None:
        """A further token came `seconds` after the one before."""
        self._itl.labels(self._name(model), "0").observe(seconds)

    def finished(
        self,
        model: str,
        reason: str,
        *,
        prompt_tokens: int,
        generated_tokens: int,
        queue_s: float,
        prefill_s: float,
        decode_s: float,
    ) -> None:
        """An accepted request ended: `reason` is "stop", "length", "cancelled", "deadline" or "failed"."""
        labels = (self._name(model), "0")
        self._success.labels(*labels, reason).inc()
        self._queue.labels(*labels).observe(queue_s)
        self._prefill.labels(*labels).observe(prefill_s)
        self._decode.labels(*labels).observe(decode_s)
        self._e2e.labels(*labels).observe(queue_s + prefill_s + decode_s)
        self._request_prompt.labels(*labels).observe(prompt_tokens)
        self._request_generated.labels(*labels).observe(generated_tokens)

    def embedded(self, model: str, *, num_inputs: int, prompt_tokens: int, seconds: float) -> None:
        """A request for embeddings ended well."""
        labels = (self._name(model), "0")
        self._embeddings.labels(*labels).inc(num_inputs)
        self._embedding_tokens.labels(*labels).inc(prompt_tokens)
        self._embedding_s.labels(*labels).observe(seconds)

    def rejected(self, reason: str) -> None:
        """A request was refused before any work; `reason` is the UPPER_SNAKE word of the error table."""
        self._rejected.labels(_known_reason(reason)).inc()

    def failed(self, reason: str) -> None:
        """An accepted request ended with an error."""
        self._failed.labels(_known_reason(reason)).inc()

    def model_loaded(self, seconds: float) -> None:
        """A model was brought into memory and has computed."""
        self._loads.labels("loaded").inc()
        self._load_s.observe(seconds)

    def model_load_failed(self) -> None:
        """A model could not be loaded, or nobody waited for it any more."""
        self._loads.labels("failed").inc()

    def engine_failed(self, model: str) -> None:
        """The engine of a model failed; its requests were told."""
        self._engine_failures.labels(self._name(model)).inc()

    def model_evicted(self) -> None:
        """An idle model left memory so that another one could come."""
        self._evictions.inc()

    def render(self) -> bytes:
        """The text exposition format; `CONTENT_TYPE` goes with it."""
        return generate_latest(self.registry)


def _known_reason(reason: str) -> str:
    return reason if _REASON.fullmatch(reason) else "OTHER"


class _GaugeCollector(Collector):
    """Reads one snapshot at a scrape."""

    def __init__(self, snapshot: Callable[[], Snapshot | list[Snapshot]]) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterator[Metric]:
        """Nothing up front: the registry must not scrape while it registers."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        state = self._snapshot()
        states = state if isinstance(state, list) else [state]
        yield from _of_each_model(states)
        yield from _of_all_models(states)


def _of_each_model(states: list[Snapshot]) -> Iterator[Metric]:
    """What has the model's name as a label; models in memory are few, so the set of labels is bounded."""

    def gauge(name: str, text: str, value: Callable[[Snapshot], float]) -> Metric:
        family = GaugeMetricFamily(name, text, labels=_LABELS)
        for state in states:
            family.add_metric((state.model_name, "0"), value(state))
        return family

    yield gauge(
        "vllm:num_requests_running", "Requests that hold a session.", lambda one: one.requests_running
    )
    yield gauge(
        "vllm:num_requests_waiting", "Requests that wait for a session.", lambda one: one.requests_waiting
    )
    yield gauge(
        "vllm:kv_cache_usage_perc",
        "Share of the KV arena in use, 0 to 1.",
        lambda one: one.pages_used / one.pages_total if one.pages_total else 0.0,
    )

    # Counted by the engine at every step, so that rate() is smooth also while long answers are under way.
    def counter(name: str, text: str, value: Callable[[Snapshot], int]) -> Metric:
        family = CounterMetricFamily(name, text, labels=_LABELS)
        for state in states:
            family.add_metric((state.model_name, "0"), value(state))
        return family

    yield counter("vllm:prompt_tokens", "Prompt tokens computed.", lambda one: one.prompt_tokens_total)
    yield counter("vllm:generation_tokens", "Tokens generated.", lambda one: one.generation_tokens_total)
    yield counter(
        "vllm:prefix_cache_queries",
        "Prompt tokens of admitted requests, looked up in the prefix cache.",
        lambda one: one.cache_queried_tokens_total,
    )
    yield counter(
        "vllm:prefix_cache_hits",
        "Prompt tokens whose keys and values were in the prefix cache.",
        lambda one: one.cache_hit_tokens_total,
    )
    yield counter(
        "vllm:num_preemptions",
        "Requests that gave borrowed pages back.",
        lambda one: one.preemptions_total,
    )
    yield counter(
        "vllm:spec_decode_num_drafts",
        "Drafts: steps of an answer with guessed tokens.",
        lambda one: one.drafts_total,
    )
    yield counter(
        "vllm:spec_decode_num_draft_tokens", "Guessed tokens.", lambda one: one.drafted_tokens_total
    )
    yield counter(
        "vllm:spec_decode_num_accepted_tokens",
        "Guessed tokens that the model confirmed.",
        lambda one: one.accepted_tokens_total,
    )

    rates = GaugeMetricFamily(
        "quantd_tokens_per_second",
        "Tokens per second over the last seconds.",
        labels=("model_name", "kind"),
    )
    memory = GaugeMetricFamily(
        "quantd_model_memory_bytes",
        "Bytes that the plan of a model in memory counts.",
        labels=("model_name",),
    )
    for state in states:
        rates.add_metric((state.model_name, "prompt"), state.prompt_tokens_per_s)
        rates.add_metric((state.model_name, "generation"), state.generation_tokens_per_s)
        if state.model_name:
            memory.add_metric((state.model_name,), state.memory_budget_bytes)
    yield rates
    yield memory


def _of_all_models(states: list[Snapshot]) -> Iterator[Metric]:
    """Sums over the models in memory."""

    def total(value: Callable[[Snapshot], int]) -> int:
        return sum(value(state) for state in states)

    def plain(name: str, text: str, value: float) -> Metric:
        return GaugeMetricFamily(name, text, value=value)

    arena = GaugeMetricFamily(
        "quantd_kv_cache_bytes",
        "Bytes of the KV arenas: used, reserved but not used yet, cached (free, with a prefix), free.",
        labels=("state",),
    )
    used = total(lambda one: one.pages_used * one.page_bytes)
    taken = total(lambda one: max(one.pages_reserved, one.pages_used) * one.page_bytes)
    size = total(lambda one: one.pages_total * one.page_bytes)
    arena.add_metric(("used",), used)
    arena.add_metric(("reserved",), taken - used)
    # Cached pages are the first that reservations will be taken from once the empty ones are gone.
    cached = total(
        lambda one: (
            min(one.pages_total - max(one.pages_reserved, one.pages_used), one.pages_cached) * one.page_bytes
        )
    )
    arena.add_metric(("cached",), cached)
    arena.add_metric(("free",), max(0, size - taken - cached))
    yield arena
    yield plain("quantd_models_loaded", "Models in memory.", total(lambda one: bool(one.model_name)))
    yield plain("quantd_kv_cache_budget_bytes", "Bytes of the KV arenas.", size)
    yield plain(
        "quantd_model_mapped_bytes",
        "Bytes of the mapped model files.",
        total(lambda one: one.model_mapped_bytes),
    )
    yield plain(
        "quantd_model_resident_bytes",
        "Bytes of the models that are in memory.",
        total(lambda one: one.model_resident_bytes),
    )
    yield plain(
        "quantd_memory_budget_bytes",
        "Bytes that the memory plans count in all.",
        total(lambda one: one.memory_budget_bytes)
        - PROCESS_BYTES * max(0, sum(one.memory_budget_bytes > 0 for one in states) - 1),
    )
    yield plain(
        "quantd_memory_available_bytes",
        "Bytes that the machine has left.",
        max((one.memory_available_bytes for one in states), default=0),
    )
    yield plain(
        "quantd_process_anonymous_bytes", "Anonymous memory of the process (RssAnon).", anonymous_bytes()
    )


def anonymous_bytes(status: Path = Path("/proc/self/status")) -> int:
    """RssAnon of this process in bytes: what cannot be dropped and read again; 0 where the kernel hides it."""
    try:
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
