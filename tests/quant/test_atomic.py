"""The output appears whole or not at all: kills, signals, full disks, leftovers."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quant.errors import CannotCreateError, DiskFullError, OutputError
from quant.quantizer import Quantizer
from quant.writer import PartialFile, journal_path, partial_path
from runtime.gguf import ModelFile
from tests.quant.helpers import write_model

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Big enough to be interrupted: some 11 M weights, quantized by one thread."""
    return write_model(
        tmp_path_factory.mktemp("source") / "in.gguf", n_layers=8, n_embd=256, n_ff=1536, n_vocab=2048
    )


def start(source: Path, output: Path, *options: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "daemon",
        "quantize",
        str(source),
        str(output),
        "--threads",
        "1",
        *options,
    ]
    paths = f"{REPOSITORY}:{REPOSITORY / 'proto' / 'gen'}"
    environment = {**os.environ, "PYTHONPATH": paths, "QUANTD_CPU_LEVEL": "scalar"}
    return subprocess.Popen(
        command, env=environment, cwd=output.parent, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_for_partial(folder: Path, process: subprocess.Popen[str]) -> None:
    while process.poll() is None and not list(folder.glob(".*.partial")):
        time.sleep(0.002)


def test_kill_never_leaves_a_file_under_the_name(source, tmp_path):
    target = tmp_path / "out.gguf"
    rng = random.Random(7)
    for _ in range(4):
        process = start(source, target)
        wait_for_partial(tmp_path, process)
        time.sleep(rng.uniform(0, 0.25))
        process.kill()
        process.communicate()
        if target.exists():  # the kill came too late: then the file is whole
            assert ModelFile.open(target).size_bytes == target.stat().st_size
            target.unlink()
    Quantizer(source, target).run()
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["out.gguf", "out.gguf.manifest.json"], "the next run takes over what a killed one left"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signals_cancel_cleanly(source, tmp_path, number, code):
    process = start(source, tmp_path / "out.gguf", "--progress-json")
    assert process.stdout is not None
    process.stdout.readline()  # the first progress: the work has begun
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    last = json.loads(out.splitlines()[-1]) if out else {}
    if process.returncode == 0:
        assert last["event"] == "result", "the signal came too late"
    else:
        assert process.returncode == code
        if number == signal.SIGTERM:
            assert (last["event"], last["reason"]) == ("error", "CANCELLED")
        assert list(tmp_path.iterdir()) == []


def test_space_is_checked_with_numbers(source, tmp_path, monkeypatch):
    real = os.statvfs(tmp_path)

    class Full:
        f_bavail = 10
        f_frsize = real.f_frsize

    monkeypatch.setattr(os, "statvfs", lambda _: Full)
    with pytest.raises(DiskFullError, match=f"takes [0-9,]+ bytes, {10 * real.f_frsize:,} are free"):
        Quantizer(source, tmp_path / "out.gguf").run()
    assert list(tmp_path.iterdir()) == []


def test_limit_on_file_sizes_is_met_before_the_work(source, tmp_path):
    # The limit is set by the child itself: code between fork and exec also runs what libraries of this process (gRPC) do
    # after a fork.
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "from quant.quantizer import Quantizer; from quant.errors import DiskFullError\n"
        f"try: Quantizer({str(source)!r}, {str(tmp_path / 'out.gguf')!r}).run()\n"
        "except DiskFullError as error: print(error.message)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "taking space for" in done.stdout
    assert "bytes): File too large" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_nothing(source, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        with pytest.raises(DiskFullError):
            Quantizer(source, disk / "out.gguf").run()
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_failing_write_leaves_nothing(source, tmp_path, monkeypatch):
    written = 0

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        nonlocal written
        written += 1
        if written > 3:
            raise OSError(5, "Input/output error")
        return real(fd, data, offset)

    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OutputError, match="writing"):
        Quantizer(source, tmp_path / "out.gguf").run()
    assert list(tmp_path.iterdir()) == []


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:7], offset))
    target = tmp_path / "out"
    with PartialFile(target, 100, force=False) as partial:
        partial.write(bytes(range(100)), 0)
        partial.commit(lambda _: None)
    assert target.read_bytes() == bytes(range(100))


def test_a_file_that_does_not_read_back_is_not_renamed(source, tmp_path, monkeypatch):
    job = Quantizer(source, tmp_path / "out.gguf")
    real = os.fsync

    def spoil(fd: int) -> None:
        os.pwrite(fd, b"oops", 0)
        real(fd)

    monkeypatch.setattr(os, "fsync", spoil)
    with pytest.raises(OutputError, match="does not read back"):
        job.run()
    assert list(tmp_path.iterdir()) == []


def test_link_less_file_systems_still_do_not_replace(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    target = tmp_path / "out"
    with PartialFile(target, 4, force=False) as partial:
        partial.write(b"done", 0)
        partial.commit(lambda _: None)
    assert target.read_bytes() == b"done"
    assert list(tmp_path.iterdir()) == [target]


def test_one_writer_at_a_time(tmp_path):
    target = tmp_path / "out"
    with PartialFile(target, 4, force=False) as first:
        with pytest.raises(CannotCreateError, match="being written by another process"):
            PartialFile(target, 4, force=False).__enter__()
        first.write(b"done", 0)
        first.commit(lambda _: None)
    assert target.read_bytes() == b"done"
    assert list(tmp_path.iterdir()) == [target]


def test_a_partial_file_that_is_the_output_too_is_not_written_to(tmp_path):
    """A kill between the two halves of the renaming leaves one file under both names."""
    target = tmp_path / "out"
    target.write_bytes(b"whole")
    os.link(target, partial_path(target))
    journal_path(target).write_text("{}")
    with PartialFile(target, 3, force=True) as partial:
        partial.write(b"new", 0)
        assert target.read_bytes() == b"whole"
        partial.commit(lambda _: None)
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_in_the_place_of_the_partial_file_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    partial_path(tmp_path / "out").symlink_to(victim)
    with pytest.raises(CannotCreateError):
        PartialFile(tmp_path / "out", 3, force=False).__enter__()
    assert victim.read_bytes() == b"precious"
