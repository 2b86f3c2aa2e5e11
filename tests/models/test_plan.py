"""What the memory plan says of each architecture, and what loading and the largest step take."""

from __future__ import annotations

import ctypes

import pytest

from runtime.machine_memory import own_anonymous_bytes
from runtime.memory import RuntimeSettings
from runtime.model import load_model
from runtime.models import architecture_names
from runtime.step_plan import StepPlan
from tests.models.reference import ENCODERS
from tests.models.support import Tiny, ints, write_tiny

N_VOCAB = 2048
VOCABULARY = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": [
        "<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *(f"▁{i}" for i in range(N_VOCAB - 259))
    ],
    "tokenizer.ggml.scores": [0.0] * N_VOCAB,
    "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (N_VOCAB - 259),
}  # fmt: skip
WINDOW, WINDOWED = {"attention.sliding_window": 64}, ("llama", "gemma2", "gemma3", "olmo2", "phi3")
# The bound is 3 % and 30 MB of a whole daemon (tests/e2e/test_memory.py); of one model in a process that is there
# already, less.
SHARE, SLACK_BYTES = 0.03, 15e6


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("arch", architecture_names())
def test_a_model_takes_what_its_plan_says(tmp_path, arch, kv_type):
    tiny = Tiny(
        arch=arch, n_layers=4, n_embd=256, n_ff=768, n_heads=4, n_kv_heads=2, head_dim=64, context=2048,
        n_vocab=N_VOCAB, quant="Q8_0", tokenizer=VOCABULARY, keys=WINDOW if arch in WINDOWED else {},
    )  # fmt: skip
    path = write_tiny(tmp_path / "m.gguf", tiny)
    settings = RuntimeSettings(
        sessions=8, context_tokens=2048, kv_type=kv_type, threads=2, max_step_rows=512, speculate=False
    )
    ctypes.CDLL(None).malloc_trim(0)  # what earlier tests freed would be taken again, unseen
    before = own_anonymous_bytes()
    model = load_model(path, settings)
    try:
        if arch in ENCODERS:
            model.embed([[1] * 2048])  # the longest that it takes
        else:
            model.step(
                StepPlan(
                    tokens=ints([5] * 512),
                    positions=ints(range(512)),
                    seq_starts=ints([0, 512]),
                    page_starts=ints([0, 16]),
                    pages=ints(range(16)),
                    out_rows=ints(range(512)),
                    samplers=[None] * 512,
                    targets=ints([7] * 512),
                )
            )
        taken, planned = own_anonymous_bytes() - before, model.plan.anonymous_bytes
        assert planned > 10e6
        assert abs(taken - planned) <= SHARE * planned + SLACK_BYTES, (taken / 1e6, planned / 1e6)
    finally:
        model.close()
