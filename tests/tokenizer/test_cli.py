"""quantd tokenize, on vocabulary-only files and with bad arguments."""

from __future__ import annotations

import json

from click.testing import CliRunner

from daemon.cli.tokenize import command


def run(*arguments, text=None):
    return CliRunner().invoke(command, [str(a) for a in arguments], input=text)


def test_json_and_people(bpe_file, tmp_path):
    model = bpe_file().path
    result = run(model, "hello world", "--json")
    ids = json.loads(result.stdout)["ids"]
    assert len(ids) == 2
    listing = run(model, "hello world").stdout.splitlines()
    assert [int(line.split()[0]) for line in listing] == ids
    assert '"hello"' in listing[0]
    file = tmp_path / "text.txt"
    file.write_text("hello world")
    assert run(model, "--file", file, "--json").stdout == result.stdout
    assert run(model, "--file", "-", "--json", text="hello world").stdout == result.stdout


def test_special(bpe_file):
    model = bpe_file(add_add_bos_token=True).path
    assert len(json.loads(run(model, "hello", "--json").stdout)["ids"]) == 2
    assert len(json.loads(run(model, "hello", "--no-special", "--json").stdout)["ids"]) == 1
    assert len(json.loads(run(model, "<|end|>", "--parse-special", "--json").stdout)["ids"]) == 2


def test_bad_arguments(bpe_file, tmp_path):
    model = bpe_file().path
    binary = tmp_path / "binary"
    binary.write_bytes(b"ab\xff")
    for arguments in ([model], [model, "x", "--file", binary], [model, "--file", binary], ["absent", "x"]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "Error" in result.output
