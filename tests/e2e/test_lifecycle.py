"""Starting and stopping the real daemon: readiness, signals, ports, bad models, systemd's notifications."""

import os
import shutil
import signal
import socket
import threading
import time
import urllib.request

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from quantd.v1 import generate_pb2 as pb
from quantd.v1 import model_service_pb2
from tests.e2e.harness import Stubs, small


def long_request(**options):
    return pb.GenerateRequest(text="Once", options=pb.GenerationOptions(ignore_eos=True, **options))


def test_sigterm_drains_and_exits_0(start, models):
    daemon = start(*small(models))
    stubs = Stubs(daemon.grpc)
    context = 200
    results = []

    def consume():
        events = list(stubs.generate.Generate(long_request(max_tokens=context)))
        results.append(events[-1].done.usage.completion_tokens)

    streams = [threading.Thread(target=consume) for _ in range(4)]
    for stream in streams:
        stream.start()
    time.sleep(0.1)
    code, _ = daemon.stop()
    for stream in streams:
        stream.join(10)
    assert code == 0
    assert results == [context] * 4
    stubs.channel.close()


def test_a_second_signal_stops_at_once(start, models):
    daemon = start(*small(models), "--drain-seconds", "600", "--sessions", "1")
    stubs = Stubs(daemon.grpc)
    ends = []

    def consume():
        try:
            list(stubs.generate.Generate(long_request()))
            ends.append(None)
        except grpc.RpcError as failure:
            ends.append(failure.code())

    # Far more work than the seconds that the test gives it.
    streams = [threading.Thread(target=consume) for _ in range(8)]
    for stream in streams:
        stream.start()
    time.sleep(0.2)
    daemon.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    code, seconds = daemon.stop()
    for stream in streams:
        stream.join(10)
    assert code == 0
    assert seconds < 5
    assert len(ends) == 8
    assert set(ends) <= {None, grpc.StatusCode.UNAVAILABLE}
    stubs.channel.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_daemon_stops_quickly_and_leaves_nothing_behind(start, models, number):
    daemon = start(*small(models))
    stubs = Stubs(daemon.grpc)
    request = pb.GenerateRequest(text="Hi", options=pb.GenerationOptions(max_tokens=2))
    assert list(stubs.generate.Generate(request))[-1].HasField("done")
    stubs.channel.close()
    code, seconds = daemon.stop(number)
    assert code == 0
    assert seconds < 5
    # The native module tells of objects that outlive it, and the interpreter of what it could not end.
    assert [line for line in daemon.err if "leak" in line or not line.startswith("{")] == []


def test_an_unloaded_model_gives_its_memory_back(start, models):
    daemon = start(*small(models), "--kv-budget", "64MiB")
    stubs = Stubs(daemon.grpc)
    status = f"/proc/{daemon.process.pid}/status"

    def anonymous_bytes():
        with open(status) as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    def is_mapped():
        with open(f"/proc/{daemon.process.pid}/maps") as maps:
            return "demo.gguf" in maps.read()

    request = pb.GenerateRequest(model="demo", text="Once", options=pb.GenerationOptions(max_tokens=2))
    # The model of the start, which the collector will never look at, and then one that a request loaded.
    for _ in range(2):
        assert list(stubs.generate.Generate(request))[-1].HasField("done")
        running = stubs.models.ListRunning(model_service_pb2.ListRunningRequest()).models
        arena_bytes = running[0].kv_arena_bytes
        assert arena_bytes >= 4 * 2**20
        before_bytes = anonymous_bytes()
        assert is_mapped()
        stubs.models.UnloadModel(model_service_pb2.UnloadModelRequest(name="demo"))
        assert not is_mapped()
        assert before_bytes - anonymous_bytes() >= 0.9 * arena_bytes
    stubs.channel.close()
    assert daemon.stop()[0] == 0


@pytest.mark.parametrize("which", ["http", "grpc"])
def test_two_daemons_never_share_a_port(served, start, models, which):
    taken = served.url.removeprefix("http://") if which == "http" else served.grpc
    arguments = [*small(models)]
    arguments[arguments.index(f"--{which}") + 1] = taken
    second = start(*arguments, wait=False)
    assert second.wait(15) == 69
    assert taken.rsplit(":", 1)[1] in "".join(second.err)
    assert not second.out


def test_grpc_over_a_unix_socket(start, models, tmp_path):
    arguments = [*small(models)]
    arguments[arguments.index("--grpc") + 1] = f"unix:{tmp_path}/grpc.sock"
    daemon = start(*arguments)
    stubs = Stubs(daemon.grpc)
    request = pb.GenerateRequest(text="Hi", options=pb.GenerationOptions(max_tokens=2))
    assert list(stubs.generate.Generate(request))[-1].HasField("done")
    assert (tmp_path / "grpc.sock").stat().st_mode & 0o007 == 0
    stubs.channel.close()
    assert daemon.stop()[0] == 0
    assert not (tmp_path / "grpc.sock").exists()


@pytest.mark.parametrize(
    ("content", "arguments", "code", "word"),
    [
        (b"not a model", (), 65, "broken.gguf"),
        (None, (), 64, "broken.gguf"),
        (None, ("--http", "0.0.0.0:0"), 64, "--allow-remote"),
        (None, ("--sessions", "many"), 64, "--sessions"),
    ],
)
def test_what_cannot_start_says_why(start, tmp_path, *, content, arguments, code, word):
    path = tmp_path / "broken.gguf"
    if content is not None:
        path.write_bytes(content)
    daemon = start(path, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", *arguments, wait=False)
    assert daemon.wait(20) == code
    assert word in "".join(daemon.err)
    assert "Traceback" not in "".join(daemon.err)


def test_a_plan_that_does_not_fit_is_refused(start, models, tmp_path):
    model = tmp_path / "big.gguf"
    shutil.copy(models / "demo.gguf", model)
    os.truncate(model, 2**40)  # sparse: a terabyte to map, and nothing on the disk
    daemon = start(model, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", wait=False)
    assert daemon.wait(20) == 75
    assert "does not fit" in "".join(daemon.err)


def test_systemd_hears_ready_status_watchdog_and_stopping(start, models, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        daemon = start(
            *small(models), wait=False, NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="600000"
        )
        words = []

        def hear_until(word):
            while not words or not any(line.startswith(word) for line in words[-1].splitlines()):
                words.append(manager.recv(4096).decode())

        hear_until("READY=1")
        assert "STATUS=serving demo" in words[-1]
        hear_until("WATCHDOG=1")
        daemon.process.send_signal(signal.SIGTERM)
        hear_until("STOPPING=1")
        assert daemon.wait() == 0


def test_a_model_file_that_is_cut_ends_the_request_and_then_the_daemon(start, models, tmp_path):
    model = tmp_path / "cut.gguf"
    shutil.copy(models / "demo.gguf", model)
    daemon = start(model, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
    stubs = Stubs(daemon.grpc)
    os.truncate(model, 100_000)
    with pytest.raises(grpc.RpcError) as caught:
        list(stubs.generate.Generate(long_request()))
    assert caught.value.code() in (grpc.StatusCode.DATA_LOSS, grpc.StatusCode.UNAVAILABLE)
    assert daemon.wait(10) == 70
    stubs.channel.close()


@pytest.mark.parametrize("delay_s", [0.5, 0.6, 0.7, 0.8])
def test_sigterm_while_the_model_loads(start, models, tmp_path, delay_s):
    fifo = tmp_path / "ready"
    daemon = start(*small(models), wait=False, NOTIFY_SOCKET=str(fifo))
    time.sleep(delay_s)  # somewhere between the first import and READY
    code, seconds = daemon.stop()
    assert code in (0, -signal.SIGTERM)
    assert seconds < 10


def test_models_come_when_they_are_named_and_go_when_they_are_idle(start, models):
    daemon = start(*small(models), "--keep-alive", "200ms", "--max-models", "2")
    stubs = Stubs(daemon.grpc)
    health = health_pb2_grpc.HealthStub(stubs.channel)

    def running():
        return [
            one.model.name for one in stubs.models.ListRunning(model_service_pb2.ListRunningRequest()).models
        ]

    def ask(name, **options):
        request = pb.GenerateRequest(
            model=name, text="Once", options=pb.GenerationOptions(max_tokens=4), **options
        )
        return next(iter(list(stubs.generate.Generate(request)))).started.model

    assert ask("demo-f16", keep_alive_ms=60_000) == "demo-f16"
    assert running() == ["demo-f16", "demo"]
    assert ask("") == "demo"
    assert ask("demo-f16", keep_alive_ms=100) == "demo-f16"
    end = time.monotonic() + 10
    while running() != ["demo"]:
        assert time.monotonic() < end
        time.sleep(0.02)
    stubs.models.UnloadModel(model_service_pb2.UnloadModelRequest(name="demo"))
    assert running() == []
    assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
    assert urllib.request.urlopen(f"{daemon.url}/readyz", timeout=5).status == 200
    assert ask("") == "demo"
    with pytest.raises(grpc.RpcError) as caught:
        ask("nope")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert daemon.stop()[0] == 0
    stubs.channel.close()


def test_a_daemon_without_a_model_waits_for_one(start, models):
    daemon = start(
        "--http",
        "127.0.0.1:0",
        "--grpc",
        "127.0.0.1:0",
        QUANTD_MODELS_DIR=str(models),
        QUANTD_KV_BUDGET="8MiB",
    )
    stubs = Stubs(daemon.grpc)
    names = [one.name for one in stubs.models.ListModels(model_service_pb2.ListModelsRequest()).models]
    assert names == ["demo", "demo-f16"]
    plan = stubs.models.LoadModel(model_service_pb2.LoadModelRequest(name="demo")).plan
    assert plan.kv_arena_bytes <= 8 * 2**20
    request = pb.GenerateRequest(text="Once", options=pb.GenerationOptions(max_tokens=2))
    assert next(iter(stubs.generate.Generate(request))).started.model == "demo"
    assert daemon.stop()[0] == 0
    stubs.channel.close()
