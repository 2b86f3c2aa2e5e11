"""The vocabulary in which an architecture is described: weights by their GGUF names, buffers and operations.

An architecture is a function from its configuration to a `Graph`, a flat list of fused operations.  The loader
(runtime/models/loader.py) walks it twice: once to check every weight against the file, once to build the native
program.  Nothing here computes.

Shapes are written row count first, as in NumPy: a matrix (n_out, n_in) has n_out rows of n_in elements.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, TypeAlias, TypeVar


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of the model file."""

    name: str  # GGUF name
    shape: tuple[int, ...]  # (n_out, n_in) of a matrix, (n,) of a vector
    required: bool = True
    instead: str | None = None  # the tensor that takes its place where it is absent (tied embeddings)

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
    """out = table[token of each row]"""

    table: Weight  # (n_vocab, out.width)
    out: Buffer


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """out = input / sqrt(mean(input^2) + eps) * weight"""

    input: Buffer
    weight: Weight  # (input.width,)
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
    """out = silu(gate . input) * (up . input)"""

    input: Buffer
    gate: Weight  # (out.width, input.width)
    up: Weight  # (out.width, input.width)
    out: Buffer


@dataclass(frozen=True, slots=True)
class Attention:
    """Rotates q and k, appends k and v to the session's pages, attends over all positions up to each row's own."""

    q: Buffer  # (n_rows, n_heads, head_dim)
    k: Buffer  # (n_rows, n_kv_heads, head_dim)
    v: Buffer  # (n_rows, n_kv_heads, head_dim)
    out: Buffer  # (n_rows, n_heads, head_dim)
    layer: int
    n_heads: int
    interleaved: bool  # rotated pairs are (2i, 2i + 1); otherwise (i, i + rope_dim / 2)
    scale: float


@dataclass(frozen=True, slots=True)
class Select:
    """out = the rows of input whose logits are wanted; only a norm and the head may follow."""

    input: Buffer
    out: Buffer


@dataclass(frozen=True, slots=True)
class Head:
    """logits = weight . input, scored and sampled."""

    input: Buffer
    weight: Weight  # (n_vocab, input.width)


Op: TypeAlias = Embed | RmsNorm | HeadNorm | Linear | GatedLinear | Attention | Select | Head


@dataclass(frozen=True, slots=True)
class Graph:
    """One architecture with one configuration."""

    ops: tuple[Op, ...]
    rope_factors: Weight | None = None  # (rope_dim / 2,) divisors of the rotation frequencies

    def weights(self) -> list[Weight]:
        """Return every declared weight once, in the order of use."""
        found = dict.fromkeys(weight for op in self.ops for weight in _parts(op, Weight))
        if self.rope_factors is not None:
            found[self.rope_factors] = None
        return list(found)

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
