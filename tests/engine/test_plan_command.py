import json

import pytest

from daemon.__main__ import run
from runtime.machine_memory import Available


def test_a_table_for_people(demo_model, capsys):
    assert run(["plan", str(demo_model)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("The plan fits.\n")
    for part in ("weights", "KV arena", "scratch", "process", "total", "available"):
        assert f"\n{part}" in out


def test_one_json_object_for_machines(demo_model, capsys):
    arguments = ["--sessions", "2", "--context", "96", "--kv-type", "q8_0", "--threads", "2", "--json"]
    assert run(["plan", str(demo_model), *arguments]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["model"] == str(demo_model)
    assert (plan["sessions"], plan["session_context_tokens"], plan["n_pages"]) == (2, 96, 6)
    assert plan["weights_bytes"] == demo_model.stat().st_size
    parts = ("weights_bytes", "kv_arena_bytes", "scratch_bytes", "process_bytes")
    assert plan["total_bytes"] == sum(plan[part] for part in parts)


def test_a_budget_is_a_size_with_a_unit(demo_model, capsys):
    assert run(["plan", str(demo_model), "--kv-budget", "1MiB", "--json"]) == 0
    assert 0 < json.loads(capsys.readouterr().out)["kv_arena_bytes"] <= 1 << 20


def test_what_does_not_fit_is_still_shown_and_ends_with_75(demo_model, capsys, monkeypatch):
    monkeypatch.setattr("runtime.memory.available_memory", lambda: Available(2 << 20, "a small machine"))
    assert run(["plan", str(demo_model)]) == 75
    out = capsys.readouterr().out
    assert "The plan does not fit" in out
    assert "a small machine" in out
    assert run(["plan", str(demo_model), "--json"]) == 75
    assert json.loads(capsys.readouterr().out)["fits"] is False


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--kv-budget", "1x"], "is no size"),
        (["--kv-budget", "100"], "too small for one page of 32 tokens for each of 4 sessions"),
        (["--context", "5000"], "more than the model was made for"),
        (["--context", "8"], "less than one KV page"),
        (["--sessions", "0"], "--sessions"),
        (["--kv-type", "q4_0"], "--kv-type"),
    ],
)
def test_bad_values_are_usage_errors(demo_model, capsys, arguments, text):
    assert run(["plan", str(demo_model), *arguments]) == 64
    assert text in capsys.readouterr().err


def test_a_file_that_is_no_model(tmp_path, capsys):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"not a model")
    assert run(["plan", str(path)]) == 65
    assert run(["plan", str(tmp_path / "absent.gguf")]) == 74
    assert capsys.readouterr().out == ""
