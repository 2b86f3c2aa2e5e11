"""After a kill: the next run goes on where the work was, and only with bytes that it has looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from quant.progress import Progress
from quant.quantizer import Quantizer
from quant.writer import PartialFile, journal_path, partial_path
from tests.quant.helpers import write_model

REPOSITORY = Path(__file__).resolve().parents[2]


class Killed(BaseException):
    pass


@pytest.fixture
def source(tmp_path):
    return write_model(tmp_path / "in.gguf", n_layers=2)


@pytest.fixture
def killed(monkeypatch):
    """Runs a job that ends after some progress as a kill would end it: with everything left lying."""

    def kill(job: Quantizer, tensors: int) -> None:
        def stop(progress: Progress) -> None:
            if progress.tensors_done >= tensors:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr("quant.progress.PROGRESS_INTERVAL_S", 0.0)
            patch.setattr(PartialFile, "_remove", lambda partial: os.close(partial._fd))
            with pytest.raises(Killed):
                job.run(stop)

    return kill


def test_goes_on_at_the_tensor(source, tmp_path, killed):
    wanted = tmp_path / "wanted.gguf"
    Quantizer(source, wanted).run()
    target = tmp_path / "out.gguf"
    killed(Quantizer(source, target), 9)
    assert not target.exists()
    seen: list[Progress] = []
    result = Quantizer(source, target).run(seen.append)
    assert 7 <= result.resumed_tensors <= 9
    assert seen[-1].tensors_done == seen[-1].tensors_total
    assert seen[-1].bytes_done == seen[-1].bytes_total
    assert target.read_bytes() == wanted.read_bytes()
    assert not partial_path(target).exists()
    assert not journal_path(target).exists()


def test_bytes_that_were_lost_are_made_again(source, tmp_path, killed):
    wanted = tmp_path / "wanted.gguf"
    Quantizer(source, wanted).run()
    target = tmp_path / "out.gguf"
    job = Quantizer(source, target)
    killed(job, 9)
    spoiled = job.plan.tensors[4]
    with partial_path(target).open("r+b") as file:
        file.seek(len(job.plan.header) + spoiled.offset)
        file.write(bytes(10))
    assert Quantizer(source, target).run().resumed_tensors == 4
    assert target.read_bytes() == wanted.read_bytes()


@pytest.mark.parametrize("change", ["recipe", "source", "journal", "half a line"])
def test_another_job_begins_anew(source, tmp_path, killed, change):
    target = tmp_path / "out.gguf"
    killed(Quantizer(source, target), 9)
    recipe, least = "Q4_K_M", 0
    if change == "recipe":
        recipe = "Q5_K_M"
    elif change == "source":
        os.utime(source, ns=(1, 1))
    elif change == "journal":
        journal_path(target).write_text("nonsense\n")
    else:
        lines = journal_path(target).read_text().split("\n")
        journal_path(target).write_text("\n".join([*lines[:4], lines[4][:20]]))
        least = 3
    wanted = tmp_path / "wanted.gguf"
    Quantizer(source, wanted, recipe).run()
    assert Quantizer(source, target, recipe).run().resumed_tensors == least
    assert target.read_bytes() == wanted.read_bytes()


def test_cancelling_leaves_nothing_to_resume(source, tmp_path):
    cancel = threading.Event()
    job = Quantizer(source, tmp_path / "out.gguf")
    with pytest.raises(Exception, match="cancelled"):
        job.run(lambda _: cancel.set(), cancel)
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]


def test_killed_at_every_call(tmp_path):
    """No file or the whole file under the final name, and the next run ends the work, wherever the kill hits."""
    source = write_model(tmp_path / "in.gguf", n_layers=1, n_embd=256, n_ff=256, n_vocab=32)
    folder = tmp_path / "folder"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.quant.kill_everywhere", str(source), str(folder)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    calls, resumed = map(int, done.stdout.split())
    assert calls > 40
    assert resumed > 10
    manifest = json.loads((folder / "out.gguf.manifest.json").read_text())
    assert len(manifest["tensors"]) == 12
