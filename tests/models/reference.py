"""A NumPy forward in float64 of every served architecture, written from the models' papers and published code.

It reads the file with the gguf package and shares nothing with the runtime.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np

INTERLEAVED = ("llama", "granite", "smollm3")
ENCODERS = ("bert", "nomic-bert")


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_erf(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


class Reference:
    """One model file, computed in float64 from its own values."""

    def __init__(self, path: Path, *, context: int = 0) -> None:
        reader = gguf.GGUFReader(path)
        self.fields = {name: field.contents() for name, field in reader.fields.items()}
        self.arch = self.fields["general.architecture"]
        self.w = {
            t.name: gguf.quants.dequantize(t.data, t.tensor_type)
            .astype(np.float64)
            .reshape([int(n) for n in reversed(t.shape)])
            for t in reader.tensors
        }
        self.n_embd = self.key("embedding_length")
        self.n_heads = self.key("attention.head_count")
        self.n_kv = self.key("attention.head_count_kv", self.n_heads)
        self.dim = self.key("attention.key_length", self.n_embd // self.n_heads)
        self.n_rot = self.key("rope.dimension_count", self.dim)
        self.n_layers = self.key("block_count")
        self.context = context

    def key(self, name: str, default=None):
        return self.fields.get(f"{self.arch}.{name}", default)

    # ---- parts

    def linear(self, name: str, y: np.ndarray) -> np.ndarray:
        return y @ self.w[f"{name}.weight"].T + self.w.get(f"{name}.bias", 0.0)

    def rms(self, x: np.ndarray, name: str) -> np.ndarray:
        eps = self.key("attention.layer_norm_rms_epsilon")
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * self.w[f"{name}.weight"]

    def layer_norm(self, x: np.ndarray, name: str) -> np.ndarray:
        eps = self.key("attention.layer_norm_epsilon")
        centered = x - x.mean(-1, keepdims=True)
        normed = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + eps)
        return normed * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def window(self, layer: int) -> int:
        window = self.key("attention.sliding_window", 4096 if self.arch == "gemma2" else 0)
        every = {"gemma2": 2, "gemma3": 6, "olmo2": 4, "llama": 0, "phi3": 0}.get(self.arch)
        if every is None:
            return 0
        pattern = self.key("attention.sliding_window_pattern", every)
        if isinstance(pattern, list):
            return window if pattern[layer] else 0
        return 0 if pattern and (layer + 1) % pattern == 0 else window

    def rotate(self, x: np.ndarray, layer: int) -> np.ndarray:
        """x (n_tokens, n_heads, head_dim) by its positions."""
        if self.arch == "bert" or (self.arch == "smollm3" and layer % 4 == 3):
            return x
        n_rot, base = self.n_rot, self.key("rope.freq_base", 10000.0)
        kind, factor = self.key("rope.scaling.type", "linear"), self.key("rope.scaling.factor", 1.0)
        original = self.key("rope.scaling.original_context_length", self.key("context_length"))
        if self.window(layer) and self.arch in ("gemma3", "olmo2"):
            base = self.key("rope.freq_base_swa", 10000.0 if self.arch == "gemma3" else base)
            kind, factor = "linear", 1.0
        i = np.arange(n_rot // 2)
        inverse = base ** (-2.0 * i / n_rot)
        inverse = inverse / self.w.get("rope_freqs.weight", 1.0)
        size = "long" if self.context > original else "short"
        inverse = inverse / self.w.get(f"rope_factors_{size}.weight", 1.0)
        magnitude = self.key("rope.scaling.attn_factor", 1.0)
        if kind == "yarn":
            # A pair that turns beta times within the original context, solved for the pair's number.
            number = [
                n_rot * math.log(original / (2 * math.pi * beta)) / (2 * math.log(base))
                for beta in (
                    self.key("rope.scaling.yarn_beta_fast", 32.0),
                    self.key("rope.scaling.yarn_beta_slow", 1.0),
                )
            ]
            low, high = max(math.floor(number[0]), 0), min(math.ceil(number[1]), n_rot - 1)
            slow = np.clip((i - low) / max(high - low, 0.001), 0, 1)
            inverse = inverse * (1 - slow) + inverse / factor * slow
            magnitude *= 0.1 * math.log(factor) + 1
        else:
            inverse = inverse / factor
        angles = np.arange(len(x))[:, None] * inverse
        cos, sin = magnitude * np.cos(angles)[:, None], magnitude * np.sin(angles)[:, None]
        first, second = np.s_[..., : n_rot // 2], np.s_[..., n_rot // 2 : n_rot]
        if self.arch in INTERLEAVED:
            first, second = np.s_[..., 0:n_rot:2], np.s_[..., 1:n_rot:2]
        out = x.copy()
        out[first] = x[first] * cos - x[second] * sin
        out[second] = x[first] * sin + x[second] * cos
        return out

    def attention(self, h: np.ndarray, layer: int) -> np.ndarray:
        p, n = f"blk.{layer}.", len(h)
        if p + "attn_qkv.weight" in self.w:
            cuts = np.cumsum([self.n_heads * self.dim, self.n_kv * self.dim])
            q, k, v = np.split(self.linear(p + "attn_qkv", h), cuts, axis=-1)
        else:
            q, k, v = (self.linear(f"{p}attn_{c}", h) for c in "qkv")
        if self.arch == "olmo2":
            q, k = self.rms(q, p + "attn_q_norm"), self.rms(k, p + "attn_k_norm")
        q, k, v = (y.reshape(n, -1, self.dim) for y in (q, k, v))
        if self.arch in ("qwen3", "qwen3moe", "gemma3"):
            q, k = self.rms(q, p + "attn_q_norm"), self.rms(k, p + "attn_k_norm")
        k, v = (np.repeat(y, self.n_heads // self.n_kv, 1) for y in (self.rotate(k, layer), v))
        scores = np.einsum("thd,shd->hts", self.rotate(q, layer), k)
        scores = scores * (self.key("attention.scale") or self.dim**-0.5)
        cap = self.key("attn_logit_softcapping", 50.0) if self.arch == "gemma2" else 0
        if cap:
            scores = cap * np.tanh(scores / cap)
        if self.arch not in ENCODERS:
            distance = np.arange(n)[:, None] - np.arange(n)[None, :]
            seen = (distance >= 0) & (distance < (self.window(layer) or n))
            scores = np.where(seen, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return self.linear(p + "attn_output", np.einsum("hts,shd->thd", weights, v).reshape(n, -1))

    def feed_forward(self, h: np.ndarray, layer: int) -> np.ndarray:
        p = f"blk.{layer}."
        if p + "ffn_gate_inp.weight" in self.w:
            return self.mixture(h, p)
        up = self.linear(p + "ffn_up", h)
        if self.arch == "bert":
            return self.linear(p + "ffn_down", gelu_erf(up))
        if self.arch == "phi3":
            gate, up = np.split(up, 2, axis=-1)
        else:
            gate = self.linear(p + "ffn_gate", h)
        activation = gelu_tanh if self.arch in ("gemma2", "gemma3") else silu
        return self.linear(p + "ffn_down", activation(gate) * up)

    def mixture(self, h: np.ndarray, p: str) -> np.ndarray:
        logits = h @ self.w[p + "ffn_gate_inp.weight"].T
        out = np.zeros_like(h)
        for row, scores in enumerate(logits):
            best = np.argsort(-scores)[: self.key("expert_used_count")]
            shares = np.exp(scores[best] - scores[best].max())
            for expert, share in zip(best, shares / shares.sum(), strict=True):
                gate, up, down = (self.w[f"{p}ffn_{c}_exps.weight"][expert] for c in ("gate", "up", "down"))
                out[row] += share * (down @ (silu(gate @ h[row]) * (up @ h[row])))
        return out

    def layer(self, x: np.ndarray, layer: int) -> np.ndarray:
        p = f"blk.{layer}."
        if self.arch in ENCODERS:
            x = self.layer_norm(x + self.attention(x, layer), p + "attn_output_norm")
            return self.layer_norm(x + self.feed_forward(x, layer), p + "layer_output_norm")
        if self.arch == "olmo2":
            x = x + self.rms(self.attention(x, layer), p + "post_attention_norm")
            return x + self.rms(self.feed_forward(x, layer), p + "post_ffw_norm")
        if self.arch in ("gemma2", "gemma3"):
            x = x + self.rms(self.attention(self.rms(x, p + "attn_norm"), layer), p + "post_attention_norm")
            return x + self.rms(self.feed_forward(self.rms(x, p + "ffn_norm"), layer), p + "post_ffw_norm")
        residual = self.key("residual_scale", 1.0) if self.arch == "granite" else 1.0
        x = x + residual * self.attention(self.rms(x, p + "attn_norm"), layer)
        return x + residual * self.feed_forward(self.rms(x, p + "ffn_norm"), layer)

    def rows(self, tokens: Sequence[int]) -> np.ndarray:
        """The residual stream behind the last layer, (n_tokens, n_embd)."""
        x = self.w["token_embd.weight"][list(tokens)]
        if self.arch in ("gemma2", "gemma3"):
            x = x * math.sqrt(self.n_embd)
        if self.arch == "granite":
            x = x * self.key("embedding_scale", 1.0)
        if self.arch in ENCODERS:
            if "token_types.weight" in self.w:
                x = x + np.atleast_2d(self.w["token_types.weight"])[0]
            if self.arch == "bert":
                x = x + self.w["position_embd.weight"][: len(x)]
            x = self.layer_norm(x, "token_embd_norm")
        for layer in range(self.n_layers):
            x = self.layer(x, layer)
        return x

    def logprobs(self, tokens: Sequence[int]) -> np.ndarray:
        """(n_tokens, n_vocab) log-probabilities."""
        head = self.w.get("output.weight", self.w["token_embd.weight"])
        logits = self.rms(self.rows(tokens), "output_norm") @ head.T
        if self.arch == "granite":
            logits = logits / self.key("logit_scale", 1.0)
        cap = self.key("final_logit_softcapping", 30.0 if self.arch == "gemma2" else 0)
        if cap and self.arch in ("gemma2", "gemma3"):
            logits = cap * np.tanh(logits / cap)
        logits = logits - logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    def embedding(self, tokens: Sequence[int]) -> np.ndarray:
        """(n_embd,) the pooled rows, of length 1."""
        rows = self.rows(tokens)
        pooled = {1: rows.mean(0), 2: rows[0], 3: rows[-1]}[self.key("pooling_type", 1)]
        return pooled / np.linalg.norm(pooled)


def numpy_logprobs(path: Path, tokens: Sequence[int], *, context: int = 0) -> np.ndarray:
    return Reference(path, context=context).logprobs(tokens)
