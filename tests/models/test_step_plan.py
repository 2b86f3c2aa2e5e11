"""A bad plan is refused as a whole; a program is built only from parts that fit."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from runtime._native import Arena, Program, Sampler, ThreadPool
from tests.models.support import Runner, Tiny, greedy, ints, write_tiny


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    path = write_tiny(tmp_path_factory.mktemp("m") / "m.gguf", Tiny())
    return Runner(path, n_seqs=2, pages_each=2, max_rows=16)  # 4 pages of 32


GOOD = {
    "tokens": ints([1, 2, 3]),
    "positions": ints([0, 1, 40]),
    "seq_starts": ints([0, 2, 3]),
    "page_starts": ints([0, 1, 3]),
    "pages": ints([0, 1, 2]),
    "out_rows": ints([1, 2]),
    "samplers": [None, None],
    "targets": ints([-1, 0]),
}
MAX = 2**31 - 1


def test_the_good_plan_runs(runner):
    runner.program.step(**GOOD)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": ints([1, 2, 20])}, "token 20"),
        ({"tokens": ints([1, -1, 3])}, "token -1"),
        ({"tokens": ints([])}, "0 rows"),
        ({"tokens": ints([1] * 17)}, "17 rows"),
        ({"positions": ints([0, 1])}, "differ in length"),
        ({"positions": ints([0, 2, 40])}, "not consecutive"),
        ({"positions": ints([-1, 0, 40])}, "positions -1"),
        ({"positions": ints([31, 32, 40])}, "do not fit"),
        ({"positions": ints([0, 1, 64])}, "do not fit"),
        ({"positions": ints([0, 1, MAX])}, "do not fit"),
        ({"positions": ints([MAX, -(2**31), 0])}, "do not fit"),
        ({"seq_starts": ints([0, 3])}, "one entry more"),
        ({"seq_starts": ints([0])}, "one entry more"),
        ({"seq_starts": ints([])}, "one entry more"),
        ({"seq_starts": ints([0, 0, 3])}, "increase"),
        ({"seq_starts": ints([0, 4, 3])}, "increase"),
        ({"seq_starts": ints([1, 2, 3])}, "from 0 to 3"),
        ({"seq_starts": ints([0, 2, 4])}, "from 0 to 3"),
        ({"seq_starts": ints([0, -5, 3])}, "increase"),
        ({"page_starts": ints([0, 0, 3])}, "increase"),
        ({"page_starts": ints([0, 1, 4])}, "from 0 to 3"),
        ({"page_starts": ints([0, MAX, 3])}, "increase"),
        ({"pages": ints([0, 1, 4])}, "page 4"),
        ({"pages": ints([0, 1, -1])}, "page -1"),
        ({"pages": ints([0, 1, 0])}, "written twice"),
        ({"pages": ints([0, 0, 2])}, "written by sequence 0 and read by 1"),
        ({"page_starts": ints([0, 5, 10]), "pages": ints([0, 1, 2, 3, 0, 1, 2, 3, 0, 1])}, "more pages"),
        ({"out_rows": ints([1, 3])}, "output row 3"),
        ({"out_rows": ints([-1, 2])}, "output row -1"),
        ({"out_rows": ints([1])}, "differ in length"),
        ({"samplers": [None]}, "differ in length"),
        ({"targets": ints([-2, 0])}, "target -2"),
        ({"targets": ints([0, 20])}, "target 20"),
        ({"out_rows": ints([0] * 17), "samplers": [None] * 17, "targets": ints([0] * 17)}, "17 output rows"),
    ],
)
def test_bad_plans_are_refused(runner, changes, message):
    with pytest.raises(ValueError, match=message):
        runner.program.step(**(GOOD | changes))
    runner.program.step(**GOOD)


def test_one_sampler_for_two_rows_is_refused(runner):
    sampler = greedy()
    with pytest.raises(ValueError, match="one sampler"):
        runner.program.step(**(GOOD | {"samplers": [sampler, sampler]}))
    assert sampler.n_drawn == 0


def test_rows_of_one_sampler_must_follow_each_other(runner):
    plan = GOOD | {
        "tokens": ints([1, 2, 3, 4]),
        "positions": ints([0, 1, 2, 40]),
        "seq_starts": ints([0, 3, 4]),
        "targets": ints([-1, -1, -1]),
    }
    a, b = greedy(), greedy()
    for out_rows, samplers in [
        ([0, 2, 3], [a, a, b]),  # a row between them
        ([1, 0, 3], [a, a, b]),  # backwards
        ([1, 2, 3], [b, a, a]),  # two sequences
        ([0, 1, 2], [a, b, a]),  # another sampler between them
        ([0, 0, 1], [a, a, a]),  # one row twice
    ]:
        with pytest.raises(ValueError, match="one sampler draws for two rows"):
            runner.program.step(**(plan | {"out_rows": ints(out_rows), "samplers": samplers}))
    assert a.n_drawn == b.n_drawn == 0
    runner.program.step(**(plan | {"out_rows": ints([0, 1, 3]), "samplers": [a, a, b]}))
    assert b.n_drawn == 1


def test_a_mask_for_another_vocabulary_is_refused(runner):
    sampler = greedy()
    sampler.set_mask(np.array([1, 1], np.uint32))
    with pytest.raises(ValueError, match="mask of output row 1 is not made for 20 tokens"):
        runner.program.step(**(GOOD | {"samplers": [None, sampler]}))
    assert sampler.n_drawn == 0


def test_wrong_types_are_refused(runner):
    for changes in [
        {"tokens": np.array([1, 2, 3], np.int64)},
        {"tokens": ints([[1, 2, 3]])},
        {"tokens": ints(range(6))[::2]},
        {"samplers": [None, "greedy"]},
        {"samplers": None},
        {"pages": None},
    ]:
        with pytest.raises(TypeError):
            runner.program.step(**(GOOD | changes))


def test_two_threads_cannot_step_at_once(runner):
    """Whoever loses is told so; nobody's numbers change."""
    expected = runner.program.step(**GOOD)[2].tobytes()
    wrong, refused = [], []

    def work():
        for _ in range(50):
            try:
                if runner.program.step(**GOOD)[2].tobytes() != expected:
                    wrong.append(1)
            except RuntimeError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert all("another thread" in message for message in refused)


def make_program(**changes) -> Program:
    values = {"n_vocab": 16, "max_rows": 8, "ropes": [([1.0, 0.1], 1.0)]} | changes
    arena = Arena(n_layers=1, n_kv_heads=2, head_dim=8, page_tokens=8, n_pages=2, kv_type="f16")
    return Program(ThreadPool(1), arena, **values)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_vocab": 0},
        {"n_vocab": 2**40},
        {"max_rows": 0},
        {"max_rows": 2**40},
        {"ropes": [([1.0] * 5, 1.0)]},
        {"ropes": [([float("nan")], 1.0)]},
        {"ropes": [([1.0], float("inf"))]},
        {"ropes": [([1.0], 1.0), ([1.0, 0.1], 1.0)]},
        {"ropes": [([], 1.0)]},
        {"level": "mmx"},
    ],
)
def test_bad_program_settings(changes):
    with pytest.raises(ValueError):
        make_program(**changes)


def test_operations_that_do_not_fit(runner):
    program = make_program(n_vocab=96)
    file = runner.file.shards[0]
    x, wide = program.buffer("x", 64), program.buffer("wide", 96)
    norm, down = program.vector(file, "output_norm.weight"), program.matrix(file, "blk.0.ffn_down.weight")
    up = program.matrix(file, "blk.0.ffn_up.weight")
    attempts = {
        "buffer": lambda: program.embed(table=up, out=9),
        "matrix": lambda: program.embed(table=99, out=x),
        "n_vocab": lambda: program.embed(table=down, out=wide),
        "elements": lambda: program.rms_norm(source=wide, weight=norm, out=wide, eps=1e-5),
        "width": lambda: program.rms_norm(source=x, weight=norm, out=wide, eps=1e-5),
        "divide": lambda: program.head_norm(buffer=x, weight=norm, head_dim=7, eps=1e-5),
        "instead of": lambda: program.linear(source=x, targets=[(down, -1, wide)], accumulate=False),
        "no weights": lambda: program.linear(source=x, targets=[], accumulate=False),
        "one buffer": lambda: program.linear(source=wide, targets=[(down, -1, wide)], accumulate=False),
        "no vector": lambda: program.linear(source=wide, targets=[(down, 7, x)], accumulate=False),
        "layer": lambda: attention(program, x, layer=1),
        "evenly": lambda: attention(program, x, n_heads=3),
        "widths": lambda: attention(program, x, n_heads=4),
        "selected": lambda: program.head(source=x, weight=up),
        "ends with": program.finish,
        "has no tensor": lambda: program.matrix(file, "nothing"),
        "vector of F32": lambda: program.vector(file, "blk.0.ffn_up.weight"),
    }
    for message, attempt in attempts.items():
        with pytest.raises(ValueError, match=message):
            attempt()
    with pytest.raises(ValueError, match="not finished"):
        program.step(**GOOD)


def attention(program, buffer, *, layer=0, n_heads=2):
    program.attention(
        q=buffer, k=buffer, v=buffer, out=buffer, layer=layer, n_heads=n_heads, interleaved=True, scale=1.0
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"n_layers": 0},
        {"n_kv_heads": 0},
        {"head_dim": 0},
        {"page_tokens": 0},
        {"n_pages": 0},
        {"n_pages": 2**40},
        {"n_pages": 2**31 - 1, "n_layers": 2**16, "n_kv_heads": 2**16, "head_dim": 2**16},
        {"kv_type": "q4_0"},
        {"kv_type": "q8_0", "head_dim": 40},
    ],
)
def test_bad_arenas(changes):
    good = {"n_layers": 1, "n_kv_heads": 1, "head_dim": 32, "page_tokens": 32, "n_pages": 1, "kv_type": "f16"}
    with pytest.raises(ValueError):
        Arena(**(good | changes))


def test_an_arena_too_large_for_the_machine():
    with pytest.raises(MemoryError):
        Arena(n_layers=1024, n_kv_heads=1024, head_dim=1024, page_tokens=1024, n_pages=2**20, kv_type="f16")


def test_arena_bytes():
    arena = Arena(n_layers=3, n_kv_heads=2, head_dim=32, page_tokens=16, n_pages=5, kv_type="q8_0")
    assert arena.page_bytes == 3 * 2 * 2 * 16 * 34
    assert arena.size_bytes == 5 * arena.page_bytes


def test_samplers_keep_their_counts(runner):
    sampler = Sampler(temperature=0)
    for _ in range(3):
        runner.program.step(**(GOOD | {"samplers": [sampler, None]}))
    assert sampler.n_drawn == 3
