"""The pool idles at no cost, and the default thread count follows what the process may use."""

from __future__ import annotations

import os
import time

import pytest

from runtime._native import ThreadPool
from runtime.cpu import cpu_quota, usable_cores
from tests.models.support import Runner, Tiny, write_tiny


@pytest.mark.parametrize("bad", [0, -1, 257])
def test_bad_thread_counts(bad):
    with pytest.raises(ValueError, match="n_threads"):
        ThreadPool(bad)


def test_pools_come_and_go():
    for n in (1, 2, 7, 32):
        pools = [ThreadPool(n) for _ in range(3)]
        assert pools[0].size == n
        del pools


def test_an_idle_pool_takes_no_cpu(tmp_path):
    runner = Runner(write_tiny(tmp_path / "m.gguf", Tiny(n_embd=256, head_dim=64, n_ff=512)), threads=4)
    runner.step([(0, 0, [1] * 32)], [31])
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.02


def test_many_more_threads_than_cores(tmp_path):
    path = write_tiny(tmp_path / "m.gguf", Tiny(n_embd=256, head_dim=64, n_ff=512))
    tokens = [1, 2, 3] * 20
    expected = Runner(path).logprobs(tokens)
    assert Runner(path, threads=16).logprobs(tokens).tobytes() == expected.tobytes()


def test_usable_cores():
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2.0),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        (
            "3:cpu,cpuacct:/x\n",
            {"cpu/x/cpu.cfs_quota_us": "50000\n", "cpu/x/cpu.cfs_period_us": "100000\n"},
            0.5,
        ),
        (
            "3:cpu,cpuacct:/x\n",
            {"cpu/x/cpu.cfs_quota_us": "-1\n", "cpu/x/cpu.cfs_period_us": "100000\n"},
            None,
        ),
        ("0::/a\n", {"a/cpu.max": "nonsense"}, None),
        ("nonsense", {}, None),
    ],
)
def test_cpu_quota(tmp_path, own, files, expected):
    root = tmp_path / "cgroup"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (tmp_path / "own").write_text(own)
    assert cpu_quota(tmp_path / "own", root) == expected
