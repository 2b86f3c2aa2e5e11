"""The demo model: a small llama with grouped-query attention, in plain PyTorch."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

QUANT_BLOCK = 32


@dataclass(frozen=True)
class Config:
    """Shape of the model; every weight row is a multiple of 256 so k-quants fit."""

    vocab: int = 2048
    width: int = 256
    hidden: int = 768
    layers: int = 5
    heads: int = 4
    kv_heads: int = 2
    context: int = 1024
    rope_base: float = 10000.0
    eps: float = 1e-5

    @property
    def head_width(self) -> int:
        return self.width // self.heads


def round_to_4_bits(weight: Tensor) -> Tensor:
    """Round each block of 32 weights of a row to 16 even steps, as 4-bit formats do."""
    blocks = weight.reshape(-1, QUANT_BLOCK)
    low = blocks.amin(1, keepdim=True).clamp(max=0)
    step = ((blocks.amax(1, keepdim=True) - low) / 15).clamp(min=1e-8)
    return (((blocks - low) / step).round() * step + low).view_as(weight)


class Linear(nn.Linear):
    """Linear layer without bias that can see its own weights rounded to 4 bits."""

    rounded = False

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if self.rounded:
            # The gradient passes straight through: rounding itself has none.
            weight = weight + (round_to_4_bits(weight) - weight).detach()
        return functional.linear(x, weight)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x (batch, heads, time, head_width), cos and sin (time, head_width/2).

    Pairs are neighbours (2i, 2i + 1): the order the GGUF "llama" architecture expects, so
    the exported rows need no permutation.
    """
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Block(nn.Module):
    """Attention and SwiGLU feed-forward, each behind an RMS norm with a residual."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        kv_width = c.kv_heads * c.head_width
        self.attn_norm = nn.RMSNorm(c.width, c.eps)
        self.attn_q = Linear(c.width, c.width)
        self.attn_k = Linear(c.width, kv_width)
        self.attn_v = Linear(c.width, kv_width)
        self.attn_output = Linear(c.width, c.width)
        self.ffn_norm = nn.RMSNorm(c.width, c.eps)
        self.ffn_gate = Linear(c.width, c.hidden)
        self.ffn_up = Linear(c.width, c.hidden)
        self.ffn_down = Linear(c.hidden, c.width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map x (batch, time, width) to the same shape."""
        c = self.c
        n, t, _ = x.shape
        h = self.attn_norm(x)
        q = self.attn_q(h).view(n, t, c.heads, c.head_width).transpose(1, 2)
        k = self.attn_k(h).view(n, t, c.kv_heads, c.head_width).transpose(1, 2)
        v = self.attn_v(h).view(n, t, c.kv_heads, c.head_width).transpose(1, 2)
        group = c.heads // c.kv_heads
        k = rotate(k, cos, sin).repeat_interleave(group, 1)
        v = v.repeat_interleave(group, 1)
        a = functional.scaled_dot_product_attention(rotate(q, cos, sin), k, v, is_causal=True)
        x = x + self.attn_output(a.transpose(1, 2).reshape(n, t, c.width))
        h = self.ffn_norm(x)
        out: Tensor = x + self.ffn_down(functional.silu(self.ffn_gate(h)) * self.ffn_up(h))
        return out


class Llama(nn.Module):
    """Decoder with tied embeddings; parameter names follow those of GGUF."""

    cos: Tensor
    sin: Tensor

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.token_embd = nn.Embedding(c.vocab, c.width)
        self.blk = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.output_norm = nn.RMSNorm(c.width, c.eps)
        pairs = torch.arange(0, c.head_width, 2, dtype=torch.float64) / c.head_width
        angles = torch.outer(torch.arange(c.context, dtype=torch.float64), c.rope_base**-pairs)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                # Blocks start as the identity: their last matrices are zero.
                last = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.zeros_(p) if last else nn.init.normal_(p, std=0.02)

    def hidden(self, ids: Tensor) -> Tensor:
        """Return what the last layer makes of token ids (batch, time), normed: (batch, time, width)."""
        t = ids.shape[1]
        x = self.token_embd(ids)
        for block in self.blk:
            x = block(x, self.cos[:t], self.sin[:t])
        out: Tensor = self.output_norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Map the last layer's rows (..., width) to logits (..., vocab)."""
        return functional.linear(hidden, self.token_embd.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits (batch, time, vocab) for token ids (batch, time)."""
        return self.logits(self.hidden(ids))

    def round_weights(self, on: bool) -> None:
        """Switch the view of 4-bit weights on or off in every linear layer."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.rounded = on
