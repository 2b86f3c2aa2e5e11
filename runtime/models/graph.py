"""The vocabulary in which an architecture is described: weights by their GGUF names, buffers and operations.

An architecture is a function from its configuration to a `Graph`, a flat list of fused operations.  The loader
(runtime/models/loader.py) walks it twice: once to check every weight against the file, once to build the native
program.  Nothing here computes.

Shapes are written row count first, as in NumPy: a matrix (n_out, n_in) has n_out rows of n_in elements.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, TypeVar

from runtime.models.config import RopeScaling


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of the model file, or some rows of it where several matrices lie in one tensor."""

    name: str  # GGUF name
    shape: tuple[
        int, ...
    ]  # of the whole tensor: (n_out, n_in) of a matrix, (n_experts, n_out, n_in), (n,) of a vector
    required: bool = True
    instead: str | None = None  # the tensor that takes its place where it is absent (tied embeddings)
    rows: tuple[int, int] | None = None  # [begin, end) of the rows that are meant; None: all

    @property
    def is_vector(self) -> bool:
        return len(self.shape) == 1


@dataclass(frozen=True, slots=True)
class Buffer:
    """Activations of a step: (n_rows, width) floats.  Buffers of one name are one buffer."""

    name: str
    width: int


@dataclass(frozen=True, slots=True)
class Embed:
    """out = table[token of each row] * scale"""

    table: Weight  # (n_vocab, out.width)
    out: Buffer
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class AddRow:
    """out += table[position of each row], or += table[0]: learned positions and token types of encoders."""

    table: Weight  # (n, out.width); a row for every position where `by` is "position"
    out: Buffer
    by: Literal["position", "first"]


@dataclass(frozen=True, slots=True)
class Add:
    """out += input * scale"""

    input: Buffer
    out: Buffer
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """out = input / sqrt(mean(input^2) + eps) * weight"""

    input: Buffer
    weight: Weight  # (input.width,)
    out: Buffer
    eps: float


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """out = (input - mean(input)) / sqrt(variance(input) + eps) * weight + bias"""

    input: Buffer
    weight: Weight  # (input.width,)
    bias: Weight  # (input.width,)
    out: Buffer
    eps: float


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """RMS norm of each head of each row on its own, in place."""

    buffer: Buffer  # (n_rows, n_heads, head_dim)
    weight: Weight  # (head_dim,)
    head_dim: int
    eps: float


@dataclass(frozen=True, slots=True)
class Projection:
    """One matrix of a `Linear`, with where its result goes.  An optional bias that the file lacks is left out."""

    weight: Weight  # (out.width, input.width)
    out: Buffer
    bias: Weight | None = None  # (out.width,)


@dataclass(frozen=True, slots=True)
class Linear:
    """out_i = weight_i . input (+ bias_i), or out_i += ...; all matrices that read one input in one region."""

    input: Buffer
    projections: tuple[Projection, ...]
    accumulate: bool = False


@dataclass(frozen=True, slots=True)
class GatedLinear:
    """out = activation(gate . input) * (up . input)"""

    input: Buffer
    gate: Weight  # (out.width, input.width)
    up: Weight  # (out.width, input.width)
    out: Buffer
    activation: Literal["silu", "gelu"] = "silu"  # gelu in its tanh form


@dataclass(frozen=True, slots=True)
class Gelu:
    """buffer = gelu(buffer), in the form with erf."""

    buffer: Buffer


@dataclass(frozen=True, slots=True)
class Experts:
    """out += sum over the n_used best experts of p_e * down_e . (silu(gate_e . input) * (up_e . input)).

    p is the softmax of the router's logits, scaled so that the probabilities of the experts in use sum to one.
    """

    input: Buffer
    router: Weight  # (n_experts, input.width)
    gate: Weight  # (n_experts, n_ff, input.width)
    up: Weight  # (n_experts, n_ff, input.width)
    down: Weight  # (n_experts, out.width, n_ff)
    out: Buffer
    n_used: int


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotation of q and k by their positions (RoPE, arXiv:2104.09864)."""

    freq_base: float
    dim: int  # rotated elements of a head, even
    interleaved: bool  # rotated pairs are (2i, 2i + 1); otherwise (i, i + dim / 2)
    scaling: RopeScaling
    factors: Weight | None = None  # (dim / 2,) divisors of the frequencies
    long_factors: Weight | None = (
        None  # take their place where the context is longer than scaling.original_context
    )


@dataclass(frozen=True, slots=True)
class Attention:
    """Rotates q and k, appends k and v to the session's pages, attends over the positions that each row sees."""

    q: Buffer  # (n_rows, n_heads, head_dim)
    k: Buffer  # (n_rows, n_kv_heads, head_dim)
    v: Buffer  # (n_rows, n_kv_heads, head_dim)
    out: Buffer  # (n_rows, n_heads, head_dim)
    layer: int
    n_heads: int
    rope: Rope | None  # None: no rotation
    scale: float
    window: int = 0  # newest positions that are seen, a row's own included; 0: all up to its own
    softcap: float = 0.0  # scores become softcap * tanh(score / softcap); 0: they do not
    causal: bool = True  # False: every position of the sequence is seen, which must be computed in one step


@dataclass(frozen=True, slots=True)
class Select:
    """out = the rows of input whose logits are wanted; only a norm and the head may follow."""

    input: Buffer
    out: Buffer


@dataclass(frozen=True, slots=True)
class Head:
    """logits = weight . input * scale, capped as in `Attention`, scored and sampled."""

    input: Buffer
    weight: Weight  # (n_vocab, input.width)
    scale: float = 1.0
    softcap: float = 0.0


@dataclass(frozen=True, slots=True)
class Pool:
    """One vector of each sequence, of length 1: the mean of its rows, its first or its last one.  Ends an encoder."""

    input: Buffer
    kind: Literal["mean", "cls", "last"]


Op: TypeAlias = (
    Embed
    | AddRow
    | Add
    | RmsNorm
    | LayerNorm
    | HeadNorm
    | Linear
    | GatedLinear
    | Gelu
    | Experts
    | Attention
    | Select
    | Head
    | Pool
)


@dataclass(frozen=True, slots=True)
class Graph:
    """One architecture with one configuration."""

    ops: tuple[Op, ...]

    def weights(self) -> list[Weight]:
        """Return every declared weight once, in the order of use."""
        return list(dict.fromkeys(weight for op in self.ops for weight in _parts(op, Weight)))

    def ropes(self) -> list[Rope]:
        """Return every rotation once, in the order of use."""
        return list(dict.fromkeys(rope for op in self.ops for rope in _parts(op, Rope)))

    def buffers(self) -> list[Buffer]:
        """Return every buffer once, in the order of use."""
        return list(dict.fromkeys(buffer for op in self.ops for buffer in _parts(op, Buffer)))


_T = TypeVar("_T")


def _parts(value: Any, kind: type[_T]) -> Iterator[_T]:
    """Yield all parts of an operation that are of a kind, in field order."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _parts(item, kind)
    elif hasattr(value, "__dataclass_fields__"):
        for field in fields(value):
            yield from _parts(getattr(value, field.name), kind)
