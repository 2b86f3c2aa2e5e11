"""`quantd inspect` on sound, odd and hostile files."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from daemon.__main__ import run
from daemon.cli.inspect import command
from tests.gguf.build import (
    ARCHITECTURE,
    ARRAY,
    F32,
    F32_VALUE,
    Q8_0,
    STRING,
    U16,
    U32,
    array,
    gguf,
    kv,
    scalar_kv,
    small_file,
    string_kv,
    tensor,
    text,
)
from tests.gguf.cases import MALFORMED


def model() -> bytes:
    tokens = [text(f"t{i}") for i in range(1000)]
    values = [
        ARCHITECTURE,
        string_kv("general.name", "a tiny one"),
        scalar_kv("llama.context_length", U32, 2048),
        scalar_kv("llama.embedding_length", U32, 32),
        scalar_kv("llama.block_count", U32, 1),
        scalar_kv("llama.rope.freq_base", F32_VALUE, 1e-5),
        scalar_kv("llama.odd", F32_VALUE, float("nan")),
        string_kv("tokenizer.ggml.model", "gpt2"),
        kv("tokenizer.ggml.tokens", ARRAY, array(STRING, tokens)),
        string_kv(
            "tokenizer.chat_template", "{% for m in messages %}\n{{ m }}\x1b[2J{% endfor %}" + "x" * 1000
        ),
    ]
    infos = [tensor("token_embd.weight", [32, 1000], Q8_0, 0), tensor("norm.weight", [32], F32, 34016)]
    return gguf(values, infos, data=bytes(34016 + 128))


def invoke(path, *options: str) -> str:
    result = CliRunner().invoke(command, [str(path), *options], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_json(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(model())
    report = json.loads(invoke(path, "--json"))
    assert report["architecture"] == "llama"
    assert report["name"] == "a tiny one"
    assert report["parameters"] == 32_032
    assert report["size_bytes"] == path.stat().st_size
    assert (report["context_length"], report["embedding_length"], report["layers"]) == (2048, 32, 1)
    assert report["types"]["Q8_0"] == {"tensors": 1, "parameters": 32_000, "bytes": 34_000, "served": True}
    assert report["tokenizer"] == {"model": "gpt2", "pre": None, "vocabulary": 1000}
    assert report["chat_template"] is True
    tokens = report["metadata"]["tokenizer.ggml.tokens"]
    assert tokens == {"type": "array[string]", "length": 1000, "first": ["t0", "t1", "t2", "t3"]}
    assert report["metadata"]["llama.odd"] == {"type": "f32", "value": "nan"}
    assert "tensors" not in report
    listed = json.loads(invoke(path, "--json", "--tensors"))["tensors"]
    assert [entry["name"] for entry in listed] == ["token_embd.weight", "norm.weight"]
    assert listed[0]["shape"] == [32, 1000]


def test_tables(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(model())
    shown = invoke(path, "--tensors")
    for words in (
        "a tiny one",
        "32.03 K, 8.52 bits each",
        "1,000 tokens",
        "string x 1,000",
        "32 x 1000",
        "1e-05",
    ):
        assert words in shown
    assert '["t0", "t1", "t2", "t3", ...]' in shown
    assert "\x1b" not in shown
    assert r"\x1b[2J" in shown
    assert "characters)" in shown
    assert max(map(len, shown.splitlines())) <= 200


def test_every_kind_of_value(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(small_file())
    report = json.loads(invoke(path, "--json"))
    assert report["metadata"]["x.bytes"]["value"] == "\ufffd\ufffd a\x00b"
    assert report["metadata"]["x.u64"]["value"] == 2**64 - 1
    assert report["tokenizer"] is None
    assert "grüße" in invoke(path)


def test_no_model_at_all(tmp_path):
    """Files without an architecture (importance matrices, adapters) can be looked at."""
    path = tmp_path / "imatrix.gguf"
    path.write_bytes(gguf([string_kv("general.type", "imatrix")]))
    assert json.loads(invoke(path, "--json"))["architecture"] is None
    assert "this file is not a model" in invoke(path)


def test_split_model(tmp_path):
    for number in range(2):
        values = [ARCHITECTURE] if number == 0 else []
        values += [scalar_kv("split.no", U16, number), scalar_kv("split.count", U16, 2)]
        infos = [tensor(f"part.{number}", [8], F32, 0)]
        (tmp_path / f"m-{number + 1:05d}-of-00002.gguf").write_bytes(gguf(values, infos, data=bytes(32)))
    path = tmp_path / "m-00002-of-00002.gguf"
    assert "in 2 files" in invoke(path)
    report = json.loads(invoke(path, "--json", "--tensors"))
    assert report["shards"] == 2
    assert [entry["shard"] for entry in report["tensors"]] == [0, 1]


@pytest.mark.parametrize(
    ("content", "code"), [case[1:] for case in MALFORMED[::9]], ids=[case[0] for case in MALFORMED[::9]]
)
def test_malformed_files_end_with_65(tmp_path, capsys, content, code):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert run(["inspect", str(path)]) == 65
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"quantd: error: {path}: ")
    assert len(output.err.splitlines()) == 1


def test_absent_file(tmp_path, capsys):
    assert run(["inspect", str(tmp_path / "nothing.gguf")]) == 74
    assert "No such file" in capsys.readouterr().err
