"""Recipes best-NAME: the bytes of a recipe where they buy the most, from what was measured."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from daemon.__main__ import run
from quant.allocation import Allocation, TensorCosts, allocate, choose
from quant.errors import CannotCreateError
from quant.logits import TopLogits
from quant.plan import plan_quantization
from quant.policy import Overrides
from quant.quantizer import Quantizer
from quant.recipes import Q4_K, Q6_K, find_recipe
from quant.source import open_gguf
from runtime.errors import RequestError
from runtime.gguf import ModelFile

DEMO = Path(__file__).resolve().parents[2] / "ops/demo/quantd-demo-f16.gguf"
# Seven tensors are left to be measured: the last two layers' feed-forward matrices, and the embedding.
FIXED = Overrides.parse(attention_type="Q6_K", tensor_types=[r"blk\.[012]\.=Q5_K"])
HELDOUT = DEMO.parent / "heldout.txt"


def random_costs(rng: np.random.Generator, n_tensors: int) -> list[TensorCosts]:
    """Tensors of which each type costs more bytes and less divergence than the one before."""
    return [
        TensorCosts(
            f"t{i}",
            12,
            dict(zip((11, 12, 13), np.cumsum(rng.integers(1, 9, 3)).tolist(), strict=True)),
            dict(zip((11, 12, 13), sorted(rng.random(3).tolist(), reverse=True), strict=True)),
        )
        for i in range(n_tensors)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_choice_fits_and_is_near_the_best(seed):
    costs = random_costs(np.random.default_rng(seed), 6)
    budget = sum(one.n_bytes[one.base] for one in costs)

    def divergence(types) -> float:
        return sum(one.divergence[type_id] for one, type_id in zip(costs, types, strict=True))

    best = min(
        divergence(types)
        for types in itertools.product((11, 12, 13), repeat=len(costs))
        if sum(one.n_bytes[t] for one, t in zip(costs, types, strict=True)) <= budget
    )
    chosen = choose(costs)
    assert sum(one.n_bytes[chosen[one.name]] for one in costs) <= budget
    reached = divergence([chosen[one.name] for one in costs])
    assert reached <= divergence([one.base for one in costs])
    assert reached <= best + max(max(one.divergence.values()) for one in costs) / 2


def test_divergence_of_kept_tokens():
    rng = np.random.default_rng(3)
    p, q = (rng.standard_normal((4, 300)).astype(np.float32) * 3 for _ in range(2))

    def log_softmax(x):
        x = x.astype(np.float64)
        return x - np.log(np.exp(x).sum(1, keepdims=True))

    exact = (np.exp(log_softmax(p)) * (log_softmax(p) - log_softmax(q))).sum(1).mean()
    kept = TopLogits.of(iter([p.copy()]))
    assert kept.divergence_of(iter([q.copy()])) == pytest.approx(exact, rel=1e-4)
    assert kept.divergence_of(iter([p.copy()])) == pytest.approx(0, abs=1e-6)


@pytest.fixture(scope="module")
def allocation() -> Allocation:
    text = HELDOUT.read_text(encoding="utf-8")[:700]
    return allocate(DEMO, find_recipe("Q4_K_M"), text, overrides=FIXED)


def test_types_take_the_bytes_of_the_recipe(allocation):
    plan = plan_quantization(open_gguf(DEMO), find_recipe("Q4_K_M"), FIXED)
    fixed = {t.name for t in plan.tensors if "attn_" in t.name or t.name[:5] in {"blk.0", "blk.1", "blk.2"}}
    assert fixed.isdisjoint(allocation.types)  # what the user fixed stays
    assert set(allocation.types) == {t.name for t in plan.tensors if not t.is_copied} - fixed
    moved = plan_quantization(open_gguf(DEMO), find_recipe("Q4_K_M"), Overrides(exact=allocation.types))
    size = {t.name: t.target_bytes for t in plan.tensors}
    assert sum(t.target_bytes for t in moved.tensors if t.name in allocation.types) <= sum(
        size[name] for name in allocation.types
    )
    assert any(t.target_type not in {Q4_K, Q6_K} for t in moved.tensors if t.name in allocation.types)
    assert allocation.divergence < allocation.divergence_of_recipe


def test_output_has_these_types_and_says_so(allocation, tmp_path):
    output = tmp_path / "best.gguf"
    Quantizer(DEMO, output, "best-q4_k_m", allocation=allocation).run()
    found = ModelFile.open(output)
    assert {name: found.tensors[name].type_id for name in allocation.types} == dict(allocation.types)
    manifest = json.loads((tmp_path / "best.gguf.manifest.json").read_text(encoding="utf-8"))
    assert manifest["recipe"] == "best-Q4_K_M"
    assert manifest["options"] == allocation.describe()
    again = Quantizer(DEMO, output, "best-Q4_K_M", allocation=allocation).run()
    assert again.was_done


def test_refusals(allocation, tmp_path, capsys):
    with pytest.raises(RequestError, match="measured"):
        Quantizer(DEMO, tmp_path / "o.gguf", "best-Q4_K_M")
    with pytest.raises(RequestError, match="measured"):
        Quantizer(DEMO, tmp_path / "o.gguf", "best-Q5_K_M", allocation=allocation)
    with pytest.raises(RequestError, match="not supported"):
        Quantizer(DEMO, tmp_path / "o.gguf", "best-Q9", allocation=allocation)
    with pytest.raises(CannotCreateError):
        Quantizer(DEMO, DEMO, "best-Q4_K_M", allocation=allocation)
    assert run(["quantize", str(tmp_path), str(tmp_path / "o.gguf"), "--recipe", "best-Q4_K_M"]) == 64
    assert "GGUF file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_command(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(HELDOUT.read_text(encoding="utf-8")[:600], encoding="utf-8")
    output = tmp_path / "best.gguf"
    arguments = [
        "quantize",
        str(DEMO),
        str(output),
        "--recipe",
        "best-Q5_K_S",
        f"--calibrate={text}",
        "--json",
    ]
    assert run(arguments) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["recipe"] == "best-Q5_K_S"
    assert "expected KL divergence" in shown.err
