"""Model files whose metadata and tensors do not fit each other: one typed error that names the fault."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from runtime.errors import ModelFormatError, UnsupportedModelError
from runtime.gguf import ModelFile
from runtime.models import architecture_names, build_graph
from runtime.models.config import read_config
from runtime.models.graph import Rope
from runtime.models.loader import bind_weights
from runtime.models.rope import rope_table
from tests.models.reference import ENCODERS
from tests.models.support import N_VOCAB, Runner, Tiny, shapes, write_tiny

INF, NAN = float("inf"), float("nan")


def load(tmp_path, tiny: Tiny) -> None:
    file = ModelFile.open(write_tiny(tmp_path / "m.gguf", tiny))
    bind_weights(build_graph(read_config(file)), file)


def f32(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize("arch", architecture_names())
def test_a_sound_model_loads(tmp_path, arch):
    load(tmp_path, Tiny(arch=arch))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 0),  # G58
        ("block_count", 10**9),
        ("block_count", None),
        ("block_count", "two"),
        ("block_count", 1),  # the file has a second layer
        ("attention.head_count", 0),  # G59
        ("attention.head_count", 5),
        ("attention.head_count", 128),
        ("attention.head_count", [4, 4]),
        ("attention.head_count", None),
        ("attention.head_count_kv", 0),  # G60
        ("attention.head_count_kv", 8),
        ("attention.head_count_kv", 3),
        ("attention.head_count_kv", [2]),
        ("embedding_length", 0),  # G61
        ("embedding_length", 2**31),
        ("embedding_length", -64),
        ("feed_forward_length", 0),  # G62
        ("feed_forward_length", None),
        ("context_length", 0),  # G63
        ("context_length", 2**31),
        ("context_length", 2**40),
        ("rope.dimension_count", 0),  # G64
        ("rope.dimension_count", 7),
        ("rope.dimension_count", 32),
        ("rope.freq_base", 0.0),
        ("rope.freq_base", -1.0),
        ("rope.freq_base", NAN),
        ("rope.freq_base", INF),
        ("rope.scaling.factor", 0.0),
        ("rope.scaling.factor", NAN),
        ("rope.scaling.factor", -2.0),
        ("rope.scale_linear", 0.0),
        ("attention.layer_norm_rms_epsilon", 0.0),  # G65
        ("attention.layer_norm_rms_epsilon", -1e-5),
        ("attention.layer_norm_rms_epsilon", NAN),
        ("attention.layer_norm_rms_epsilon", None),
        ("attention.key_length", 0),  # G70
        ("attention.key_length", 10**6),
        ("attention.sliding_window", 0),  # G71
        ("attention.sliding_window", -1),
        ("vocab_size", N_VOCAB + 1),  # G72
        ("vocab_size", 0),
    ],
)
def test_bad_keys_are_named(tmp_path, key, value):
    with pytest.raises(ModelFormatError, match=f"llama.{key}") as caught:
        load(tmp_path, Tiny(keys={key: value}))
    assert caught.value.where.startswith(f"llama.{key}")


EPSILON = "attention.layer_norm_rms_epsilon"
IMPOSSIBLE = [
    *(("block_count", value) for value in (0, 1, -1, 10**9, None, "two")),
    *(("attention.head_count", value) for value in (0, 5, 10**6, None, [4, 4])),
    *(("attention.head_count_kv", value) for value in (0, 3, 2**31)),
    *(("attention.key_length", value) for value in (0, 10**6)),
    *(("embedding_length", value) for value in (0, -64, 2**31, None)),
    *(("feed_forward_length", value) for value in (0, -1, 2**31, None)),
    *(("context_length", value) for value in (0, -1, 2**31, 2**40, None)),
    *(("rope.freq_base", value) for value in (0.0, -1.0, NAN, INF)),
    *(("rope.dimension_count", value) for value in (0, 7, 32)),
    *((EPSILON, value) for value in (0.0, -1e-5, NAN, INF, None)),
    *(("vocab_size", value) for value in (0, N_VOCAB + 1)),
]


@pytest.mark.parametrize("arch", architecture_names())
def test_impossible_numbers_are_named_in_every_architecture(tmp_path, arch):
    for key, value in IMPOSSIBLE:
        if arch == "bert" and key.startswith("rope"):
            continue  # it has no rotation
        if arch == "qwen3moe" and key == "feed_forward_length":
            if value is None:
                continue  # it falls back to the other key
            key = "expert_feed_forward_length"
        if arch in ENCODERS and key == EPSILON:
            key = EPSILON.replace("_rms", "")
        with pytest.raises(ModelFormatError) as caught:
            load(tmp_path, Tiny(arch=arch, keys={key: value}))
        assert caught.value.where.startswith(f"{arch}.{key}"), (key, value, caught.value.message)
        assert f"{arch}.{key}" in caught.value.message


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rope.scaling.type", "dynamic", "'dynamic'"),  # G64
        ("attention.value_length", 8, "value_length is 8"),  # G70
        ("attention.causal", False, "does not generate"),
    ],
)
def test_what_is_not_served_is_named(tmp_path, key, value, message):
    with pytest.raises(UnsupportedModelError, match=message):
        load(tmp_path, Tiny(keys={key: value}))


@pytest.mark.parametrize(
    ("arch", "key", "value", "message"),
    [
        ("qwen2", "expert_count", 8, "not served as a mixture"),  # G66
        ("gemma2", "expert_count", 8, "not served as a mixture"),
        ("bert", "attention.causal", True, "with false only"),
        ("bert", "pooling_type", 4, "pooling_type is 4"),
        ("nomic-bert", "pooling_type", 0, "pooling_type is 0"),
    ],
)
def test_what_an_architecture_does_not_serve_is_named(tmp_path, arch, key, value, message):
    with pytest.raises(UnsupportedModelError, match=message):
        load(tmp_path, Tiny(arch=arch, keys={key: value}))


@pytest.mark.parametrize(
    ("arch", "key", "value"),
    [
        ("gemma2", "attn_logit_softcapping", -1.0),
        ("gemma2", "final_logit_softcapping", NAN),
        ("gemma2", "attention.sliding_window", 0),
        ("gemma3", "attention.sliding_window_pattern", [True, False, True]),  # of two layers
        ("gemma3", "rope.freq_base_swa", 0.0),
        ("granite", "logit_scale", 0.0),
        ("granite", "embedding_scale", INF),
        ("granite", "residual_scale", -0.2),
        ("granite", "attention.scale", -1.0),
        ("qwen3moe", "expert_count", 0),
        ("qwen3moe", "expert_count", None),
        ("qwen3moe", "expert_count", 10**6),
        ("qwen3moe", "expert_used_count", 0),
        ("qwen3moe", "expert_used_count", 5),  # of four
        ("qwen3moe", "expert_feed_forward_length", 0),
        ("bert", "attention.layer_norm_epsilon", 0.0),
        ("bert", "attention.layer_norm_epsilon", None),
        ("phi3", "attention.sliding_window", -1),
        ("olmo2", "attention.head_count", 5),
        ("smollm3", "rope.scaling.factor", -2.0),
    ],
)
def test_bad_keys_of_an_architecture_are_named(tmp_path, arch, key, value):
    keys = {"attention.sliding_window": 9} if key.startswith("attention.sliding") else {}
    with pytest.raises(ModelFormatError, match=f"{arch}.{key}") as caught:
        load(tmp_path, Tiny(arch=arch, keys=keys | {key: value}))
    assert caught.value.where.startswith(f"{arch}.{key}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope.scaling.factor", 0.5),
        ("rope.scaling.original_context_length", 0),
        ("rope.scaling.attn_factor", NAN),
        ("rope.scaling.yarn_beta_fast", 0.0),
        ("rope.scaling.yarn_beta_slow", -1.0),
        ("rope.scaling.yarn_ext_factor", 2.0),
        ("rope.scaling.yarn_log_multiplier", -1.0),
        ("rope.freq_base", 1.0),
    ],
)
def test_bad_keys_of_yarn_are_named(tmp_path, key, value):
    keys = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, key: value}
    with pytest.raises(ModelFormatError, match=f"llama.{key}"):
        load(tmp_path, Tiny(keys=keys))


@pytest.mark.parametrize("arch", architecture_names())
def test_every_missing_and_every_misshaped_tensor_is_named(tmp_path, arch):
    """A file that lies about one tensor, for each tensor that the architecture has."""
    tiny = Tiny(arch=arch, n_layers=1, context=24)
    optional = ("output.weight", "token_types.weight")
    for name, shape in shapes(tiny).items():
        wrong = tiny.but(tensors={name: f32(*shape[:-1], shape[-1] + 32)})
        with pytest.raises(ModelFormatError, match=name.replace(".", r"\.")):
            load(tmp_path, wrong)
        if name in optional or (arch == "bert" and name.endswith(".bias") and "norm" not in name):
            continue
        with pytest.raises(ModelFormatError, match=name.replace(".", r"\.")):
            load(tmp_path, tiny.but(skip=(name,)))


def test_longrope_needs_both_tensors(tmp_path):
    for missing in ("rope_factors_long.weight", "rope_factors_short.weight"):
        path = write_tiny(tmp_path / "m.gguf", Tiny(arch="phi3", longrope=True, skip=(missing,)))
        with pytest.raises(ModelFormatError, match=missing):
            Runner(path)


def test_unknown_architecture(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"'mamba'.*llama, nomic-bert, olmo2, phi3, qwen2"):
        load(tmp_path, Tiny(arch="mamba"))


@pytest.mark.parametrize(
    ("tiny", "names"),
    [
        (Tiny(skip=("output_norm.weight",)), ["output_norm.weight"]),  # G67
        (
            Tiny(skip=("blk.0.attn_q.weight", "blk.1.ffn_up.weight")),
            ["blk.0.attn_q.weight", "blk.1.ffn_up.weight"],
        ),
        (Tiny(tensors={"blk.0.ffn_down.weight": f32(96, 64)}), ["blk.0.ffn_down.weight is 96 x 64"]),  # G68
        (Tiny(tensors={"blk.0.attn_norm.weight": f32(32)}), ["blk.0.attn_norm.weight is 32"]),
        (Tiny(tensors={"output.weight": f32(N_VOCAB + 1, 64)}), ["output.weight is 21 x 64"]),  # G72
        (Tiny(tensors={"blk.0.attn_q.bias": f32(63)}), ["blk.0.attn_q.bias is 63"]),  # G73
        (Tiny(arch="qwen2", tensors={"blk.1.attn_v.bias": f32(64)}), ["blk.1.attn_v.bias is 64"]),
        (Tiny(arch="qwen2", skip=("blk.0.attn_k.bias",)), ["blk.0.attn_k.bias"]),
        (Tiny(arch="qwen3", skip=("blk.0.attn_q_norm.weight",)), ["blk.0.attn_q_norm.weight"]),
        (
            Tiny(keys={"attention.key_length": 32, "attention.value_length": 32}),
            ["blk.0.attn_q.weight is 64 x 64"],
        ),
        (
            Tiny(keys={"feed_forward_length": 128}),
            ["blk.0.ffn_gate.weight is 96 x 64", "blk.1.ffn_down.weight"],
        ),
        (Tiny(keys={"embedding_length": 32, "attention.key_length": 16}), ["token_embd.weight is 20 x 64"]),
        (Tiny(tensors={"rope_freqs.weight": f32(16)}), ["rope_freqs.weight is 16"]),
    ],
)
def test_tensors_that_do_not_fit_are_all_named(tmp_path, tiny, names):
    with pytest.raises(ModelFormatError) as caught:
        load(tmp_path, tiny)
    assert caught.value.code == "BAD_TENSORS"
    for name in names:
        assert name in caught.value.message


def test_a_file_without_layers_lists_some_and_counts_all(tmp_path):
    tiny = Tiny(n_layers=4)
    tiny = tiny.but(skip=tuple(name for name in shapes(tiny) if name.startswith("blk.")))
    with pytest.raises(ModelFormatError, match=r"36 tensor.* and 16 more"):
        load(tmp_path, tiny)


def test_missing_embedding(tmp_path):
    with pytest.raises(ModelFormatError, match=r"token_embd.weight is missing"):
        load(tmp_path, Tiny(skip=("token_embd.weight",)))


def test_tokens_and_embedding_disagree(tmp_path):
    """Without the architecture's prefix in front: GGUF's tokenizer.ggml.tokens."""
    import gguf

    path = tmp_path / "m.gguf"
    write_tiny(path, Tiny())
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(tmp_path / "n.gguf", "llama")
    for key, field in reader.fields.items():
        if key.startswith("llama."):
            writer.add_key_value(key, field.contents(), field.types[0])
    writer.add_token_list([str(i) for i in range(N_VOCAB - 1)])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelFormatError, match="tokens has 19 entries"):
        read_config(ModelFile.open(tmp_path / "n.gguf"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("output_norm.weight", np.zeros(64, np.float16), "vectors must be F32"),  # G69
        ("token_embd.weight", np.zeros((N_VOCAB, 64), np.int32), "I32"),
        ("blk.0.attn_q_norm.weight", f32(16), "attn_q_norm"),  # G75
        ("blk.1.ffn_gate_inp.weight", f32(8, 64), "ffn_gate_inp"),
        ("blk.1.post_ffw_norm.weight", f32(64), "post_ffw_norm"),
    ],
)
def test_tensors_that_cannot_be_served(tmp_path, name, value, message):
    with pytest.raises(UnsupportedModelError, match=message):
        load(tmp_path, Tiny(tensors={name: value}))


@pytest.mark.parametrize("arch", ["qwen2", "qwen3"])
def test_another_architectures_tensors(tmp_path, arch):
    """G75: a llama's weights under another name."""
    path = write_tiny(tmp_path / "m.gguf", Tiny(arch=arch, skip=tuple(
        name for name in shapes(Tiny(arch=arch)) if name not in shapes(Tiny())
    )))  # fmt: skip
    file = ModelFile.open(path)
    with pytest.raises(ModelFormatError, match="is missing"):
        bind_weights(build_graph(read_config(file)), file)


def test_unknown_extra_tensors_only_warn(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load(tmp_path, Tiny(tensors={"vision.patch.weight": f32(4, 32)}))
    assert "vision.patch.weight" in caplog.text


@pytest.mark.parametrize("bad", [0.0, -1.0, NAN, INF])
def test_rope_factors_must_be_positive(tmp_path, bad):
    factors = np.ones(8, np.float32)
    factors[3] = bad
    path = write_tiny(tmp_path / "m.gguf", Tiny(tensors={"rope_freqs.weight": factors}))
    with pytest.raises(ModelFormatError, match=r"rope_freqs\.weight"):
        Runner(path)


def test_a_sliding_window_caps_the_context(tmp_path):
    """Where an architecture has no windows of its own."""
    for window, context in ((128, 128), (4096, 512)):
        tiny = Tiny(arch="qwen2", keys={"attention.sliding_window": window})
        file = ModelFile.open(write_tiny(tmp_path / "m.gguf", tiny))
        assert read_config(file).context_length == context
    config = read_config(
        ModelFile.open(write_tiny(tmp_path / "n.gguf", Tiny(keys={"attention.sliding_window": 128})))
    )
    assert (config.context_length, config.windows) == (512, (128, 128))


def test_defaults_of_absent_keys(tmp_path):
    keys = {"attention.head_count_kv": None, "rope.freq_base": None}
    config = read_config(ModelFile.open(write_tiny(tmp_path / "m.gguf", Tiny(n_kv_heads=4, keys=keys))))
    assert (config.n_kv_heads, config.rope_freq_base, config.rope_dim) == (4, 10000.0, 16)
    assert (config.rope_scaling.kind, config.rope_scaling.factor) == ("none", 1.0)
    assert config.n_vocab == N_VOCAB


def test_older_name_of_linear_scaling(tmp_path):
    config = read_config(
        ModelFile.open(write_tiny(tmp_path / "m.gguf", Tiny(keys={"rope.scale_linear": 2.0})))
    )
    rope = Rope(config.rope_freq_base, config.rope_dim, interleaved=True, scaling=config.rope_scaling)
    assert rope_table(rope)[0][0] == 0.5


def test_graphs_declare_each_buffer_with_one_width(tmp_path):
    for arch in architecture_names():
        file = ModelFile.open(write_tiny(tmp_path / f"{arch}.gguf", Tiny(arch=arch)))
        buffers = build_graph(read_config(file)).buffers()
        assert len({buffer.name for buffer in buffers}) == len(buffers)


def test_the_program_reads_like_the_model(tmp_path):
    runner = Runner(write_tiny(tmp_path / "m.gguf", Tiny(n_layers=1, tied=True)))
    lines = runner.program.describe().splitlines()
    assert lines[0] == "x = embed token_embd.weight"
    assert lines[-1] == "scores = token_embd.weight norm"
    assert len(lines) == 11
