"""What the memory plan says and what the daemon takes: within 3 % and 30 MB, after the load and while it answers."""

import os
import re
import threading
from pathlib import Path

import gguf
import grpc
import numpy as np
import pytest

from daemon.errors import from_rpc_error
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


def write_hollow(path):
    """A llama of 274 MB whose weights are a hole in the file: it takes no disk, and a plan counts it in full."""
    n_embd, n_ff, n_vocab, n_layers = 1024, 4096, 2048, 8
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(n_layers)
    writer.add_context_length(2048)
    writer.add_embedding_length(n_embd)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(8)
    writer.add_head_count_kv(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    pieces = [f"\u2581{index}" for index in range(n_vocab - 259)]
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces])
    writer.add_token_scores([0.0] * n_vocab)
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(pieces))
    shapes = {"token_embd.weight": (n_vocab, n_embd), "output_norm.weight": (n_embd,)}
    for layer in range(n_layers):
        shapes |= {f"blk.{layer}.attn_{name}.weight": (n_embd, n_embd) for name in ("q", "k", "v", "output")}
        shapes |= {f"blk.{layer}.ffn_{name}.weight": (n_ff, n_embd) for name in ("gate", "up")}
        shapes |= {f"blk.{layer}.{name}_norm.weight": (n_embd,) for name in ("attn", "ffn")}
        shapes[f"blk.{layer}.ffn_down.weight"] = (n_embd, n_ff)
    total = 0
    for name, shape in shapes.items():
        kind = np.dtype(np.float16 if len(shape) > 1 else np.float32)
        n_bytes = int(np.prod(shape)) * kind.itemsize
        writer.add_tensor_info(name, shape, kind, n_bytes)
        total += -(-n_bytes // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    header = -(-path.stat().st_size // 32) * 32
    os.truncate(path, header + total)


def test_the_same_plan_admits_and_refuses_under_the_limit_of_a_control_group(start, models, tmp_path):
    """Where the test may make a group."""
    group = Path("/sys/fs/cgroup/memory") / f"quantd-test-{tmp_path.name}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(200 << 20))
    except OSError as failure:
        pytest.skip(f"no control group of memory can be made here: {failure.strerror}")
    write_hollow(tmp_path / "hollow.gguf")
    daemon = None
    try:
        daemon = start(*small(models)[:5], "--models-dir", tmp_path, "--kv-budget", "16MiB", wait=False)
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
        # What the plan says to fit is the largest that does.
        for sessions, fits in ((too_much.max_sessions, True), (too_much.max_sessions * 3, False)):
            request = rpc.PlanMemoryRequest(kv_budget_bytes=2**30, sessions=sessions)
            assert stubs.models.PlanMemory(request).plan.fits == fits
        hollow = stubs.models.PlanMemory(rpc.PlanMemoryRequest(name="hollow")).plan
        assert not hollow.fits
        for call in (
            lambda: stubs.models.LoadModel(rpc.LoadModelRequest(name="hollow"), timeout=20),
            lambda: list(stubs.generate.Generate(pb.GenerateRequest(model="hollow", text="Hi"), timeout=20)),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            error = from_rpc_error(caught.value)
            assert error.reason == "INSUFFICIENT_MEMORY"
            assert f"limit {200 << 20}" in error.message
        request = pb.GenerateRequest(text="Once upon", options=pb.GenerationOptions(max_tokens=4))
        assert list(stubs.generate.Generate(request, timeout=20))[-1].HasField("done"), "the first goes on"
        stubs.channel.close()
        assert daemon.stop()[0] == 0
    finally:
        if daemon is not None:
            daemon.kill()
        group.rmdir()
