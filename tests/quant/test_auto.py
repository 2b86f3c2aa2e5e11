"""--recipe auto: the best recipe that the memory plan takes."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from daemon.cli.quantize import command
from quant.auto import BEST_FIRST, choose_recipe
from quant.policy import NO_OVERRIDES
from quant.quantizer import Quantizer
from quant.recipes import RECIPES
from quant.source import open_gguf
from runtime.errors import MemoryPlanError
from runtime.gguf import ModelFile
from tests.quant.helpers import write_model


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    return write_model(folder / "in.gguf", n_layers=2, n_embd=1024, n_ff=4096, n_vocab=2048)


def test_best_that_fits(source):
    model = open_gguf(source)
    plenty = choose_recipe(model, NO_OVERRIDES, 1 << 40)
    assert plenty.recipe == "Q8_0"
    needed = plenty.plan.total_bytes
    chosen = [choose_recipe(model, NO_OVERRIDES, needed - cut).recipe for cut in (0, 1, 12 << 20, 16 << 20)]
    assert chosen[:2] == ["Q8_0", "Q6_K"]
    order = [BEST_FIRST.index(name) for name in chosen]
    assert order == sorted(order)
    with pytest.raises(MemoryPlanError, match=r"Q8_0 .* too much\n(.*\n)+No recipe fits 10\.0 MiB") as caught:
        choose_recipe(model, NO_OVERRIDES, 10 << 20)
    assert caught.value.plan.total_bytes > 10 << 20


def test_sizes_are_those_of_the_files(source, tmp_path):
    model = open_gguf(source)
    for name in ("Q8_0", "Q4_K_M"):
        output = tmp_path / f"{name}.gguf"
        Quantizer(source, output, name, hash_inputs=False).run()
        base = choose_recipe(model, NO_OVERRIDES, 1 << 40).plan if name == "Q8_0" else None
        if base is not None:
            # all but the manifest, which is not part of the estimate
            assert 0 <= output.stat().st_size - base.weights_bytes < 4096
    assert ModelFile.open(output).get("quantd.recipe") == "Q4_K_M"


def test_command(source, tmp_path):
    total = choose_recipe(open_gguf(source), NO_OVERRIDES, 1 << 40).plan.total_bytes
    arguments = [str(source), str(tmp_path / "out.gguf"), "--recipe", "auto", "--memory", str(total - 1)]
    result = CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False)
    assert json.loads(result.stdout)["recipe"] == "Q6_K"
    shown = CliRunner().invoke(command, [*arguments, "--dry-run"], catch_exceptions=False)
    assert "Q6_K is the best recipe that fits" in shown.output
    with pytest.raises(Exception, match="only --recipe auto"):
        CliRunner().invoke(command, [*arguments[:2], "--memory", "8GiB"], catch_exceptions=False)


def test_every_quantizing_recipe_of_the_k_family_is_ranked():
    assert {name for name in RECIPES if name.startswith("Q") and "_K" in name} <= set(BEST_FIRST)
