"""load_model: from a file to steps, and what it refuses before it takes memory."""

from __future__ import annotations

import psutil
import pytest

from runtime.errors import (
    EngineStoppedError,
    MemoryPlanError,
    ModelChangedError,
    ModelFormatError,
    RequestError,
)
from runtime.memory import RuntimeSettings
from runtime.model import load_model, model_name
from runtime.step_plan import Outcome, StepPlan
from tests.models.support import Tiny, greedy, ints, write_tiny


def one_row(token: int = 1) -> StepPlan:
    return StepPlan(
        tokens=ints([token]),
        positions=ints([0]),
        seq_starts=ints([0, 1]),
        page_starts=ints([0, 1]),
        pages=ints([0]),
        out_rows=ints([0]),
        samplers=[greedy(5)],
        targets=ints([3]),
    )


def test_the_demo_model(demo_model):
    model = load_model(demo_model, RuntimeSettings(sessions=2, threads=2))
    assert not model.is_warm
    model.warm_up(n_threads=1)
    assert model.is_warm
    prompt = model.tokenizer.encode("Once upon a time, there was a")
    tokens = list(prompt)
    n_pages = model.context_tokens // model.page_tokens
    while len(tokens) < len(prompt) + 24:
        rows = tokens if len(tokens) == len(prompt) else tokens[-1:]
        result = model.step(
            StepPlan(
                tokens=ints(rows),
                positions=ints(range(len(tokens) - len(rows), len(tokens))),
                seq_starts=ints([0, len(rows)]),
                page_starts=ints([0, n_pages]),
                pages=ints(range(n_pages)),
                out_rows=ints([len(rows) - 1]),
                samplers=[greedy()],
                targets=ints([-1]),
            )
        )
        tokens.append(int(result.token_ids[0]))
    text = model.tokenizer.decode(tokens[len(prompt) :])
    words = text.split()
    assert len(words) > 8
    assert all(word.strip(".,!?\"'").isascii() for word in words)
    assert model.chat_template
    assert model.eog_token_ids
    assert model.name == "quantd-demo-f16"


def test_the_plan_covers_what_the_core_takes(demo_model):
    for settings in (
        RuntimeSettings(),
        RuntimeSettings(threads=4, max_step_rows=64, sessions=1, kv_type="q8_0"),
    ):
        model = load_model(demo_model, settings)
        assert model.scratch_bytes <= model.plan.scratch_bytes
        assert model.n_pages * model.page_tokens >= model.context_tokens
        model.close()


def test_steps_take_no_more_memory(demo_model):
    """Everything is taken at load: a thousand steps leave the process as it was."""
    model = load_model(demo_model)
    model.warm_up()
    plan = one_row()
    for _ in range(50):
        model.step(plan)
    before = psutil.Process().memory_info()
    for _ in range(1000):
        model.step(plan)
    after = psutil.Process().memory_info()
    assert (after.rss - after.shared) - (before.rss - before.shared) < 1 << 20


def test_a_closed_model_says_so(demo_model):
    model = load_model(demo_model)
    model.close()
    with pytest.raises(EngineStoppedError, match="closed"):
        model.step(one_row())


def test_a_file_that_shrinks_under_the_model(demo_model, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(demo_model.read_bytes())
    model = load_model(path)
    result = model.step(one_row())
    assert result.outcomes[0] == Outcome.FINE
    with path.open("r+b") as file:
        file.truncate(8192)
    with pytest.raises(ModelChangedError):
        model.step(one_row())


def test_too_little_memory_is_a_plan_error(demo_model):
    with pytest.raises(MemoryPlanError) as caught:
        load_model(demo_model, RuntimeSettings(threads=256, max_step_rows=1 << 22))
    assert caught.value.plan.total_bytes > caught.value.plan.available_bytes


def test_settings_that_the_model_cannot_have(tmp_path, demo_model):
    with pytest.raises(RequestError, match="1024"):
        load_model(demo_model, RuntimeSettings(context_tokens=100_000))


def test_a_model_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ModelFormatError, match="tokenizer"):
        load_model(write_tiny(tmp_path / "m.gguf", Tiny()))


def test_unknown_level(demo_model, monkeypatch):
    with pytest.raises(RequestError, match="mmx"):
        load_model(demo_model, RuntimeSettings(level="mmx"))
    monkeypatch.setenv("QUANTD_CPU_LEVEL", "3dnow")
    with pytest.raises(RequestError, match="3dnow"):
        load_model(demo_model)
    monkeypatch.setenv("QUANTD_CPU_LEVEL", "scalar")
    assert load_model(demo_model).level == "scalar"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a-Q4_K_M.gguf", "a-Q4_K_M"), ("a-00001-of-00003.gguf", "a"), ("plain", "plain")],
)
def test_model_names(tmp_path, name, expected):
    class File:
        path = tmp_path / name

    assert model_name(File()) == expected


def test_bench(demo_model):
    import json

    from click.testing import CliRunner

    from daemon.cli.bench import command

    arguments = [str(demo_model), "--prompt", "40", "--generate", "4", "--sessions", "1,3", "--json"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    lines = [json.loads(line) for line in result.output.splitlines()]
    assert [(line["test"], line["sessions"], line["generated_tokens"]) for line in lines] == [
        ("prefill", 1, 0),
        ("decode", 1, 4),
        ("decode", 3, 4),
    ]
    assert all(line["tokens_per_s"] > 0 for line in lines)
    table = CliRunner().invoke(command, arguments[:-1], catch_exceptions=False).output.splitlines()
    assert len(table) == 2 + len(lines)
    assert CliRunner().invoke(command, [str(demo_model), "--sessions", "1,x"]).exit_code == 2
