"""Small Hugging Face folders: configuration, safetensors and tokenizer, as the models' makers publish them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

DTYPES = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(np.uint16): "BF16"}

LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2_REGEX = LLAMA3_REGEX.replace(r"\p{N}{1,3}", r"\p{N}")


def to_bf16(x: np.ndarray) -> np.ndarray:
    """Round float32 to bfloat16, held in uint16."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_safetensors(
    path: Path, tensors: dict[str, np.ndarray], *, dtype: dict[str, str] | None = None
) -> None:
    table, position = {"__metadata__": {"format": "pt"}}, 0
    for name, x in tensors.items():
        kind = (dtype or {}).get(name) or DTYPES.get(x.dtype) or "I64"
        table[name] = {"dtype": kind, "shape": list(x.shape), "data_offsets": [position, position + x.nbytes]}
        position += x.nbytes
    raw = json.dumps(table).encode()
    raw += b" " * (-len(raw) % 8)
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"".join(x.tobytes() for x in tensors.values()))


def byte_level_tokenizer(regex: str = LLAMA3_REGEX, *, ignore_merges: bool = True) -> dict:
    """256 bytes, a few merges, and two special tokens at the end."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in set(printable)]
    chars = [*map(chr, printable), *(chr(0x100 + i) for i in range(len(others)))]
    merges = ["h e", "l l", "he ll", "hell o", "\u0120 w"]
    vocab = {text: i for i, text in enumerate([*chars, *(merge.replace(" ", "") for merge in merges)])}
    first = len(vocab)
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": first, "content": "<|begin_of_text|>", "special": True},
            {"id": first + 1, "content": "<|end_of_text|>", "special": True},
            {"id": first + 2, "content": "<note>", "special": False},
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "Sequence",
            "processors": [
                {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
                {
                    "type": "TemplateProcessing",
                    "single": [{"SpecialToken": {"id": "<|begin_of_text|>"}}, {"Sequence": {"id": "A"}}],
                    "pair": [],
                    "special_tokens": {},
                },
            ],
        },
        "decoder": {"type": "ByteLevel"},
        "model": {
            "type": "BPE",
            "dropout": None,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            "vocab": vocab,
            "merges": [merge.split(" ") for merge in merges],
        },
    }


def write_tokenizer(folder: Path, tokenizer: dict | None = None) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer or byte_level_tokenizer()), encoding="utf-8")
    config = {
        "bos_token": "<|begin_of_text|>",
        "eos_token": {"content": "<|end_of_text|>"},
        "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 272,
}


def decoder_weights(config: dict, *, biases: bool = False, head_norms: bool = False, seed: int = 5) -> dict:
    """Random F32 weights under the names of the llama family."""
    rng = np.random.default_rng(seed)
    n_embd, n_ff, n_vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim", n_embd // heads)

    def matrix(rows, cols):
        return (rng.standard_normal((rows, cols)) * cols**-0.5).astype(np.float32)

    def vector(n):
        return (1 + 0.1 * rng.standard_normal(n)).astype(np.float32)

    weights = {"model.embed_tokens.weight": matrix(n_vocab, n_embd)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        weights[f"{at}input_layernorm.weight"] = vector(n_embd)
        for name, rows, cols in (
            ("q_proj", heads * dim, n_embd),
            ("k_proj", kv * dim, n_embd),
            ("v_proj", kv * dim, n_embd),
            ("o_proj", n_embd, heads * dim),
        ):
            weights[f"{at}self_attn.{name}.weight"] = matrix(rows, cols)
            if biases and name != "o_proj":
                weights[f"{at}self_attn.{name}.bias"] = (0.1 * rng.standard_normal(rows)).astype(np.float32)
        if head_norms:
            weights[f"{at}self_attn.q_norm.weight"] = vector(dim)
            weights[f"{at}self_attn.k_norm.weight"] = vector(dim)
        weights[f"{at}post_attention_layernorm.weight"] = vector(n_embd)
        weights[f"{at}mlp.gate_proj.weight"] = matrix(n_ff, n_embd)
        weights[f"{at}mlp.up_proj.weight"] = matrix(n_ff, n_embd)
        weights[f"{at}mlp.down_proj.weight"] = matrix(n_embd, n_ff)
    weights["model.norm.weight"] = vector(n_embd)
    if not config.get("tie_word_embeddings"):
        weights["lm_head.weight"] = matrix(n_vocab, n_embd)
    return weights


def write_folder(
    folder: Path,
    config: dict,
    weights: dict[str, np.ndarray],
    *,
    n_shards: int = 1,
    tokenizer: dict | None = None,
) -> Path:
    """Write a whole folder; more than one shard: with an index."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_tokenizer(folder, tokenizer)
    if n_shards == 1:
        write_safetensors(folder / "model.safetensors", weights)
        return folder
    names, weight_map = list(weights), {}
    for i in range(n_shards):
        file = f"model-{i + 1:05d}-of-{n_shards:05d}.safetensors"
        mine = names[i::n_shards]
        write_safetensors(folder / file, {name: weights[name] for name in mine})
        weight_map |= dict.fromkeys(mine, file)
    index = {"metadata": {"total_size": sum(x.nbytes for x in weights.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def logits(config: dict, w: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """The family's forward pass as Hugging Face's code has it (rotation by halves), in float64: (n_tokens, n_vocab)."""
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim", config["hidden_size"] // heads)
    eps, n = config["rms_norm_eps"], len(tokens)
    angles = np.arange(n)[:, None] / config["rope_theta"] ** (np.arange(0, dim, 2) / dim)  # (n, dim / 2)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def rms(x, weight):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight

    def turn(x):  # (n, heads, dim)
        a, b = x[..., : dim // 2], x[..., dim // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    w = {name: x.astype(np.float64) for name, x in w.items()}
    x = w["model.embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."

        def linear(h, name, at=at):
            return h @ w[f"{at}{name}.weight"].T + w.get(f"{at}{name}.bias", 0.0)

        h = rms(x, w[f"{at}input_layernorm.weight"])
        q = linear(h, "self_attn.q_proj").reshape(n, heads, dim)
        k = linear(h, "self_attn.k_proj").reshape(n, kv, dim)
        v = linear(h, "self_attn.v_proj").reshape(n, kv, dim)
        if f"{at}self_attn.q_norm.weight" in w:
            q, k = rms(q, w[f"{at}self_attn.q_norm.weight"]), rms(k, w[f"{at}self_attn.k_norm.weight"])
        q, k, v = turn(q), turn(k).repeat(heads // kv, 1), v.repeat(heads // kv, 1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(dim)
        scores = np.where(np.tril(np.ones((n, n), bool)), scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        attended = np.einsum("hqk,khd->qhd", scores, v).reshape(n, heads * dim)
        x = x + linear(attended, "self_attn.o_proj")
        h = rms(x, w[f"{at}post_attention_layernorm.weight"])
        gate = linear(h, "mlp.gate_proj")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(h, "mlp.up_proj"), "mlp.down_proj")
    return rms(x, w["model.norm.weight"]) @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T
