"""One tiny Hugging Face folder of each family: configuration and random weights under the makers' own names."""

from __future__ import annotations

import numpy as np

from tests.quant.hugging_face import LLAMA, decoder_weights

N_EMBD, N_FF, N_VOCAB = 64, 96, 272
BERT = {
    "architectures": ["BertModel"],
    "hidden_size": N_EMBD,
    "intermediate_size": N_FF,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "vocab_size": N_VOCAB,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
NOMIC = {
    "architectures": ["NomicBertModel"],
    "n_embd": N_EMBD,
    "n_inner": N_FF,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 8192,
    "vocab_size": N_VOCAB,
    "type_vocab_size": 2,
    "layer_norm_epsilon": 1e-12,
    "rotary_emb_base": 1000,
    "activation_function": "swiglu",
    "prenorm": False,
    "causal": False,
    "qkv_proj_bias": False,
}
_GEMMA = {"query_pre_attn_scalar": 16, "sliding_window": 32, "tie_word_embeddings": True}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
CONFIGS = {
    "granite": LLAMA
    | {
        "architectures": ["GraniteForCausalLM"],
        "attention_multiplier": 0.0625,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "logits_scaling": 8.0,
    },
    "smollm3": LLAMA | {"architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [1, 1]},
    "mixtral": LLAMA | _EXPERTS | {"architectures": ["MixtralForCausalLM"]},
    "qwen3moe": LLAMA
    | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
    "gemma2": LLAMA
    | _GEMMA
    | {
        "architectures": ["Gemma2ForCausalLM"],
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3": LLAMA | _GEMMA | {"architectures": ["Gemma3ForCausalLM"]},
    "phi3": LLAMA | {"architectures": ["Phi3ForCausalLM"]},
    "olmo2": LLAMA | {"architectures": ["Olmo2ForCausalLM"]},
    "bert": BERT,
    "nomic-bert": NOMIC,
}


def weights_of(name: str) -> dict[str, np.ndarray]:
    """Random F32 weights of a family."""
    rng = np.random.default_rng(11)

    def matrix(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)

    def vector(n: int) -> np.ndarray:
        return (1 + 0.1 * rng.standard_normal(n)).astype(np.float32)

    config = CONFIGS[name]
    if name == "bert":
        return _bert(matrix, vector)
    if name == "nomic-bert":
        return _nomic(matrix, vector)
    weights = decoder_weights(config, head_norms=name in {"gemma3", "qwen3moe"})
    q_width, kv_width = 64, 32
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        if name in {"gemma2", "gemma3"}:
            weights[f"{at}pre_feedforward_layernorm.weight"] = vector(N_EMBD)
        if name in {"gemma2", "gemma3", "olmo2"}:
            weights[f"{at}post_feedforward_layernorm.weight"] = vector(N_EMBD)
        if name == "olmo2":
            del weights[f"{at}input_layernorm.weight"]
            weights[f"{at}self_attn.q_norm.weight"] = vector(q_width)
            weights[f"{at}self_attn.k_norm.weight"] = vector(kv_width)
        if name == "phi3":
            parts = [weights.pop(f"{at}self_attn.{part}_proj.weight") for part in "qkv"]
            weights[f"{at}self_attn.qkv_proj.weight"] = np.concatenate(parts)
            parts = [weights.pop(f"{at}mlp.{part}_proj.weight") for part in ("gate", "up")]
            weights[f"{at}mlp.gate_up_proj.weight"] = np.concatenate(parts)
        if name in {"mixtral", "qwen3moe"}:
            for part in ("gate", "up", "down"):
                del weights[f"{at}mlp.{part}_proj.weight"]
            mixtral = name == "mixtral"
            n_ff, block = (N_FF, "block_sparse_moe") if mixtral else (32, "mlp")
            weights[f"{at}{block}.gate.weight"] = matrix(4, N_EMBD)
            for i in range(4):
                for part, shape in (
                    ("gate", (n_ff, N_EMBD)),
                    ("down", (N_EMBD, n_ff)),
                    ("up", (n_ff, N_EMBD)),
                ):
                    theirs = {"gate": "w1", "down": "w2", "up": "w3"}[part] if mixtral else f"{part}_proj"
                    weights[f"{at}{block}.experts.{i}.{theirs}.weight"] = matrix(*shape)
    return weights


def _bert(matrix, vector) -> dict[str, np.ndarray]:
    weights = {
        "embeddings.word_embeddings.weight": matrix(N_VOCAB, N_EMBD),
        "embeddings.position_embeddings.weight": matrix(64, N_EMBD),
        "embeddings.token_type_embeddings.weight": matrix(2, N_EMBD),
        "embeddings.LayerNorm.weight": vector(N_EMBD),
        "embeddings.LayerNorm.bias": vector(N_EMBD),
        "pooler.dense.weight": matrix(N_EMBD, N_EMBD),
        "pooler.dense.bias": vector(N_EMBD),
    }
    for layer in range(2):
        at = f"encoder.layer.{layer}."
        for name, rows, cols in (
            *((f"attention.self.{part}", N_EMBD, N_EMBD) for part in ("query", "key", "value")),
            ("attention.output.dense", N_EMBD, N_EMBD),
            ("intermediate.dense", N_FF, N_EMBD),
            ("output.dense", N_EMBD, N_FF),
        ):
            weights[f"{at}{name}.weight"], weights[f"{at}{name}.bias"] = matrix(rows, cols), vector(rows)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            weights[f"{at}{name}.weight"], weights[f"{at}{name}.bias"] = vector(N_EMBD), vector(N_EMBD)
    return weights


def _nomic(matrix, vector) -> dict[str, np.ndarray]:
    weights = {
        "embeddings.word_embeddings.weight": matrix(N_VOCAB, N_EMBD),
        "embeddings.token_type_embeddings.weight": matrix(2, N_EMBD),
        "emb_ln.weight": vector(N_EMBD),
        "emb_ln.bias": vector(N_EMBD),
    }
    for layer in range(2):
        at = f"encoder.layers.{layer}."
        for name, rows, cols in (
            ("attn.Wqkv", 3 * N_EMBD, N_EMBD),
            ("attn.out_proj", N_EMBD, N_EMBD),
            ("mlp.fc11", N_FF, N_EMBD),
            ("mlp.fc12", N_FF, N_EMBD),
            ("mlp.fc2", N_EMBD, N_FF),
        ):
            weights[f"{at}{name}.weight"] = matrix(rows, cols)
        for name in ("norm1", "norm2"):
            weights[f"{at}{name}.weight"], weights[f"{at}{name}.bias"] = vector(N_EMBD), vector(N_EMBD)
    return weights
