"""QuantizeService: the child's lines become events, its failures become errors, and cancelling it leaves nothing."""

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest

from daemon.cli.quantize import command
from daemon.errors import from_rpc_error
from daemon.services import quantize
from quantd.v1 import quantize_service_pb2 as rpc

PROGRESS = '{"event": "progress", "tensors_done": 1, "tensors_total": 2, "bytes_done": 10, "tensor": "blk.0"}'
RESULT = (
    '{"event": "result", "output": "/x", "output_bytes": 5, "source_bytes": 20, "seconds": 0.5, "types": {}}'
)
SLOW = f"print({PROGRESS!r}, flush=True); open(sys.argv[3] + '.partial.123', 'w').close(); time.sleep(60)"


@pytest.fixture
def child(monkeypatch):
    """Puts a small program in the place of the quantizer."""

    def use(code):
        def command(arguments):
            return [sys.executable, "-c", f"import sys, time; {code}", *arguments]

        monkeypatch.setattr(quantize, "child_command", command)

    return use


def request(**changes):
    return rpc.QuantizeRequest(**{"source": "tiny", "output": "out", **changes})


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return from_rpc_error(caught.value)


def files(world):
    return sorted(path.name for path in world.folder.iterdir())


async def test_progress_then_the_result(world, child):
    child(f"print('noise'); print({PROGRESS!r}); print({RESULT!r})")
    events = [event async for event in world.quantize.Quantize(request())]
    assert [event.WhichOneof("event") for event in events] == ["progress", "result"]
    assert (events[0].progress.tensors_done, events[0].progress.tensor) == (1, "blk.0")
    assert (events[1].result.output, events[1].result.output_bytes) == ("out", 5)


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"source": "nope"}, "MODEL_NOT_FOUND", "source"),
        ({"source": "../tiny"}, "MODEL_NOT_FOUND", "source"),
        ({"source": ""}, "MODEL_NOT_FOUND", "source"),
        ({"output": ""}, "INVALID_ARGUMENT", "output"),
        ({"output": "../out"}, "INVALID_ARGUMENT", "output"),
        ({"output": "/tmp/out"}, "INVALID_ARGUMENT", "output"),
        ({"output": "tiny"}, "OUTPUT_EXISTS", "output"),
        ({"threads": 0}, "INVALID_ARGUMENT", "threads"),
        ({"threads": -1}, "INVALID_ARGUMENT", "threads"),
        ({"threads": 2**31 - 1}, "INVALID_ARGUMENT", "threads"),
        ({"recipe": "--help"}, "INVALID_ARGUMENT", "recipe"),
        ({"recipe": "x" * 33}, "INVALID_ARGUMENT", "recipe"),
        ({"recipe": "Q4 K"}, "INVALID_ARGUMENT", "recipe"),
        ({"memory_bytes": 0}, "INVALID_ARGUMENT", "memory_bytes"),
        ({"tensor_types": ["a=Q8_0"] * 65}, "INVALID_ARGUMENT", "tensor_types"),
        ({"tensor_types": ["a" * 300 + "=Q8_0"]}, "INVALID_ARGUMENT", "tensor_types"),
        ({"tensor_types": ["a\0=Q8_0"]}, "INVALID_ARGUMENT", "tensor_types"),
        ({"output_type": "Q" * 400}, "INVALID_ARGUMENT", "output_type"),
        ({"lora": [rpc.LoraAdapter(name="../adapter")]}, "MODEL_NOT_FOUND", "lora"),
        ({"lora": [rpc.LoraAdapter(name="/tmp")]}, "MODEL_NOT_FOUND", "lora"),
        ({"source": ".."}, "MODEL_NOT_FOUND", "source"),
        ({"source": "."}, "MODEL_NOT_FOUND", "source"),
        ({"lora": [rpc.LoraAdapter(name="a")] * 9}, "INVALID_ARGUMENT", "lora"),
        ({"verify_text": "x" * 262145}, "INVALID_ARGUMENT", "verify_text"),
        ({"max_increase_percent": 3}, "INVALID_ARGUMENT", "max_increase_percent"),
        ({"verify_text": "x", "max_increase_percent": -101}, "INVALID_ARGUMENT", "max_increase_percent"),
        (
            {"verify_text": "x", "max_increase_percent": float("nan")},
            "INVALID_ARGUMENT",
            "max_increase_percent",
        ),
        ({"no_error_feedback": True}, "INVALID_ARGUMENT", "no_error_feedback"),
        (
            {"no_error_feedback": True, "recipe": "best-Q4_K_M", "imatrix": "tiny"},
            "INVALID_ARGUMENT",
            "no_error_feedback",
        ),
        ({"save_imatrix": "found"}, "INVALID_ARGUMENT", "save_imatrix"),
        ({"save_imatrix": "../found", "calibrate": True}, "INVALID_ARGUMENT", "save_imatrix"),
        ({"save_imatrix": ".dat", "calibrate": True}, "INVALID_ARGUMENT", "save_imatrix"),
        ({"save_imatrix": "out", "calibrate": True}, "INVALID_ARGUMENT", "save_imatrix"),
        ({"save_imatrix": "tiny", "calibrate": True}, "OUTPUT_EXISTS", "save_imatrix"),
        ({"imatrix": "../x.dat"}, "MODEL_NOT_FOUND", "imatrix"),
        ({"imatrix": "tiny.dat"}, "MODEL_NOT_FOUND", "imatrix"),
    ],
)
async def test_bad_requests_start_nothing(world, child, fields, reason, field):
    child("open(sys.argv[3], 'w').close()")
    error = await refusal(world.quantize.Quantize(request(**fields)))
    assert (error.reason, error.field) == (reason, field)
    assert files(world) == ["tiny.gguf"]


@pytest.mark.parametrize(
    ("code", "reason", "field"),
    [
        (64, "UNSUPPORTED_RECIPE", "recipe"),
        (65, "INVALID_MODEL_FILE", "source"),
        (65, "UNSUPPORTED_MODEL", "source"),
        (74, "DISK_FULL", ""),
        (73, "CANNOT_CREATE", ""),
        (70, "", ""),
        (-9, "", ""),
    ],
)
async def test_failures_of_the_child_have_reasons(world, child, code, reason, field):
    end = f"sys.exit({code})" if code >= 0 else "import os; os.kill(os.getpid(), 9)"
    say = (
        f"import json; print(json.dumps(dict(event='error', reason={reason!r}, message=sys.argv[2] + ': no')))"
        if reason
        else "print('secret', file=sys.stderr)"
    )
    child(f"{say}; {end}")
    error = await refusal(world.quantize.Quantize(request()))
    reason = reason or "INTERNAL"
    assert error.field == field
    assert error.reason == reason
    assert str(world.folder) not in error.message
    assert "secret" not in error.message
    assert files(world) == ["tiny.gguf"]


async def test_cancel_kills_the_child_and_leaves_no_file(world, child):
    child(SLOW)
    call = world.quantize.Quantize(request())
    await call.read()
    call.cancel()
    end = time.monotonic() + 5
    while world.services.quantize._jobs and time.monotonic() < end:
        await asyncio.sleep(0.01)
    assert not world.services.quantize._jobs
    assert files(world) == ["tiny.gguf"]


async def test_a_child_that_ignores_sigterm_is_killed(world, child, monkeypatch):
    monkeypatch.setattr(quantize, "TERMINATE_S", 0.2)
    child("import signal; signal.signal(15, signal.SIG_IGN); " + SLOW)
    call = world.quantize.Quantize(request())
    await call.read()
    call.cancel()
    end = time.monotonic() + 5
    while world.services.quantize._jobs and time.monotonic() < end:
        await asyncio.sleep(0.01)
    assert not world.services.quantize._jobs
    assert files(world) == ["tiny.gguf"]


async def wait_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


async def test_jobs_wait_for_their_turn(world, child):
    child(SLOW)
    first = world.quantize.Quantize(request())
    assert (await first.read()).progress.tensor == "blk.0"
    second = world.quantize.Quantize(request(output="second", recipe="Q8_0"))
    assert (await second.read()).queued.jobs_ahead == 1
    third = world.quantize.Quantize(request(output="third"))
    assert (await third.read()).queued.jobs_ahead == 2
    jobs = (await world.quantize.ListJobs(rpc.ListJobsRequest())).jobs
    assert [(job.output, job.running, job.progress.tensors_done) for job in jobs] == [
        ("out", True, 1),
        ("second", False, 0),
        ("third", False, 0),
    ]
    assert jobs[1].recipe == "Q8_0"
    assert len({job.job_id for job in jobs}) == 3
    # the same name twice is refused while the first of them waits
    error = await refusal(world.quantize.Quantize(request(output="third")))
    assert (error.reason, error.field) == ("OUTPUT_EXISTS", "output")
    first.cancel()
    assert (await second.read()).progress.tensor == "blk.0"
    assert (await third.read()).queued.jobs_ahead == 1
    second.cancel()
    third.cancel()
    await wait_for(lambda: not world.services.quantize._jobs)
    assert files(world) == ["tiny.gguf"]


async def test_jobs_are_cancelled_by_their_id(world, child):
    child("import signal; signal.signal(15, lambda *_: sys.exit(75)); " + SLOW)
    running = world.quantize.Quantize(request())
    await running.read()
    waiting = world.quantize.Quantize(request(output="waiting"))
    await waiting.read()
    ids = [job.job_id for job in (await world.quantize.ListJobs(rpc.ListJobsRequest())).jobs]
    for call, job_id in ((waiting, ids[1]), (running, ids[0])):
        await world.quantize.CancelJob(rpc.CancelJobRequest(job_id=job_id))
        assert await call.code() is grpc.StatusCode.CANCELLED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.quantize.CancelJob(rpc.CancelJobRequest(job_id=ids[0]))
    assert from_rpc_error(caught.value).field == "job_id"
    assert not world.services.quantize._jobs
    assert files(world) == ["tiny.gguf"]


async def test_the_queue_is_bounded(world, child, monkeypatch):
    monkeypatch.setattr(quantize, "MAX_WAITING_JOBS", 1)
    child(SLOW)
    calls = [world.quantize.Quantize(request(output=f"out{i}")) for i in range(2)]
    for call in calls:
        await call.read()
    error = await refusal(world.quantize.Quantize(request(output="one too many")))
    assert (error.reason, error.retry_after_s) == ("QUANTIZE_BUSY", 10.0)
    for call in calls:
        call.cancel()
    await wait_for(lambda: not world.services.quantize._jobs)


async def test_every_option_reaches_the_child(world, child):
    (world.folder / "adapter").mkdir()
    (world.folder / "adapter" / "adapter_config.json").write_text("{}")
    (world.folder / "weights").mkdir()
    (world.folder / "weights" / "config.json").write_text("{}")
    child("import json; print(json.dumps(dict(event='result', data_sha256=' '.join(sys.argv[1:]))))")
    events = [
        event
        async for event in world.quantize.Quantize(
            request(
                source="weights",
                recipe="auto",
                threads=3,
                pure=True,
                output_type="Q8_0",
                embedding_type="F16",
                attention_type="IQ4_NL",
                tensor_types=["--a=Q8_0", "b=Q6_K"],
                lora=[rpc.LoraAdapter(name="adapter", scale=0.5)],
                memory_bytes=1000,
                no_input_hashes=True,
                force=True,
                dry_run=True,
                calibrate=True,
                no_error_feedback=True,
                save_imatrix="found.dat",
            )
        )
    ]
    folder = world.folder
    assert events[-1].result.data_sha256.split(" ") == [
        "quantize", f"{folder}/weights", f"{folder}/out.gguf", "--recipe=auto", "--tensor-type=--a=Q8_0",
        "--tensor-type=b=Q6_K", "--output-type=Q8_0", "--embedding-type=F16", "--attention-type=IQ4_NL", "--threads=3",
        "--memory=1000", "--pure", "--no-input-hashes", "--force", "--dry-run", "--no-error-feedback", "--calibrate=built-in",
        f"--lora={folder}/adapter:0.5", f"--save-imatrix={folder}/found.dat",
    ]  # fmt: skip


def test_no_option_of_the_command_is_missing():
    """What only concerns a terminal or this machine is left out; the rest has a field of its name, or another one said here."""
    elsewhere = {
        "verify": "verify_text",
        "max_increase": "max_increase_percent",
        "memory": "memory_bytes",
        "tensor_type": "tensor_types",
    }
    options = {
        option.opts[-1].removeprefix("--").replace("-", "_") for option in command.params if option.opts
    }
    options -= {"json", "progress_json"}
    fields = set(rpc.QuantizeRequest.DESCRIPTOR.fields_by_name) - {"calibration_text"}
    assert {elsewhere.get(name, name) for name in options} == fields


async def test_the_text_to_verify_on_reaches_the_child(world, child):
    child(
        "text = open(sys.argv[-1].removeprefix('--verify=')).read(); import json; "
        "print(json.dumps(dict(event='result', data_sha256=f'{len(text)} {sys.argv[-2]}')))"
    )
    text = "words " * 40000
    asked = request(verify_text=text, max_increase_percent=2.5)
    events = [event async for event in world.quantize.Quantize(asked)]
    assert events[-1].result.data_sha256 == "240000 --max-increase=2.5"


async def test_a_loss_beyond_the_limit_is_a_result(world, child):
    divergence = {"kl_mean": 0.5, "kl_max": math.inf, "kl_percentiles": {"50": 0.1}, "passed": False}
    result = json.dumps({"event": "result", "divergence": divergence})
    verifying = json.dumps({"event": "verifying", "chunks_done": 1, "chunks_total": 2})
    child(f"print({verifying!r}); print({result!r}); sys.exit(1)")
    asked = request(verify_text="words", max_increase_percent=1)
    events = [event async for event in world.quantize.Quantize(asked)]
    assert [event.WhichOneof("event") for event in events] == ["verifying", "result"]
    assert (events[0].verifying.chunks_done, events[0].verifying.chunks_total) == (1, 2)
    found = events[1].result.divergence
    assert (found.kl_mean, found.kl_max, dict(found.kl_percentiles)) == (0.5, math.inf, {"50": 0.1})
    assert found.HasField("passed")
    assert not found.passed


async def test_a_job_that_ends_while_it_is_compared_leaves_nothing(world, child):
    verifying = json.dumps({"event": "verifying", "chunks_done": 0, "chunks_total": 0})
    child(
        "[open(sys.argv[3] + end, 'w').close() for end in ('', '.manifest.json')]; "
        f"open(sys.argv[-2].removeprefix('--save-imatrix='), 'w').close(); print({verifying!r}, flush=True); time.sleep(60)"
    )
    call = world.quantize.Quantize(request(verify_text="words", calibrate=True, save_imatrix="found.dat"))
    assert (await call.read()).HasField("verifying")
    assert len(files(world)) == 4
    call.cancel()
    await wait_for(lambda: not world.services.quantize._jobs)
    assert files(world) == ["tiny.gguf"]


async def test_a_file_that_somebody_else_made_meanwhile_stays(world, child):
    said = json.dumps({"event": "error", "reason": "OUTPUT_EXISTS", "message": "it is there"})
    child(f"open(sys.argv[3], 'w').close(); print({said!r}); sys.exit(73)")
    assert (await refusal(world.quantize.Quantize(request()))).reason == "OUTPUT_EXISTS"
    assert files(world) == ["out.gguf", "tiny.gguf"]


async def test_what_is_there_is_replaced_only_where_that_is_asked(world, child):
    child(f"print({RESULT!r})")
    (world.folder / "out.gguf").write_bytes(b"old")
    assert (await refusal(world.quantize.Quantize(request()))).reason == "OUTPUT_EXISTS"
    events = [event async for event in world.quantize.Quantize(request(force=True))]
    assert events[-1].HasField("result")
    assert (world.folder / "out.gguf").read_bytes() == b"old"  # the child replaces it
    child("sys.exit(70)")
    await refusal(world.quantize.Quantize(request(force=True)))
    assert (world.folder / "out.gguf").read_bytes() == b"old"
    (world.folder / "out.gguf").unlink()
    (world.folder / "out.gguf").symlink_to(world.folder / "tiny.gguf")
    assert (await refusal(world.quantize.Quantize(request(force=True)))).reason == "OUTPUT_EXISTS"


async def test_two_jobs_that_make_the_same_file_are_refused(world, child):
    child(SLOW)
    first = world.quantize.Quantize(request(calibrate=True, save_imatrix="found"))
    await first.read()
    for changes, field in (
        ({"output": "found"}, "output"),
        ({"output": "b", "calibrate": True, "save_imatrix": "found"}, "save_imatrix"),
    ):
        error = await refusal(world.quantize.Quantize(request(**changes)))
        assert (error.reason, error.field) == ("OUTPUT_EXISTS", field)
    first.cancel()
    await wait_for(lambda: not world.services.quantize._jobs)


async def test_an_option_that_the_child_refuses_is_named_as_on_the_wire(world, child):
    said = json.dumps({"event": "error", "reason": "INVALID_ARGUMENT", "message": "no", "field": "verify"})
    child(f"print({said!r}); sys.exit(64)")
    assert (await refusal(world.quantize.Quantize(request(verify_text="short")))).field == "verify_text"


async def test_calibration_reaches_the_child(world, child):
    child(
        "import json; print(json.dumps(dict(event='result', data_sha256=f\"{' '.join(sys.argv[5:])} {len(sys.stdin.read())}\")))"
    )

    async def given(**changes) -> str:
        return [event async for event in world.quantize.Quantize(request(**changes))][-1].result.data_sha256

    assert await given(calibrate=True) == "--calibrate=built-in 0"
    text = "words " * 40000
    assert await given(recipe="best-Q4_K_M", calibration_text=text) == "--calibrate=/dev/stdin 240000"
    assert await given(imatrix="tiny") == f"--imatrix={world.folder}/tiny.gguf 0"
    (world.folder / "found.dat").touch()
    assert await given(imatrix="found.dat") == f"--imatrix={world.folder}/found.dat 0"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"calibrate": True, "calibration_text": "x" * 262145}, "calibration_text"),
        ({"calibration_text": "without calibrate"}, "calibration_text"),
        ({"imatrix": "tiny", "calibrate": True}, "imatrix"),
        ({"imatrix": "../tiny"}, "imatrix"),
        ({"imatrix": "absent"}, "imatrix"),
        ({"recipe": "best-"}, "recipe"),
        ({"recipe": "best---pure"}, "recipe"),
    ],
)
async def test_bad_calibration_is_refused(world, child, changes, field):
    child("sys.exit(3)")
    assert (await refusal(world.quantize.Quantize(request(**changes)))).field == field


def test_no_path_of_the_host_is_told():
    names = {"/data/store/blobs/sha256-12ab": "llama:1b", "/data/models/out.gguf": "out"}
    told = quantize._refusal(
        "UNSUPPORTED_MODEL",
        "/data/store/blobs/sha256-12ab is bad: /data/store/blobs/sha256-77, '/srv/x/y.gguf' (/data/models/out.gguf); 3/4 of it",
        names,
    )
    assert told.message == "llama:1b is bad: sha256-77, 'y.gguf' (out); 3/4 of it"


@pytest.mark.parametrize("what", ["a link", "a pipe", "a link to a folder"])
async def test_folders_with_links_or_devices_are_refused(world, child, what):
    child("open(sys.argv[3], 'w').close()")
    folder = world.folder / "weights"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    if what == "a pipe":
        os.mkfifo(folder / "model.safetensors")
    else:
        (folder / "model.safetensors").symlink_to("/etc/passwd" if what == "a link" else "/etc")
    error = await refusal(world.quantize.Quantize(request(source="weights")))
    assert (error.reason, error.field) == ("INVALID_ARGUMENT", "source")
    assert "link or no plain file" in error.message
    (world.folder / "linked").symlink_to(folder)
    error = await refusal(world.quantize.Quantize(request(source="linked")))
    assert error.reason == "MODEL_NOT_FOUND"


def test_the_child_gives_way_and_ends_with_its_parent(tmp_path):
    """The real wrapper: priority, OOM score, and death with the parent even by SIGKILL."""
    report = tmp_path / "report"
    (tmp_path / "probe.py").write_text(
        "import os, time, daemon.__main__ as command_line\n"
        "def main():\n"
        "    import ctypes, resource\n"
        "    io = ctypes.CDLL(None).syscall(lowprio._IOPRIO_SET[os.uname().machine] + 1, 1, 0)\n"
        f"    open({str(report)!r} + '.new', 'w').write(f'{{os.getpid()}} {{os.nice(0)}} '\n"
        "        + open('/proc/self/oom_score_adj').read() + f' {io >> 13} {resource.getrlimit(resource.RLIMIT_DATA)[0]}')\n"
        f"    os.rename({str(report)!r} + '.new', {str(report)!r})\n"
        "    time.sleep(60)\n"
        "command_line.main = main\n"
        "from daemon import lowprio\n"
        "lowprio.main()\n"
    )
    parent_code = (
        "import os, subprocess, sys, time; "
        "environment = {**os.environ, 'QUANTD_PARENT_PID': str(os.getpid()), 'QUANTD_CHILD_MEMORY_BYTES': '1000000000', "
        "'PYTHONPATH': os.pathsep.join(sys.path)}; "
        f"subprocess.Popen([sys.executable, {str(tmp_path / 'probe.py')!r}], env=environment); time.sleep(60)"
    )
    root = Path(__file__).resolve().parents[2]
    parent = subprocess.Popen([sys.executable, "-c", parent_code], cwd=root)
    try:
        # The child runs at idle priority: on a busy machine everything it does can take long.
        end = time.monotonic() + 60
        while not report.exists() and time.monotonic() < end:
            time.sleep(0.02)
        pid, nice, oom, io_class, memory = map(int, report.read_text().split())
        assert nice == 19
        assert (io_class, memory) == (3, 1000000000)
        assert oom == 1000
        parent.send_signal(signal.SIGKILL)
        end = time.monotonic() + 60
        while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
            if "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
                break
            time.sleep(0.02)
        assert not Path(f"/proc/{pid}").exists() or "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    finally:
        parent.kill()
        parent.wait()
