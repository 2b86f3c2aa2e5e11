"""What the cache's type costs: perplexity of the demo model with q8_0 keys and values beside f16 ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from quant.perplexity import measure
from runtime._native import kernel_levels
from runtime.memory import RuntimeSettings
from runtime.model import load_model

DEMO = Path(__file__).parents[2] / "ops/demo"


@pytest.mark.parametrize("level", [level for level in kernel_levels() if level != "scalar"])
def test_q8_0_costs_less_than_a_thousandth(level):
    text = (DEMO / "heldout.txt").read_text(encoding="utf-8")
    found = {}
    for kv_type in ("f16", "q8_0"):
        settings = RuntimeSettings(sessions=1, context_tokens=320, kv_type=kv_type, level=level, threads=2)
        model = load_model(DEMO / "quantd-demo-f16.gguf", settings)
        # 300 tokens: two ranges of positions.
        found[kv_type] = measure(model, text, ctx=300, chunks=6, parse_special=True).perplexity
        model.close()
    assert found["q8_0"] == pytest.approx(found["f16"], rel=1e-3)
    assert found["q8_0"] != found["f16"]
