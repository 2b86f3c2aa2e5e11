"""Comparing two models: the numbers against a calculation by hand, and the command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from daemon.__main__ import run
from quant.compare import compare
from quant.perplexity import NonFiniteLogitsError, measure
from quant.quantizer import Quantizer
from runtime.errors import RequestError
from runtime.memory import RuntimeSettings
from runtime.model import load_model
from runtime.step_plan import Outcome, StepPlan, StepResult

DEMO = Path(__file__).resolve().parents[2] / "ops/demo/quantd-demo-f16.gguf"
N_VOCAB = 32


class Letters:
    """One token a letter; BOS in front."""

    bos_id = 1
    add_bos = True

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        del parse_special
        return ([1] if add_special else []) + [2 + ord(c) - ord("a") for c in text]


class Table:
    """Logits by position and token: a fixed random table, times a factor."""

    page_tokens = 4
    n_vocab = N_VOCAB

    def __init__(self, factor: float = 1.0, *, finite: bool = True) -> None:
        self.tokenizer = Letters()
        self.finite = finite
        self.table = np.random.default_rng(5).standard_normal((64, N_VOCAB)).astype(np.float32) * np.float32(
            factor
        )

    def step(self, plan: StepPlan, logits: np.ndarray | None = None) -> StepResult:
        positions = plan.positions[plan.out_rows]
        if logits is not None:
            logits[:] = self.table[positions]
        none = np.full((plan.n_out, 20), -1)
        zeros = np.zeros(plan.n_out, np.float32)
        return StepResult(
            token_ids=[-1] * plan.n_out,
            logprobs=zeros,
            target_logprobs=zeros,
            top_ids=none.astype(np.int32),
            top_logprobs=none.astype(np.float32),
            outcomes=np.full(plan.n_out, Outcome.FINE if self.finite else Outcome.NON_FINITE, np.uint8),
        )


TEXT = "thequickbrownfoxjumpsoverthelazydog"


@pytest.mark.parametrize("step_rows", [100, 3, 1])
def test_every_number_by_hand(step_rows):
    original, quantized = Table(), Table(0.5)
    found = compare(original, quantized, TEXT, ctx=16, step_rows=step_rows)
    tokens = Letters().encode(TEXT)
    first, second, divergence, same, delta = [], [], [], [], []
    for chunk in range(2):
        for position in range(8, 15):
            p = np.exp(original.table[position].astype(float))
            q = np.exp(quantized.table[position].astype(float))
            p, q = p / p.sum(), q / q.sum()
            target = tokens[chunk * 16 + position + 1]
            first.append(-math.log(p[target]))
            second.append(-math.log(q[target]))
            divergence.append((p * np.log(p / q)).sum())
            same.append(p.argmax() == q.argmax())
            delta.append(q[target] - p[target])
    difference = np.array(second) - first
    assert (found.chunks, found.positions) == (2, 14)
    assert found.original_perplexity == pytest.approx(math.exp(np.mean(first)))
    assert found.quantized_perplexity == pytest.approx(math.exp(np.mean(second)))
    assert found.ratio == pytest.approx(math.exp(difference.mean()))
    assert found.ratio_stderr == pytest.approx(found.ratio * difference.std(ddof=1) / math.sqrt(14))
    assert found.kl_mean == pytest.approx(np.mean(divergence))
    assert found.kl_max == pytest.approx(max(divergence))
    assert found.kl_percentiles["50"] == pytest.approx(np.median(divergence))
    assert found.same_top == np.mean(same) == 1.0
    assert found.delta_p_rms == pytest.approx(np.sqrt(np.mean(np.square(delta))))


def test_a_model_is_not_away_from_itself():
    found = compare(Table(), Table(), TEXT, ctx=16)
    assert (found.ratio, found.ratio_stderr, found.kl_mean, found.kl_max, found.same_top) == (1, 0, 0, 0, 1)


def test_refusals():
    other = Table()
    other.n_vocab = N_VOCAB + 1
    with pytest.raises(RequestError, match="different tokens"):
        compare(Table(), other, TEXT, ctx=16)
    with pytest.raises(RequestError, match="at least 64 are needed"):
        compare(Table(), Table(), TEXT, ctx=32)
    with pytest.raises(RequestError, match="ctx"):
        compare(Table(), Table(), TEXT, ctx=4)
    with pytest.raises(RequestError, match="chunks"):
        compare(Table(), Table(), TEXT, ctx=16, chunks=0)
    with pytest.raises(NonFiniteLogitsError):
        compare(Table(), Table(finite=False), TEXT, ctx=16)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    target = tmp_path_factory.mktemp("compare") / "q4.gguf"
    Quantizer(DEMO, target, "Q4_K_M").run()
    return target


@pytest.fixture(scope="module")
def text_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text((DEMO.parent / "heldout.txt").read_text(encoding="utf-8")[:1500], encoding="utf-8")
    return path


def test_perplexity_agrees_with_the_other_command(quantized, text_path):
    settings = RuntimeSettings(sessions=1, context_tokens=64, threads=1, max_step_rows=64)
    first, second = load_model(DEMO, settings), load_model(quantized, settings)
    text = text_path.read_text(encoding="utf-8")
    found = compare(first, second, text, ctx=64, chunks=2, step_rows=24)
    for model, value in ((first, found.original_perplexity), (second, found.quantized_perplexity)):
        assert measure(model, text, ctx=64, chunks=2, step_rows=64).perplexity == pytest.approx(
            value, rel=1e-4
        )
    assert 0 < found.kl_mean < 0.5
    assert found.kl_percentiles["50"] <= found.kl_percentiles["99.9"] <= found.kl_max
    first.close()
    second.close()


def test_command(quantized, text_path, tmp_path, capsys):
    arguments = [
        "compare",
        str(DEMO),
        str(quantized),
        "--file",
        str(text_path),
        "--ctx",
        "64",
        "--chunks",
        "2",
    ]
    picture = tmp_path / "loss.svg"
    assert run([*arguments, "--max-increase", "1000", "--picture", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "KL divergence, mean" in out
    assert "within the allowed increase of 1000 %" in out
    svg = picture.read_text(encoding="utf-8")
    assert svg.startswith("<svg ")
    assert "blk.0.attn_q.weight: Q4_K, relative error 0.0" in svg
    assert run([*arguments, "--max-increase", "-99", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["passed"] is False
    assert facts["chunks"] == 2
    assert facts["increase_percent"] == pytest.approx(100 * (facts["ratio"] - 1))
