"""Tiny random models, a NumPy forward to compare with, and a runner that pages and chunks like the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import gguf
import numpy as np

from runtime._native import Arena, Program, Sampler, ThreadPool
from runtime.gguf import ModelFile
from runtime.models import build_graph
from runtime.models.config import ModelConfig, read_config
from runtime.models.loader import build_program
from runtime.step_plan import MAX_TOP_LOGPROBS, StepResult

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
    biases: bool = False
    rope_scale: float | None = None
    quant: str = "F32"  # of the matrices
    seed: int = 1
    keys: dict[str, object] = field(default_factory=dict)  # overrides; None removes the key
    skip: tuple[str, ...] = ()  # tensors left out
    tensors: dict[str, np.ndarray] = field(default_factory=dict)  # replaced or added, unquantized

    def but(self, **changes: object) -> Tiny:
        return replace(self, **changes)  # type: ignore[arg-type]


def shapes(t: Tiny) -> dict[str, tuple[int, ...]]:
    """Return every tensor of the model with its (n_out, n_in) or (n,) shape."""
    q, kv = t.n_heads * t.head_dim, t.n_kv_heads * t.head_dim
    out: dict[str, tuple[int, ...]] = {"token_embd.weight": (t.n_vocab, t.n_embd)}
    for i in range(t.n_layers):
        p = f"blk.{i}."
        out |= {
            p + "attn_norm.weight": (t.n_embd,),
            p + "attn_q.weight": (q, t.n_embd),
            p + "attn_k.weight": (kv, t.n_embd),
            p + "attn_v.weight": (kv, t.n_embd),
            p + "attn_output.weight": (t.n_embd, q),
            p + "ffn_norm.weight": (t.n_embd,),
            p + "ffn_gate.weight": (t.n_ff, t.n_embd),
            p + "ffn_up.weight": (t.n_ff, t.n_embd),
            p + "ffn_down.weight": (t.n_embd, t.n_ff),
        }
        if t.biases or t.arch == "qwen2":
            out |= {p + "attn_q.bias": (q,), p + "attn_k.bias": (kv,), p + "attn_v.bias": (kv,)}
        if t.arch == "qwen3":
            out |= {p + "attn_q_norm.weight": (t.head_dim,), p + "attn_k_norm.weight": (t.head_dim,)}
    out["output_norm.weight"] = (t.n_embd,)
    if not t.tied:
        out["output.weight"] = (t.n_vocab, t.n_embd)
    if t.rope_factors:
        out["rope_freqs.weight"] = (t.head_dim // 2,)
    return out


def metadata(t: Tiny) -> dict[str, object]:
    values: dict[str, object] = {
        "block_count": t.n_layers,
        "context_length": t.context,
        "embedding_length": t.n_embd,
        "feed_forward_length": t.n_ff,
        "attention.head_count": t.n_heads,
        "attention.head_count_kv": t.n_kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
    }
    if t.head_dim * t.n_heads != t.n_embd:
        values |= {"attention.key_length": t.head_dim, "attention.value_length": t.head_dim}
    if t.rope_scale is not None:
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": t.rope_scale}
    values |= t.keys
    return {f"{t.arch}.{key}": value for key, value in values.items() if value is not None}


def write_tiny(path: Path, t: Tiny) -> Path:
    """Write the model; matrices in its type, vectors in F32."""
    rng = np.random.default_rng(t.seed)
    writer = gguf.GGUFWriter(path, t.arch)
    for key, value in metadata(t).items():
        _add(writer, key, value)
    tensors: dict[str, np.ndarray] = {}
    for name, shape in shapes(t).items():
        if len(shape) == 2:
            values = rng.standard_normal(shape) * 1.5 / np.sqrt(shape[1])
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
    for name, values in tensors.items():
        if values.ndim == 2 and name not in t.tensors and quant != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, gguf.quants.quantize(values, quant), raw_dtype=quant)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


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


def numpy_logprobs(path: Path, tokens: Sequence[int]) -> np.ndarray:
    """Return (n_tokens, n_vocab) log-probabilities in float64, from the file's own values, with exact activations."""
    reader = gguf.GGUFReader(path)
    arch = reader.fields["general.architecture"].contents()
    key = lambda name, default=None: (  # noqa: E731
        reader.fields[f"{arch}.{name}"].contents() if f"{arch}.{name}" in reader.fields else default
    )
    w = {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type)
        .astype(np.float64)
        .reshape([int(n) for n in reversed(t.shape)])
        for t in reader.tensors
    }
    n_heads, n_kv, eps = (
        key("attention.head_count"),
        key("attention.head_count_kv"),
        key("attention.layer_norm_rms_epsilon"),
    )
    dim = key("attention.key_length", key("embedding_length") // n_heads)
    n_rot = key("rope.dimension_count", dim)
    inverse = key("rope.freq_base", 10000.0) ** (-np.arange(0, n_rot, 2) / n_rot) / key(
        "rope.scaling.factor", 1.0
    )
    angles = np.arange(len(tokens))[:, None] * inverse / w.get("rope_freqs.weight", 1.0)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def norm(x, weight):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight

    def rotate(x):
        out = x.copy()
        first, second = (np.s_[..., 0:n_rot:2], np.s_[..., 1:n_rot:2])
        if arch != "llama":
            first, second = (np.s_[..., : n_rot // 2], np.s_[..., n_rot // 2 : n_rot])
        out[first] = x[first] * cos - x[second] * sin
        out[second] = x[first] * sin + x[second] * cos
        return out

    n = len(tokens)
    x = w["token_embd.weight"][list(tokens)]
    mask = np.triu(np.full((n, n), -np.inf), 1)
    for i in range(key("block_count")):
        p = f"blk.{i}."

        def linear(name, y, p=p):
            return y @ w[f"{p}{name}.weight"].T + w.get(f"{p}{name}.bias", 0.0)

        h = norm(x, w[p + "attn_norm.weight"])
        q, k, v = (linear(f"attn_{c}", h).reshape(n, -1, dim) for c in "qkv")
        if arch == "qwen3":
            q, k = norm(q, w[p + "attn_q_norm.weight"]), norm(k, w[p + "attn_k_norm.weight"])
        k, v = (np.repeat(y, n_heads // n_kv, 1) for y in (rotate(k), v))
        scores = np.einsum("thd,shd->hts", rotate(q), k) / np.sqrt(dim) + mask
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        x = x + linear("attn_output", np.einsum("hts,shd->thd", weights, v).reshape(n, -1))
        h = norm(x, w[p + "ffn_norm.weight"])
        gate = linear("ffn_gate", h)
        x = x + linear("ffn_down", gate / (1 + np.exp(-gate)) * linear("ffn_up", h))
    logits = norm(x, w["output_norm.weight"]) @ w.get("output.weight", w["token_embd.weight"]).T
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


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
            level=level,
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
            assert result.finite.all()
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
