"""What the memory plan says and what the daemon takes: within 3 % and 30 MB, after the load and while it answers."""

import re
import threading
from pathlib import Path

import pytest

from quantd.v1 import generate_pb2 as pb
from quantd.v1 import model_service_pb2 as rpc
from tests.e2e.harness import Stubs, small


def anonymous_bytes(pid):
    return int(re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) * 1024


@pytest.mark.parametrize(
    "arguments",
    [
        ("demo.gguf", "--kv-budget", "64MiB", "--sessions", "8"),
        ("demo-f16.gguf", "--kv-budget", "16MiB", "--kv-type", "q8_0", "--threads", "1"),
    ],
)
def test_actual_use_is_what_the_plan_says(start, models, arguments):
    daemon = start(models / arguments[0], *small(models)[1:5], "--models-dir", models, *arguments[1:])
    stubs = Stubs(daemon.grpc)

    def planned():
        running = stubs.models.ListRunning(rpc.ListRunningRequest()).models
        process = stubs.models.PlanMemory(rpc.PlanMemoryRequest()).plan
        base = process.total_bytes - running[-1].memory_bytes
        total = base + sum(one.memory_bytes for one in running)
        return total, total - sum(one.model.size_bytes for one in running)

    def check():
        total, anonymous = planned()
        used = anonymous_bytes(daemon.process.pid)
        assert abs(used - anonymous) <= 0.03 * total + 30e6, (used / 2**20, anonymous / 2**20)
        return used

    def ask(model=""):
        options = pb.GenerationOptions(max_tokens=40, ignore_eos=True)
        list(
            stubs.generate.Generate(
                pb.GenerateRequest(model=model, text="Once upon a time " * 8, options=options)
            )
        )

    check()
    callers = [threading.Thread(target=ask) for _ in range(8)]
    for caller in callers:
        caller.start()
    check()
    for caller in callers:
        caller.join()
    one = check()
    ask("demo-f16" if arguments[0] == "demo.gguf" else "demo")  # a second model, counted beside the first
    assert len(stubs.models.ListRunning(rpc.ListRunningRequest()).models) == 2
    assert check() > one
    stubs.channel.close()


def test_a_second_model_is_refused_by_the_same_plan_under_a_limit(start, models, tmp_path):
    """The limit is that of a control group, where the test may make one."""
    group = Path("/sys/fs/cgroup/memory") / f"quantd-test-{tmp_path.name}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(200 << 20))
    except OSError as failure:
        pytest.skip(f"no control group of memory can be made here: {failure.strerror}")
    daemon = None
    try:
        daemon = start(*small(models)[:5], "--models-dir", models, "--kv-budget", "16MiB", wait=False)
        (group / "cgroup.procs").write_text(str(daemon.process.pid))
        daemon.wait_until_ready()
        stubs = Stubs(daemon.grpc)
        plan = stubs.models.PlanMemory(rpc.PlanMemoryRequest()).plan
        assert plan.fits
        # Pages that it took before it joined are charged elsewhere, and counted as its own all the same.
        assert 100 << 20 < plan.available_bytes <= 230 << 20
        assert f"limit {200 << 20}" in plan.explanation
        too_much = stubs.models.PlanMemory(rpc.PlanMemoryRequest(kv_budget_bytes=2**30, sessions=256)).plan
        assert not too_much.fits
        assert 0 < too_much.max_sessions < 256
        stubs.channel.close()
        assert daemon.stop()[0] == 0
    finally:
        if daemon is not None:
            daemon.kill()
        group.rmdir()
