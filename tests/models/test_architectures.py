"""Each architecture against an independent NumPy forward in float64."""

from __future__ import annotations

import numpy as np
import pytest

from runtime._native import kernel_levels
from runtime.gguf import ModelFile
from runtime.models import architecture_names
from runtime.step_plan import Outcome
from tests.models.reference import ENCODERS, Reference
from tests.models.support import N_VOCAB, Runner, Tiny, greedy, ints, numpy_logprobs, write_tiny

LLAMA3 = np.linspace(1, 8, 8).astype(np.float32)

YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 128}
GRANITE = {"embedding_scale": 12.0, "residual_scale": 0.22, "attention.scale": 0.4, "logit_scale": 8.0}
LONGROPE = {"rope.scaling.original_context_length": 64, "rope.scaling.attn_factor": 1.19}

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
    "mistral with a sliding window": Tiny(keys={"attention.sliding_window": 7}),
    "mixtral": Tiny(n_experts=8),
    "mixtral with one expert in use": Tiny(n_experts=3, keys={"expert_used_count": 1}),
    "yarn": Tiny(keys=YARN),
    "yarn in qwen2": Tiny(arch="qwen2", keys=YARN | {"rope.scaling.yarn_beta_fast": 16.0}),
    "qwen3moe": Tiny(arch="qwen3moe", head_dim=32),
    "qwen3moe with all experts in use": Tiny(arch="qwen3moe", n_experts=6, keys={"expert_used_count": 6}),
    "granite": Tiny(arch="granite", keys=GRANITE),
    "granite without factors": Tiny(arch="granite", tied=True),
    "olmo2": Tiny(arch="olmo2"),
    "olmo3": Tiny(
        arch="olmo2",
        n_layers=4,
        keys=YARN
        | {"attention.sliding_window": 9, "attention.sliding_window_pattern": [True, True, True, False]},
    ),
    "smollm3": Tiny(arch="smollm3", n_layers=4),
    "phi3": Tiny(arch="phi3"),
    "phi3 with a window and part of a head rotated": Tiny(
        arch="phi3", keys={"attention.sliding_window": 11, "rope.dimension_count": 12}
    ),
    "phi3 with longrope": Tiny(arch="phi3", longrope=True, keys=LONGROPE),
    "gemma2": Tiny(arch="gemma2", tied=True, head_dim=32, keys={"attention.sliding_window": 10}),
    "gemma2 with caps of its own": Tiny(
        arch="gemma2", tied=True, keys={"attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0}
    ),
    "gemma3": Tiny(
        arch="gemma3",
        n_layers=7,
        tied=True,
        head_dim=32,
        keys={"attention.sliding_window": 10, "rope.freq_base": 1e6, "rope.scaling.factor": 8.0},
    ),
    "gemma3 without windows": Tiny(arch="gemma3", tied=True),
}
# F32 arithmetic of some thousand terms; and what rounding K and V to f16, or activations to int8, may add.
F32_TOLERANCE = 5e-5
F16_CACHE_TOLERANCE = 0.02
Q8_0_CACHE_TOLERANCE = 0.4
INT8_ACTIVATION_TOLERANCE = 0.2
INT8_ACTIVATION_MEAN = 0.06
INT8_COSINE = 0.999
# The README's table of architectures names these.
WEIGHT_TYPES = tuple("F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4".split())


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


def test_longrope_has_other_factors_for_long_contexts(tmp_path):
    path = write_tiny(tmp_path / "m.gguf", MODELS["phi3 with longrope"])
    tokens = some_tokens(48)
    short, long = (Runner(path, kv_type="f32", context_tokens=n).logprobs(tokens) for n in (64, 65))
    np.testing.assert_allclose(short, numpy_logprobs(path, tokens, context=64), atol=F32_TOLERANCE)
    np.testing.assert_allclose(long, numpy_logprobs(path, tokens, context=65), atol=F32_TOLERANCE)
    assert np.abs(short - long).max() > 0.1


@pytest.mark.parametrize("quant", ["F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("arch", ["qwen3moe", "phi3"])
def test_quantized_parts_of_a_tensor(tmp_path, arch, quant):
    path = write_tiny(tmp_path / "m.gguf", Tiny(arch=arch, quant=quant))
    tokens = some_tokens(40)
    found = Runner(path, kv_type="f32").logprobs(tokens)
    np.testing.assert_allclose(found, numpy_logprobs(path, tokens), atol=F32_TOLERANCE)


@pytest.mark.parametrize("first", [0, 8])
@pytest.mark.parametrize("arch", architecture_names())
def test_every_type_of_weights(tmp_path, arch, first):
    """Matrices of each type in turn, in one model; what is multiplied with them is rounded to int8 as well."""
    types = WEIGHT_TYPES[first:] + WEIGHT_TYPES[:first]
    # All experts in use: a rounded router would otherwise choose another one now and then, rightly.
    keys = {"expert_used_count": 4} if arch == "qwen3moe" else {}
    tiny = Tiny(
        arch=arch,
        types=types,
        n_embd=256,
        n_ff=256,
        n_heads=4,
        n_kv_heads=2,
        head_dim=64,
        context=64,
        keys=keys,
    )
    path = write_tiny(tmp_path / "m.gguf", tiny)
    assert len({tensor.type_name for tensor in ModelFile.open(path).tensors.values()}) > 6
    tokens = some_tokens(24)
    if arch in ENCODERS:
        found, expected = Runner(path, kv_type="f32").embed([tokens])[0], Reference(path).embedding(tokens)
        assert found @ expected > INT8_COSINE
        return
    found, expected = Runner(path, kv_type="f32").logprobs(tokens), numpy_logprobs(path, tokens)
    difference = np.abs(found - expected)
    assert difference.mean() < INT8_ACTIVATION_MEAN
    assert difference.max() < INT8_ACTIVATION_TOLERANCE * 3


@pytest.mark.parametrize(
    ("arch", "pooling"), [("bert", 1), ("bert", 2), ("bert", 3), ("nomic-bert", 1), ("nomic-bert", 2)]
)
def test_embeddings(tmp_path, arch, pooling):
    path = write_tiny(tmp_path / "m.gguf", Tiny(arch=arch, context=64, keys={"pooling_type": pooling}))
    sequences = [some_tokens(n, seed=n) for n in (1, 20, 31)]
    found = Runner(path, kv_type="f32", n_seqs=3).embed(sequences)
    expected = [Reference(path).embedding(tokens) for tokens in sequences]
    np.testing.assert_allclose(found, expected, atol=F32_TOLERANCE)
    alone = [Runner(path, kv_type="f32").embed([tokens])[0] for tokens in sequences]
    assert np.array_equal(found, alone)  # what else is computed changes nothing


def test_an_encoder_takes_whole_sequences_and_draws_nothing(tmp_path):
    runner = Runner(write_tiny(tmp_path / "m.gguf", Tiny(arch="bert", context=30)))
    with pytest.raises(ValueError, match="draws no tokens"):
        runner.step([(0, 0, [1, 2])], [1], [greedy()])
    with pytest.raises(ValueError, match="position 30 is beyond"):
        runner.embed([[1] * 31])
    with pytest.raises(ValueError, match="does not begin at position 0"):
        runner.program.embed_step(ints([1]), ints([1]), ints([0, 1]), ints([0, 1]), ints([0]))
    decoder = Runner(write_tiny(tmp_path / "n.gguf", Tiny()))
    with pytest.raises(ValueError, match="no embeddings"):
        decoder.embed([[1, 2]])


@pytest.mark.parametrize("level", kernel_levels())
@pytest.mark.parametrize("arch", ["gemma2", "gemma3", "qwen3moe", "olmo2"])
def test_every_level(tmp_path, arch, level):
    path = write_tiny(tmp_path / "m.gguf", Tiny(arch=arch, keys={"attention.sliding_window": 10}))
    tokens = some_tokens(60)
    found = Runner(path, level=level).logprobs(tokens)
    np.testing.assert_allclose(found, numpy_logprobs(path, tokens), atol=F16_CACHE_TOLERANCE)


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
    assert result.token_ids == [-1] * 29
    assert np.isnan(result.logprobs).all()
    assert (result.top_ids == -1).all()


def test_non_finite_logits_are_reported_and_nothing_is_drawn(tmp_path):
    broken = np.ones(64, np.float32)
    broken[3] = np.nan
    path = write_tiny(tmp_path / "m.gguf", Tiny(tensors={"output_norm.weight": broken}))
    sampler = greedy()
    result = Runner(path).step([(0, 0, [1, 2, 3])], [2], [sampler], [4])
    assert result.outcomes.tolist() == [Outcome.NON_FINITE]
    assert result.token_ids == [-1]
    assert np.isnan(result.target_logprobs[0])
    assert sampler.n_drawn == 0
