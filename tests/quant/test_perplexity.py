"""Perplexity: the method on a model that can be calculated by hand, and llama-perplexity's own results."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from daemon.__main__ import run
from quant.perplexity import NonFiniteLogitsError, Score, measure
from quant.quantizer import Quantizer
from runtime.errors import RequestError
from runtime.memory import RuntimeSettings
from runtime.model import LoadedModel, load_model
from runtime.step_plan import Outcome, StepPlan, StepResult

DEMO = Path(__file__).resolve().parents[2] / "ops/demo/quantd-demo-f16.gguf"

BOS = 1


class Letters:
    """One token a letter, ids from 2; BOS in front."""

    bos_id = BOS

    def __init__(self, *, add_bos: bool = True) -> None:
        self.add_bos = add_bos

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        assert not parse_special
        return ([BOS] if add_special and self.add_bos else []) + [2 + ord(c) - ord("a") for c in text]


class Counting:
    """Gives token t after a context of n tokens the log-probability -(t + n / 100), and notes every step."""

    page_tokens = 4

    def __init__(self, *, add_bos: bool = True, finite: bool = True) -> None:
        self.tokenizer = Letters(add_bos=add_bos)
        self.finite = finite
        self.steps: list[StepPlan] = []

    def step(self, plan: StepPlan) -> StepResult:
        self.steps.append(plan)
        n_out = plan.n_out
        assert len(plan.samplers) == len(plan.targets) == n_out
        assert (
            plan.page_starts[-1] == len(plan.pages) == math.ceil((plan.positions[-1] + 1) / self.page_tokens)
        )
        positions = plan.positions[plan.out_rows]
        logprobs = -(plan.targets + (positions + 1) / 100)
        none = np.full((n_out, 20), -1)
        return StepResult(
            token_ids=[-1] * n_out,
            logprobs=np.zeros(n_out, np.float32),
            target_logprobs=logprobs.astype(np.float32),
            top_ids=none.astype(np.int32),
            top_logprobs=none.astype(np.float32),
            outcomes=np.full(n_out, Outcome.FINE if self.finite else Outcome.NON_FINITE, np.uint8),
        )


TEXT = "abcdefghijklmnopqrstuvwxyz"


def test_second_half_of_each_chunk_is_scored():
    model = Counting()
    result = measure(model, TEXT, ctx=8, step_rows=100)
    tokens = [BOS, *range(2, 28)]  # 27 tokens: three chunks of 8, three left over
    expected = [tokens[c * 8 + p + 1] + (p + 1) / 100 for c in range(3) for p in (4, 5, 6)]
    assert result.chunks == 3
    assert result.perplexity == pytest.approx(math.exp(np.mean(expected)), rel=1e-6)
    spread = math.sqrt((np.mean(np.square(expected)) - np.mean(expected) ** 2) / (len(expected) - 1))
    assert result.stderr == pytest.approx(spread * result.perplexity, rel=1e-5)


def test_first_token_of_each_chunk_becomes_bos():
    model = Counting()
    measure(model, TEXT, ctx=8)
    assert [plan.tokens[0] for plan in model.steps] == [BOS] * 3
    plain = Counting(add_bos=False)
    measure(plain, TEXT, ctx=8)
    assert [plan.tokens[0] for plan in plain.steps] == [2, 10, 18]
    assert all(plan.tokens[1] == model.steps[i].tokens[1] + 1 for i, plan in enumerate(plain.steps))


@pytest.mark.parametrize("step_rows", [1, 2, 3, 5, 7, 8])
def test_steps_do_not_change_the_result(step_rows):
    assert measure(Counting(), TEXT, ctx=8, step_rows=step_rows) == measure(Counting(), TEXT, ctx=8)


def test_chunks_limit_and_progress():
    seen = []
    result = measure(
        Counting(),
        TEXT,
        ctx=8,
        chunks=2,
        on_progress=lambda so_far, total: seen.append((so_far.chunks, total)),
    )
    assert result.chunks == 2
    assert seen == [(1, 2), (2, 2)]
    assert measure(Counting(), TEXT, ctx=8, chunks=50).chunks == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [({"ctx": 14}, "27 tokens; at least 28"), ({"ctx": 7}, "ctx"), ({"chunks": 0}, "chunks")],
)
def test_bad_requests(options, said):
    with pytest.raises(RequestError, match=said):
        measure(Counting(), TEXT, **{"ctx": 8, **options})


def test_non_finite_logits_end_the_measurement():
    with pytest.raises(NonFiniteLogitsError):
        measure(Counting(finite=False), TEXT, ctx=8)


def test_hopeless_model_is_infinite():
    score = Score()
    score.add_chunk(np.full(4, -1e6))
    assert score.result().perplexity == math.inf


def load(path: Path) -> LoadedModel:
    return load_model(path, RuntimeSettings(sessions=1, context_tokens=512, max_step_rows=512))


# Of every format that a recipe here writes or reads, with the tolerance of its kind.
REFERENCES = {
    "stories260K.gguf": 0.002,
    "stories260K-Q8_0.gguf": 0.002,
    "stories260K-Q5_1.gguf": 0.004,
    "tiny256-f16.gguf": 0.002,
    "tiny256-BF16.gguf": 0.002,
    "tiny256-Q4_K_M.gguf": 0.004,
    "tiny256-Q5_K_S.gguf": 0.004,
}


@pytest.mark.parametrize("name", REFERENCES)
def test_agrees_with_llama_perplexity(shared_dir, name):
    reference = json.loads((shared_dir / "reference" / "perplexity.json").read_text())["models"][name]
    # 24 chunks are far less than the whole file, and a cut at the end of a line leaves the tokens before it as they are.
    text = (shared_dir / "data" / "wikitext2-test.txt").read_text()[:80_000].rpartition("\n")[0]
    model = load(shared_dir / "models" / name)
    try:
        result = measure(model, text, chunks=24, step_rows=512)
    finally:
        model.close()
    assert result.chunks == 24
    assert result.perplexity == pytest.approx(reference["perplexity"], rel=REFERENCES[name])
    assert result.stderr == pytest.approx(reference["stderr"], rel=0.01)


# llama-perplexity -m FILE -f ops/demo/heldout.txt -c 512 --chunks 8; llama.cpp of llama-cpp-python 0.3.36, whose
# two ways to multiply differ by 0.3 % after four chunks and by 0.15 % after eight.
# The second is of the Q4_K_M file that `quantd quantize` makes of the first: when its bytes change, it is to be measured anew.
LLAMA_PERPLEXITY = {"F16": 128.1305, "Q4_K_M": 133.5212}
Q4_K_M_DATA = "bc0c9f172ab2c61ec0a545da9af0773bc326518d3fdbe39d77006f7e6fcfe5c3"


@pytest.mark.parametrize("recipe", LLAMA_PERPLEXITY)
def test_is_that_of_llama_perplexity(tmp_path, recipe):
    path = DEMO
    if recipe != "F16":
        path = tmp_path / "q4.gguf"
        assert Quantizer(DEMO, path, recipe).run().data_sha256 == Q4_K_M_DATA
    model = load(path)
    try:
        result = measure(
            model, (DEMO.parent / "heldout.txt").read_text(encoding="utf-8"), chunks=8, step_rows=512
        )
    finally:
        model.close()
    assert result.perplexity == pytest.approx(LLAMA_PERPLEXITY[recipe], rel=0.002)


@pytest.mark.parametrize(("recipe", "limit"), [("Q8_0", 0.003), ("Q5_K_S", 0.01), ("Q4_K_M", 0.02)])
def test_quantizing_the_demo_model_keeps_its_perplexity(demo_model, tmp_path, recipe, limit):
    """The logarithm of the ratio to the unquantized model, paired chunk by chunk on held-out text."""
    text = (demo_model.parent / "heldout.txt").read_text()
    output = tmp_path / "out.gguf"
    Quantizer(demo_model, output, recipe).run()
    results = []
    for path in (demo_model, output):
        model = load(path)
        results.append(measure(model, text, chunks=6, step_rows=512, parse_special=True).perplexity)
        model.close()
    assert abs(math.log(results[1] / results[0])) < limit


def test_command(demo_model, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(
        "Tell me a story about a fox. Once there was a little fox who lived in the forest.\n" * 20
    )
    arguments = ["perplexity", str(demo_model), "--file", str(text), "--ctx", "64", "--threads", "1"]
    assert run([*arguments, "--json", "--chunks", "3"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert set(facts) == {"perplexity", "stderr", "chunks"}
    assert facts["chunks"] == 3
    assert run([*arguments, "--chunks", "2"]) == 0
    assert "2 chunks of 64 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "options", "code", "said"),
    [
        (b"too short", [], 64, "tokens; at least 1024"),
        (b"bad \xff byte", [], 64, "not UTF-8: byte 4"),
        (b"x", ["--ctx", "4"], 64, "ctx"),
        (b"x", ["--chunks", "0"], 64, "chunks"),
        (None, [], 74, "text.txt"),
    ],
)
def test_command_failures(demo_model, tmp_path, capsys, content, options, code, said):  # noqa: PLR0917 - fixtures
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    assert run(["perplexity", str(demo_model), "--file", str(text), *options]) == code
    assert said in capsys.readouterr().err
