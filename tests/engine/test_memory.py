from dataclasses import dataclass

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from runtime.errors import MemoryPlanError, RequestError
from runtime.machine_memory import Available
from runtime.memory import RuntimeSettings, format_bytes, plan_memory

MIB, GIB = 1 << 20, 1 << 30


@dataclass
class Shape:  # Llama 3.2 1B: a page of 32 tokens is 1 MiB of f16
    n_layers: int = 16
    n_embd: int = 2048
    n_heads: int = 32
    n_kv_heads: int = 8
    head_dim: int = 64
    n_ff: int = 8192
    experts: None = None
    n_vocab: int = 128256
    context_length: int = 131072


@dataclass
class File:
    size_bytes: int = 800 * MIB


def plan(available_mib: float = 1 << 20, shape=None, **changes):
    changes.setdefault("threads", 2)
    available = Available(int(available_mib * MIB), "a test")
    return plan_memory(File(), shape or Shape(), RuntimeSettings(**changes), available=available)


def test_the_parts_add_up():
    it = plan()
    assert it.total_bytes == it.weights_bytes + it.kv_arena_bytes + it.scratch_bytes + it.process_bytes
    assert it.weights_bytes == 800 * MIB
    assert it.fits
    it.ensure_fits()


def test_the_default_arena_holds_4096_tokens_for_each_session():
    it = plan()
    assert (it.n_pages, it.kv_arena_bytes) == (4 * 128, 512 * MIB)
    assert (it.session_context_tokens, it.session_share_tokens) == (4096, 4096)


def test_the_default_arena_is_at_most_1_gib():
    it = plan(sessions=16)
    assert it.kv_arena_bytes == GIB
    assert it.session_context_tokens == 2048


def test_a_model_with_a_short_context_needs_a_small_arena():
    it = plan(shape=Shape(context_length=100))
    assert (it.n_pages, it.session_context_tokens) == (4 * 4, 100)


def test_the_default_arena_shrinks_to_what_is_there_and_leaves_some():
    it = plan(1500)
    assert it.fits
    assert it.total_bytes <= 0.9 * it.available_bytes
    assert 512 <= it.session_context_tokens < 4096


def test_q8_0_takes_34_bytes_for_32_values():
    assert plan(kv_type="q8_0").kv_arena_bytes * 64 == plan(kv_type="f16").kv_arena_bytes * 34


def test_a_budget_is_cut_into_whole_pages_and_shared():
    it = plan(kv_budget_bytes=130 * MIB + 5)
    assert (it.n_pages, it.kv_arena_bytes) == (130, 130 * MIB)
    assert it.session_context_tokens == 32 * 32


def test_a_budget_beyond_what_sessions_can_use_is_not_taken():
    assert plan(kv_budget_bytes=100 * GIB).kv_arena_bytes == 512 * MIB


def test_a_long_context_is_guaranteed_in_part_and_borrowed_for_the_rest():
    it = plan(context_tokens=16384)
    assert it.kv_arena_bytes == GIB
    assert (it.session_context_tokens, it.session_share_tokens) == (16384, 8192)
    assert "8192 of them guaranteed" in it.explanation


def test_one_session_may_exceed_the_default_arena():
    it = plan(context_tokens=65536, sessions=1)
    assert it.kv_arena_bytes == 2 * GIB


@pytest.mark.parametrize(
    ("changes", "field", "text"),
    [
        ({"sessions": 0}, "sessions", "sessions is 0"),
        ({"sessions": 257}, "sessions", "1 to 256"),
        ({"kv_type": "q4_0"}, "kv_type", "none of f16, q8_0"),
        ({"context_tokens": 31}, "session_context_tokens", "less than one KV page of 32"),
        ({"context_tokens": 131073}, "session_context_tokens", "more than the model was made for, 131072"),
        ({"kv_budget_bytes": 3 * MIB}, "kv_budget_bytes", f"each of 4 sessions: at least {4 * MIB} bytes"),
        ({"kv_budget_bytes": 0}, "kv_budget_bytes", "too small"),
        (
            {"kv_budget_bytes": 100 * MIB, "context_tokens": 8192},
            "kv_budget_bytes",
            f"one session of 8192 tokens: at least {256 * MIB} bytes",
        ),
    ],
)
def test_what_no_machine_could_serve_is_refused_by_name(changes, field, text):
    with pytest.raises(RequestError, match=text) as caught:
        plan(**changes)
    assert caught.value.field == field


def test_heads_that_do_not_pack_are_refused_for_q8_0():
    with pytest.raises(RequestError, match="48 values cannot be kept as q8_0"):
        plan(shape=Shape(head_dim=48), kv_type="q8_0")


def test_a_plan_that_does_not_fit_names_each_number_and_what_would_fit():
    it = plan(1200, sessions=8, context_tokens=4096)
    assert not it.fits
    with pytest.raises(MemoryPlanError) as caught:
        it.ensure_fits()
    assert caught.value.plan is it
    text = caught.value.message
    for n_bytes in (
        it.weights_bytes,
        it.kv_arena_bytes,
        it.scratch_bytes,
        it.process_bytes,
        it.available_bytes,
    ):
        assert format_bytes(n_bytes) in text
    assert "a test" in text
    assert f"{it.max_sessions} sessions of 4096 tokens" in text
    assert f"8 sessions of {it.max_context_tokens} tokens" in text
    assert "with KV type q8_0" in text
    assert it.max_sessions >= 1


def test_what_is_said_to_fit_fits():
    it = plan(1200, sessions=8, context_tokens=4096)
    for changes in (
        {"sessions": it.max_sessions, "context_tokens": 4096},
        {"sessions": 8, "context_tokens": it.max_context_tokens},
    ):
        budget_bytes = changes["sessions"] * changes["context_tokens"] * MIB // 32
        better = plan(1200, kv_budget_bytes=budget_bytes, **changes)
        assert better.fits
        assert better.session_share_tokens == better.session_context_tokens


def test_what_the_process_holds_already_is_not_counted_twice(monkeypatch):
    monkeypatch.setattr("runtime.memory.available_memory", lambda: Available(1500 * MIB, "a test"))
    monkeypatch.setattr("runtime.memory.own_anonymous_bytes", lambda: 60 * MIB)
    assert plan_memory(File(), Shape(), RuntimeSettings()).available_bytes == 1560 * MIB
    monkeypatch.setattr(
        "runtime.memory.own_anonymous_bytes", lambda: 900 * MIB
    )  # an arena, for the most part
    it = plan_memory(File(), Shape(), RuntimeSettings())
    assert it.available_bytes == 1500 * MIB + it.process_bytes


def test_models_beside_each_other_share_what_there_is(monkeypatch):
    monkeypatch.setattr("runtime.memory.available_memory", lambda: Available(3700 * MIB, "a test"))
    monkeypatch.setattr("runtime.memory.own_anonymous_bytes", lambda: 0)
    settings_ = RuntimeSettings(threads=2)
    first = plan_memory(File(), Shape(), settings_)
    # What is free is counted before the first one comes, and again when its anonymous part is taken.
    for held_bytes in (0, first.anonymous_bytes + 60 * MIB):
        left = 3700 * MIB - held_bytes
        monkeypatch.setattr("runtime.memory.available_memory", lambda left=left: Available(left, "a test"))
        monkeypatch.setattr("runtime.memory.own_anonymous_bytes", lambda held_bytes=held_bytes: held_bytes)
        second = plan_memory(File(), Shape(), settings_, others=[first])
        assert second.available_bytes == 3700 * MIB - first.model_bytes
        assert second.others_bytes == first.model_bytes
        assert second.fits
        assert "of other models in memory" in second.explanation
        third = plan_memory(File(), Shape(), settings_, others=[first, second])
        assert not third.fits
        assert plan_memory(File(), Shape(), settings_, others=[first], leaving=[second]).fits
    assert first.anonymous_bytes + first.weights_bytes == first.model_bytes < first.total_bytes


def test_weights_that_are_too_big_alone():
    it = plan(900)
    assert not it.fits
    assert (it.max_sessions, it.max_context_tokens) == (0, 0)
    assert "only a smaller model or more memory would help" in it.explanation


def test_a_default_arena_is_not_cut_into_crumbs():
    it = plan(960)
    assert not it.fits
    assert it.session_context_tokens == 512


SETTINGS = st.fixed_dictionaries(
    {
        "sessions": st.integers(1, 256),
        "context_tokens": st.none() | st.integers(32, 131072),
        "kv_budget_bytes": st.none() | st.integers(MIB, 4096 * MIB),
        "kv_type": st.sampled_from(["f16", "q8_0"]),
    }
)


@settings(max_examples=200, deadline=None)
@given(
    available_mib=st.integers(1, 20_000),
    context_length=st.sampled_from([131072, 2048, 200]),
    changes=SETTINGS,
)
def test_every_plan_is_sound(available_mib, context_length, changes):
    sessions, context_tokens = changes["sessions"], changes["context_tokens"]
    assume(context_tokens is None or context_tokens <= context_length)
    try:
        it = plan(available_mib, Shape(context_length=context_length), **changes)
    except RequestError as error:
        assert error.field == "kv_budget_bytes"
        return
    assert it.total_bytes == it.weights_bytes + it.kv_arena_bytes + it.scratch_bytes + it.process_bytes
    assert it.fits == (it.total_bytes <= it.available_bytes)
    assert it.n_pages >= sessions  # a page for each session
    assert it.n_pages * 32 >= it.session_context_tokens  # one session's context fits in the arena
    assert 1 <= it.session_share_tokens <= it.session_context_tokens <= context_length
    assert changes["kv_budget_bytes"] is None or it.kv_arena_bytes <= changes["kv_budget_bytes"]
    if context_tokens is None:
        assert it.session_context_tokens <= 4096
        assert it.session_share_tokens == it.session_context_tokens
    else:
        assert it.session_context_tokens == context_tokens
        assert it.n_pages <= sessions * -(-context_tokens // 32)
    assert it.explanation.startswith("The plan fits." if it.fits else "The plan does not fit")


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (3 << 50, "3072.0 TiB")],
)
def test_bytes_for_people(n_bytes, text):
    assert format_bytes(n_bytes) == text
