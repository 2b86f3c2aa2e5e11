"""The tensors of published models: real names, shapes and counts, no weights."""

from __future__ import annotations

from quant.policy import ModelFacts, TensorShape
from quant.recipes import F16, F32


def model(  # noqa: PLR0917 - one row of a table
    architecture: str,
    n_layers: int,
    n_embd: int,
    n_ff: int,
    n_vocab: int,
    n_heads: int,
    n_kv_heads: int,
    *,
    head_dim: int | None = None,
    tied: bool = False,
    n_experts: int = 0,
    fused: bool = False,
) -> tuple[ModelFacts, list[TensorShape]]:
    head_dim = head_dim or n_embd // n_heads
    tensors = [TensorShape("token_embd.weight", F16, (n_embd, n_vocab))]

    def add(name: str, *shape: int) -> None:
        tensors.append(TensorShape(name, F32 if len(shape) == 1 else F16, shape))

    for i in range(n_layers):
        blk = f"blk.{i}."
        add(blk + "attn_norm.weight", n_embd)
        if fused:
            add(blk + "attn_qkv.weight", n_embd, (n_heads + 2 * n_kv_heads) * head_dim)
        else:
            add(blk + "attn_q.weight", n_embd, n_heads * head_dim)
            add(blk + "attn_q.bias", n_heads * head_dim)
            add(blk + "attn_k.weight", n_embd, n_kv_heads * head_dim)
            add(blk + "attn_v.weight", n_embd, n_kv_heads * head_dim)
        add(blk + "attn_output.weight", n_heads * head_dim, n_embd)
        add(blk + "ffn_norm.weight", n_embd)
        if n_experts:
            add(blk + "ffn_gate_inp.weight", n_embd, n_experts)
            add(blk + "ffn_gate_exps.weight", n_embd, n_ff, n_experts)
            add(blk + "ffn_up_exps.weight", n_embd, n_ff, n_experts)
            add(blk + "ffn_down_exps.weight", n_ff, n_embd, n_experts)
        else:
            if not fused:
                add(blk + "ffn_gate.weight", n_embd, n_ff)
            add(blk + "ffn_up.weight", n_embd, 2 * n_ff if fused else n_ff)
            add(blk + "ffn_down.weight", n_ff, n_embd)
    add("output_norm.weight", n_embd)
    add("rope_freqs.weight", head_dim // 2)
    if not tied:
        add("output.weight", n_embd, n_vocab)
    return ModelFacts(architecture, n_layers, n_heads, n_kv_heads, n_experts), tensors


MODELS = {
    "llama-3.2-1b": model("llama", 16, 2048, 8192, 128256, 32, 8, tied=True),
    "llama-3.1-8b": model("llama", 32, 4096, 14336, 128256, 32, 8),
    "llama-2-7b": model("llama", 32, 4096, 11008, 32000, 32, 32),
    "llama-3.1-70b": model("llama", 80, 8192, 28672, 128256, 64, 8),
    "llama-65b": model("llama", 80, 8192, 22016, 32000, 64, 64),
    "qwen2.5-0.5b": model("qwen2", 24, 896, 4864, 151936, 14, 2, tied=True),
    "qwen2.5-72b": model("qwen2", 80, 8192, 29568, 152064, 64, 8),
    "qwen3-0.6b": model("qwen3", 28, 1024, 3072, 151936, 16, 8, head_dim=128, tied=True),
    "qwen3-30b-a3b": model("qwen3moe", 48, 2048, 768, 151936, 32, 4, head_dim=128, n_experts=128),
    "mixtral-8x7b": model("llama", 32, 4096, 14336, 32000, 32, 8, n_experts=8),
    "phi-3-mini": model("phi3", 32, 3072, 8192, 32064, 32, 32, fused=True),
    "smollm2-135m": model("llama", 30, 576, 1536, 49152, 9, 3, tied=True),
    "gemma-2-2b": model("gemma2", 26, 2304, 9216, 256000, 8, 4, head_dim=256, tied=True),
    "olmo-2-1b": model("olmo2", 16, 2048, 8192, 100352, 16, 16),
}
