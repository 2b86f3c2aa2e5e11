"""`quantd quantize` as people and programs use it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from daemon.__main__ import run
from daemon.cli.quantize import command
from runtime.gguf import ModelFile
from tests.quant.helpers import write_model


@pytest.fixture
def source(tmp_path):
    return write_model(tmp_path / "in.gguf", n_layers=1)


def invoke(*arguments) -> click.testing.Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)


def test_summary(source, tmp_path):
    result = invoke(source, tmp_path / "out.gguf")
    assert result.exit_code == 0
    assert "Q4_K " in result.stdout
    assert "bits per weight, Q4_K_M" in result.stdout
    assert str(tmp_path / "out.gguf") in result.stdout


def test_json(source, tmp_path):
    output = tmp_path / "out.gguf"
    facts = json.loads(invoke(source, output, "--recipe", "q8_0", "--threads", 2, "--json").stdout)
    assert facts["output"] == str(output)
    assert facts["recipe"] == "Q8_0"
    assert facts["output_bytes"] == output.stat().st_size
    assert facts["source_bytes"] == source.stat().st_size
    assert facts["types"]["Q8_0"]["tensors"] == 9
    assert {info.type_name for info in ModelFile.open(output).tensors.values()} == {"Q8_0", "F32"}


def test_progress_lines(source, tmp_path):
    lines = [
        json.loads(line)
        for line in invoke(source, tmp_path / "out.gguf", "--progress-json").stdout.splitlines()
    ]
    assert [line["event"] for line in lines[:-1]] == ["progress"] * (len(lines) - 1)
    assert lines[-1]["event"] == "result"
    assert lines[-2]["bytes_done"] == lines[-2]["bytes_total"]


def test_bar_on_a_terminal(source, tmp_path):
    ours, theirs = os.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "daemon", "quantize", str(source), str(tmp_path / "out.gguf")],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "TERM": "xterm", "COLUMNS": "160"},
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal whose last writer left
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert child.wait() == 0
    assert b"12/12 tensors" in shown


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["in.gguf", "in.gguf", "--force"], 73, "source itself"),
        (["in.gguf", "there.gguf"], 73, "exists already"),
        (["in.gguf", "absent/out.gguf"], 73, "does not exist"),
        (["absent.gguf", "out.gguf"], 74, "absent.gguf"),
        (["text.gguf", "out.gguf"], 65, "text.gguf"),
        (["in.gguf", "out.gguf", "--recipe", "IQ2_XXS"], 64, "Q4_K_M, Q4_K_S"),
        (["in.gguf", "out.gguf", "--threads", "0"], 64, "threads"),
        (["in.gguf", "out.gguf", "--threads", "many"], 64, "threads"),
        (["in.gguf"], 64, "OUTPUT"),
        (["in.gguf", "out.gguf", "--max-increase", "3"], 64, "--verify"),
        (["in.gguf", "out.gguf", "--verify", "absent.txt"], 74, "absent.txt"),
        (["in.gguf", "out.gguf", "--verify", "short.txt"], 64, "tokens; at least"),
        (["in.gguf", "out.gguf", "--verify", "short.txt", "--max-increase", "nan"], 64, "max_increase"),
    ],
)
def test_exit_codes(source, tmp_path, monkeypatch, capsys, arguments, code, said):  # noqa: PLR0917 - fixtures
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.gguf").write_bytes(b"x")
    (tmp_path / "short.txt").write_text("a few words")
    (tmp_path / "text.gguf").write_text("not a model at all, but some text that is long enough for a header")
    assert run(["quantize", *arguments]) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out.gguf").exists()


def test_failures_are_events_for_programs(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out.gguf").write_bytes(b"x")
    assert run(["quantize", "in.gguf", "out.gguf", "--progress-json"]) == 73
    event = json.loads(capsys.readouterr().out)
    assert (event["event"], event["reason"]) == ("error", "OUTPUT_EXISTS")


def test_dry_run_shows_every_tensor_and_writes_nothing(source, tmp_path):
    output = tmp_path / "out.gguf"
    options = ("--tensor-type", "attn_v=Q8_0", "--dry-run")
    shown = invoke(source, output, *options).stdout
    assert "blk.0.attn_v.weight" in shown
    assert "nothing was written" in shown
    facts = json.loads(invoke(source, output, *options, "--json").stdout)
    types = {tensor["name"]: tensor["to"] for tensor in facts["tensors"]}
    assert types["blk.0.attn_v.weight"] == "Q8_0"
    assert types["blk.0.attn_norm.weight"] == "F32"
    lines = [
        json.loads(line) for line in invoke(source, output, *options, "--progress-json").stdout.splitlines()
    ]
    assert {one["name"]: one["to_type"] for one in lines[:-1]} == types
    assert {one["event"] for one in lines[:-1]} == {"planned_tensor"}
    assert (lines[-1]["event"], lines[-1]["output_bytes"]) == ("plan", facts["output_bytes"])
    assert sum(one["source_bytes"] for one in lines[:-1]) == lines[-1]["source_bytes"]
    assert not output.exists()
    invoke(source, output, *options[:2])
    assert facts["output_bytes"] == output.stat().st_size
    assert {n: info.type_name for n, info in ModelFile.open(output).tensors.items()} == types
