"""Each architecture against an independent NumPy forward in float64."""

from __future__ import annotations

import numpy as np
import pytest

from runtime._native import kernel_levels
from tests.models.support import N_VOCAB, Runner, Tiny, greedy, numpy_logprobs, write_tiny

LLAMA3 = np.linspace(1, 8, 8).astype(np.float32)

MODELS = {
    "llama": Tiny(),
    "llama tied": Tiny(tied=True),
    "llama 3 with rope_freqs": Tiny(rope_factors=True, tensors={"rope_freqs.weight": LLAMA3}),
    "llama with biases": Tiny(biases=True),
    "llama without GQA": Tiny(n_kv_heads=4),
    "llama with one KV head": Tiny(n_kv_heads=1),
    "llama with linear scaling": Tiny(rope_scale=4.0),
    "llama, part of a head rotated": Tiny(keys={"rope.dimension_count": 8}),
    "mistral nemo's head_dim": Tiny(head_dim=32),
    "odd sizes": Tiny(n_embd=36, head_dim=12, n_heads=3, n_kv_heads=3, n_ff=43),
    "qwen2": Tiny(arch="qwen2"),
    "qwen2 tied": Tiny(arch="qwen2", tied=True),
    "qwen3": Tiny(arch="qwen3", head_dim=32),
    "qwen3 tied": Tiny(arch="qwen3", tied=True),
}
# F32 arithmetic of some thousand terms; and what rounding K and V to f16, or activations to int8, may add.
F32_TOLERANCE = 5e-5
F16_CACHE_TOLERANCE = 0.02
Q8_0_CACHE_TOLERANCE = 0.4
INT8_ACTIVATION_TOLERANCE = 0.2


def some_tokens(n: int, seed: int = 5) -> list[int]:
    return np.random.default_rng(seed).integers(0, N_VOCAB, n).tolist()


@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_numpy(tmp_path, name):
    path = write_tiny(tmp_path / "m.gguf", MODELS[name])
    tokens = some_tokens(48)
    found = Runner(path, kv_type="f32").logprobs(tokens)
    expected = numpy_logprobs(path, tokens)
    assert np.ptp(expected[-1]) > 1  # the model says something
    np.testing.assert_allclose(found, expected, atol=F32_TOLERANCE)


@pytest.mark.parametrize("level", kernel_levels())
@pytest.mark.parametrize(
    ("quant", "tolerance"),
    [("F16", F32_TOLERANCE), ("BF16", F32_TOLERANCE), ("Q8_0", F32_TOLERANCE), ("Q4_0", F32_TOLERANCE)],
)
def test_quantized_weights(tmp_path, level, quant, tolerance):
    path = write_tiny(tmp_path / "m.gguf", Tiny(quant=quant))
    tokens = some_tokens(40)
    found = Runner(path, level=level, kv_type="f32").logprobs(tokens)
    np.testing.assert_allclose(found, numpy_logprobs(path, tokens), atol=tolerance)


@pytest.mark.parametrize(
    ("kv_type", "tolerance"), [("f16", F16_CACHE_TOLERANCE), ("q8_0", Q8_0_CACHE_TOLERANCE)]
)
def test_cache_types(tmp_path, kv_type, tolerance):
    path = write_tiny(tmp_path / "m.gguf", Tiny(head_dim=32))
    tokens = some_tokens(100)
    found = Runner(path, kv_type=kv_type).logprobs(tokens)
    difference = np.abs(found - numpy_logprobs(path, tokens))
    assert difference.max() < tolerance
    assert difference.max() > 0


def test_a_target_reports_its_log_probability(tmp_path):
    path = write_tiny(tmp_path / "m.gguf", Tiny())
    tokens = some_tokens(30)
    runner = Runner(path, kv_type="f32")
    result = runner.step([(0, 0, tokens)], range(29), targets=tokens[1:])
    expected = numpy_logprobs(path, tokens)[np.arange(29), tokens[1:]]
    np.testing.assert_allclose(result.target_logprobs, expected, atol=F32_TOLERANCE)
    assert (result.token_ids == -1).all()
    assert np.isnan(result.logprobs).all()
    assert (result.top_ids == -1).all()


def test_non_finite_logits_are_reported_and_nothing_is_drawn(tmp_path):
    broken = np.ones(64, np.float32)
    broken[3] = np.nan
    path = write_tiny(tmp_path / "m.gguf", Tiny(tensors={"output_norm.weight": broken}))
    sampler = greedy()
    result = Runner(path).step([(0, 0, [1, 2, 3])], [2], [sampler], [4])
    assert result.finite.tolist() == [0]
    assert result.token_ids.tolist() == [-1]
    assert np.isnan(result.target_logprobs[0])
    assert sampler.n_drawn == 0
