"""Tiny random models of every architecture, and a runner that pages and chunks like the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import gguf
import numpy as np

from runtime._native import Arena, Program, Sampler, ThreadPool, quantize_rows
from runtime.gguf import ModelFile
from runtime.models import build_graph
from runtime.models.config import ModelConfig, read_config
from runtime.models.loader import build_program
from runtime.step_plan import MAX_TOP_LOGPROBS, StepResult
from tests.models.reference import numpy_logprobs

__all__ = [
    "N_VOCAB",
    "Runner",
    "Tiny",
    "greedy",
    "ints",
    "metadata",
    "numpy_logprobs",
    "shapes",
    "write_tiny",
]

N_VOCAB = MAX_TOP_LOGPROBS  # so that the reported alternatives are the whole distribution


@dataclass(frozen=True)
class Tiny:
    """What to write: a model of one architecture with random weights."""

    arch: str = "llama"
    n_layers: int = 2
    n_embd: int = 64
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 16
    n_ff: int = 96
    n_vocab: int = N_VOCAB
    context: int = 512
    tied: bool = False
    rope_factors: bool = False
    longrope: bool = False
    n_experts: int = 0
    biases: bool = False
    rope_scale: float | None = None
    quant: str = "F32"  # of the matrices
    types: tuple[str, ...] = ()  # of the matrices one after the other, by our own encoders; instead of quant
    seed: int = 1
    keys: dict[str, object] = field(default_factory=dict)  # overrides; None removes the key
    tokenizer: dict[str, object] = field(default_factory=dict)  # whole keys of a vocabulary
    skip: tuple[str, ...] = ()  # tensors left out
    tensors: dict[str, np.ndarray] = field(default_factory=dict)  # replaced or added, unquantized

    def but(self, **changes: object) -> Tiny:
        return replace(self, **changes)  # type: ignore[arg-type]


def shapes(t: Tiny) -> dict[str, tuple[int, ...]]:
    """Return every tensor of the model with its (n_out, n_in) or (n,) shape."""
    if t.arch in ("bert", "nomic-bert"):
        return _encoder_shapes(t)
    out: dict[str, tuple[int, ...]] = {"token_embd.weight": (t.n_vocab, t.n_embd)}
    for i in range(t.n_layers):
        p = f"blk.{i}."
        out |= {p + name: shape for name, shape in (_attention_shapes(t) | _feed_forward_shapes(t)).items()}
    out["output_norm.weight"] = (t.n_embd,)
    if not t.tied:
        out["output.weight"] = (t.n_vocab, t.n_embd)
    if t.rope_factors:
        out["rope_freqs.weight"] = (t.head_dim // 2,)
    if t.longrope:
        n_rot = int(t.keys.get("rope.dimension_count", t.head_dim))
        out |= {f"rope_factors_{name}.weight": (n_rot // 2,) for name in ("long", "short")}
    return out


def _attention_shapes(t: Tiny) -> dict[str, tuple[int, ...]]:
    q, kv = t.n_heads * t.head_dim, t.n_kv_heads * t.head_dim
    out: dict[str, tuple[int, ...]] = {"attn_output.weight": (t.n_embd, q)}
    if t.arch != "olmo2":
        out["attn_norm.weight"] = (t.n_embd,)
    if t.arch == "phi3":
        out["attn_qkv.weight"] = (q + 2 * kv, t.n_embd)
    else:
        out |= {
            "attn_q.weight": (q, t.n_embd),
            "attn_k.weight": (kv, t.n_embd),
            "attn_v.weight": (kv, t.n_embd),
        }
    if t.biases or t.arch == "qwen2":
        out |= {"attn_q.bias": (q,), "attn_k.bias": (kv,), "attn_v.bias": (kv,)}
    if t.arch in ("qwen3", "qwen3moe", "gemma3"):
        out |= {"attn_q_norm.weight": (t.head_dim,), "attn_k_norm.weight": (t.head_dim,)}
    if t.arch == "olmo2":
        out |= {"attn_q_norm.weight": (q,), "attn_k_norm.weight": (kv,)}
    if t.arch in ("olmo2", "gemma2", "gemma3"):
        out["post_attention_norm.weight"] = (t.n_embd,)
    return out


def _feed_forward_shapes(t: Tiny) -> dict[str, tuple[int, ...]]:
    out: dict[str, tuple[int, ...]] = {}
    if t.arch != "olmo2":
        out["ffn_norm.weight"] = (t.n_embd,)
    if t.arch in ("olmo2", "gemma2", "gemma3"):
        out["post_ffw_norm.weight"] = (t.n_embd,)
    if t.n_experts or t.arch == "qwen3moe":
        n = t.n_experts or 4
        return out | {
            "ffn_gate_inp.weight": (n, t.n_embd),
            "ffn_gate_exps.weight": (n, t.n_ff, t.n_embd),
            "ffn_up_exps.weight": (n, t.n_ff, t.n_embd),
            "ffn_down_exps.weight": (n, t.n_embd, t.n_ff),
        }
    if t.arch == "phi3":
        out["ffn_up.weight"] = (2 * t.n_ff, t.n_embd)
    else:
        out |= {"ffn_gate.weight": (t.n_ff, t.n_embd), "ffn_up.weight": (t.n_ff, t.n_embd)}
    return out | {"ffn_down.weight": (t.n_embd, t.n_ff)}


def _encoder_shapes(t: Tiny) -> dict[str, tuple[int, ...]]:
    n = t.n_embd
    out: dict[str, tuple[int, ...]] = {"token_embd.weight": (t.n_vocab, n), "token_types.weight": (2, n)}
    norms = ["token_embd_norm"]
    for i in range(t.n_layers):
        p = f"blk.{i}."
        norms += [p + "attn_output_norm", p + "layer_output_norm"]
        out |= {
            p + "attn_output.weight": (n, n),
            p + "ffn_up.weight": (t.n_ff, n),
            p + "ffn_down.weight": (n, t.n_ff),
        }
        if t.arch == "nomic-bert":
            out |= {p + "attn_qkv.weight": (3 * n, n), p + "ffn_gate.weight": (t.n_ff, n)}
        else:
            out |= {f"{p}attn_{c}.weight": (n, n) for c in "qkv"} | {f"{p}attn_{c}.bias": (n,) for c in "qkv"}
            out |= {p + "attn_output.bias": (n,), p + "ffn_up.bias": (t.n_ff,), p + "ffn_down.bias": (n,)}
    if t.arch == "bert":
        out["position_embd.weight"] = (t.context, n)
    return out | {f"{name}.{part}": (n,) for name in norms for part in ("weight", "bias")}


def metadata(t: Tiny) -> dict[str, object]:
    encoder = t.arch in ("bert", "nomic-bert")
    values: dict[str, object] = {
        "block_count": t.n_layers,
        "context_length": t.context,
        "embedding_length": t.n_embd,
        "feed_forward_length": t.n_ff,
        "attention.head_count": t.n_heads,
        "attention.head_count_kv": t.n_heads if encoder else t.n_kv_heads,
        "attention.layer_norm_epsilon" if encoder else "attention.layer_norm_rms_epsilon": 1e-5,
    }
    if t.arch != "bert":
        values["rope.freq_base"] = 10000.0
    if encoder:
        values |= {"attention.causal": False, "pooling_type": 1}
    if t.head_dim * t.n_heads != t.n_embd:
        values |= {"attention.key_length": t.head_dim, "attention.value_length": t.head_dim}
    if t.rope_scale is not None:
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": t.rope_scale}
    if t.n_experts or t.arch == "qwen3moe":
        values |= {"expert_count": t.n_experts or 4, "expert_used_count": 2}
        if t.arch == "qwen3moe":
            values["expert_feed_forward_length"] = t.n_ff
    values |= t.keys
    return {f"{t.arch}.{key}": value for key, value in values.items() if value is not None}


def write_tiny(path: Path, t: Tiny) -> Path:
    """Write the model; matrices in its type, vectors in F32."""
    rng = np.random.default_rng(t.seed)
    writer = gguf.GGUFWriter(path, t.arch)
    for key, value in (metadata(t) | t.tokenizer).items():
        _add(writer, key, value)
    tensors: dict[str, np.ndarray] = {}
    for name, shape in shapes(t).items():
        if len(shape) >= 2:
            values = rng.standard_normal(shape) * 1.5 / np.sqrt(shape[-1])
        elif name.endswith("bias"):
            values = rng.standard_normal(shape) * 0.3
        else:
            values = rng.uniform(0.5, 1.5, shape)
        if name not in t.skip:
            tensors[name] = values.astype(np.float32)
    if "token_embd.weight" in tensors:
        tensors["token_embd.weight"] *= np.float32(3)
    tensors |= t.tensors
    quant = gguf.GGMLQuantizationType[t.quant]
    n_encoded = 0
    for name, values in tensors.items():
        is_matrix = values.ndim >= 2 and "_gate_inp" not in name and name not in t.tensors
        if is_matrix and t.types and name not in ("position_embd.weight", "token_types.weight"):
            kind = gguf.GGMLQuantizationType[t.types[n_encoded % len(t.types)]]
            n_encoded += 1
            writer.add_tensor(name, encoded(values, kind), raw_dtype=kind)
        elif is_matrix and not t.types and quant != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, gguf.quants.quantize(values, quant), raw_dtype=quant)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def encoded(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """The matrices (..., n_in) in blocks of a type, as bytes (..., bytes of a row)."""
    elements, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    n_in = values.shape[-1]
    out = np.empty(values.size // elements * n_bytes, np.uint8)
    rows = np.ascontiguousarray(values, np.float32)
    f32 = int(gguf.GGMLQuantizationType.F32)
    bad = quantize_rows(rows.reshape(-1).view(np.uint8), f32, values.size // n_in, n_in, int(kind), out, 1)
    assert bad is None
    return out.reshape(*values.shape[:-1], n_in // elements * n_bytes)


def _add(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_int64(key, value) if not 0 <= value < 2**32 else writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case list():
            writer.add_array(key, value)


def ints(values: Sequence[int]) -> np.ndarray:
    return np.array(values, np.int32)


class Runner:
    """One program with simple paging: sequence i owns the pages [i * pages_each, (i + 1) * pages_each)."""

    def __init__(
        self,
        path: Path,
        *,
        kv_type: str = "f16",
        threads: int = 1,
        level: str | None = None,
        max_rows: int = 64,
        n_seqs: int = 4,
        pages_each: int = 4,
        page_tokens: int = 32,
        context_tokens: int = 0,
    ) -> None:
        self.file = ModelFile.open(path)
        self.config: ModelConfig = read_config(self.file)
        self.max_rows = max_rows
        self.pages_each = pages_each
        arena = Arena(
            n_layers=self.config.n_layers,
            n_kv_heads=self.config.n_kv_heads,
            head_dim=self.config.head_dim,
            page_tokens=page_tokens,
            n_pages=n_seqs * pages_each,
            kv_type=kv_type,
        )
        self.program: Program = build_program(
            build_graph(self.config),
            self.config,
            self.file,
            pool=ThreadPool(threads),
            arena=arena,
            max_rows=max_rows,
            context_tokens=context_tokens,
            level=level,
        )

    def embed(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """Return (n_sequences, n_embd), computed in one step."""
        tokens = [token for sequence in sequences for token in sequence]
        return self.program.embed_step(
            ints(tokens),
            ints([i for sequence in sequences for i in range(len(sequence))]),
            ints(np.cumsum([0] + [len(sequence) for sequence in sequences])),
            ints([self.pages_each * i for i in range(len(sequences) + 1)]),
            ints(range(self.pages_each * len(sequences))),
        )

    def step(
        self,
        parts: Sequence[tuple[int, int, Sequence[int]]],
        out_rows: Sequence[int],
        samplers: Sequence[Sampler | None] | None = None,
        targets: Sequence[int] | None = None,
        page_lists: Sequence[Sequence[int]] | None = None,
    ) -> StepResult:
        """Run one step; parts are (sequence, first position, tokens).  page_lists: of each part, instead of its own."""
        tokens = [token for _, _, part in parts for token in part]
        positions = [first + i for _, first, part in parts for i in range(len(part))]
        if page_lists is None:
            page_lists = [range(seq * self.pages_each, (seq + 1) * self.pages_each) for seq, _, _ in parts]
        return StepResult(
            *self.program.step(
                ints(tokens),
                ints(positions),
                ints(np.cumsum([0] + [len(part) for _, _, part in parts])),
                ints(np.cumsum([0] + [len(pages) for pages in page_lists])),
                ints([page for pages in page_lists for page in pages]),
                ints(out_rows),
                list(samplers if samplers is not None else [None] * len(out_rows)),
                ints(targets if targets is not None else [-1] * len(out_rows)),
            )
        )

    def top_logprobs(self, tokens: Sequence[int], *, seq: int = 0, chunk: int = 64) -> list[dict[int, float]]:
        """Return the best alternatives behind each token, computing `chunk` rows a step."""
        found = []
        for first in range(0, len(tokens), chunk):
            part = tokens[first : first + chunk]
            samplers = [greedy() for _ in part]
            result = self.step([(seq, first, part)], range(len(part)), samplers)
            assert not result.outcomes.any()
            found += [
                {int(i): float(p) for i, p in zip(ids, values, strict=True) if i >= 0}
                for ids, values in zip(result.top_ids, result.top_logprobs, strict=True)
            ]
        return found

    def logprobs(self, tokens: Sequence[int], **kwargs: int) -> np.ndarray:
        """Return (n_tokens, n_vocab) log-probabilities of a model with at most 20 tokens."""
        rows = self.top_logprobs(tokens, **kwargs)
        return np.array([[row[i] for i in range(self.config.n_vocab)] for row in rows], np.float32)


def greedy(top_logprobs: int = MAX_TOP_LOGPROBS) -> Sampler:
    return Sampler(temperature=0, top_logprobs=top_logprobs)
