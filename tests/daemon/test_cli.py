"""The root of the command line: lazy commands, help that teaches, one line and an exit code for each failure."""

import json
import subprocess
import sys

import click
import pytest

from daemon import cli
from daemon.__main__ import run
from daemon.errors import ApiError
from runtime.errors import ModelFormatError


def failing(monkeypatch, failure):
    @click.command()
    def command():
        raise failure

    monkeypatch.setattr(cli.LazyGroup, "list_commands", lambda self, ctx: ["version"])
    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda self, ctx, name: command)


@pytest.mark.parametrize(
    ("failure", "code", "line"),
    [
        (ModelFormatError("BAD_MAGIC", "", 0, "not a GGUF file"), 65, "quantd: error: not a GGUF file"),
        (ApiError("ADDRESS_IN_USE", "port 1 is taken"), 69, "quantd: error: port 1 is taken"),
        (
            FileNotFoundError(2, "No such file or directory", "x.gguf"),
            74,
            "quantd: error: x.gguf: No such file",
        ),
        (MemoryError(), 75, "quantd: error: not enough memory"),
        (ZeroDivisionError("boom"), 70, "quantd: error: internal error"),
        (click.UsageError("no such thing"), 64, "Error: no such thing"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_each_failure_is_one_line_and_an_exit_code(monkeypatch, capsys, failure, code, line):
    failing(monkeypatch, failure)
    assert run(["version"]) == code
    assert line in capsys.readouterr().err


def test_unknown_command_and_unknown_option_are_usage_errors(capsys):
    assert run(["nonsense"]) == 64
    assert run(["version", "--nonsense"]) == 64
    capsys.readouterr()


def test_help_teaches_and_lists_what_is_there(capsys):
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert "quantd quantize model-f16.gguf" in text
    assert "version" in text


def test_version_as_json(capsys):
    assert run(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["grpcio"]


def test_help_imports_no_heavy_module():
    code = "import sys; from daemon.__main__ import run; run(['--help']); print([m for m in ('grpc', 'numpy', 'fastapi', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
