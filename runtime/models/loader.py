"""From a declared graph and a model file to a native program.

Every declared weight is checked before anything is built, and all faults are reported at once.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

import numpy as np

from runtime._native import Arena, Program, ThreadPool, type_traits
from runtime.errors import ModelFormatError, UnsupportedModelError
from runtime.gguf import ModelFile, TensorInfo
from runtime.models.config import ModelConfig
from runtime.models.graph import (
    Attention,
    Buffer,
    Embed,
    GatedLinear,
    Graph,
    Head,
    HeadNorm,
    Linear,
    Op,
    RmsNorm,
    Select,
    Weight,
)

_LOG = logging.getLogger(__name__)
_MAX_SHOWN = 20
# Weights of a layer that no operation reads would change the answers if they were used.
_LAYER_WEIGHT = re.compile(r"blk\.\d+\.(attn|ffn|post|layer|ssm|indexer)[a-z0-9_]*\.(weight|bias)")
_HARMLESS = re.compile(r"blk\.\d+\.attn_rot_embd\.(weight|bias)|rope_freqs\.weight")


@dataclass(frozen=True, slots=True)
class Bindings:
    """Which tensor of the file each declared weight is; None for an optional one that is absent."""

    tensors: dict[Weight, TensorInfo | None]


def bind_weights(graph: Graph, file: ModelFile) -> Bindings:
    """Find every declared weight in the file.

    Raises ModelFormatError that names all missing and mis-shaped tensors at once (BAD_TENSORS),
    UnsupportedModelError for tensors of types that cannot be served.  Tensors that nothing reads are logged, and
    refused where they belong to a layer's computation.
    """
    tensors: dict[Weight, TensorInfo | None] = {}
    faults: list[tuple[str, str]] = []
    types: list[str] = []
    for weight in graph.weights():
        info = _find(weight, file)
        tensors[weight] = info
        if info is None:
            if weight.required:
                faults.append((weight.name, f"{weight.name} is missing; it must be {_shape(weight.shape)}"))
            continue
        # GGUF keeps the row length first, and a vector has one dimension
        found = tuple(reversed(info.shape))
        if found != weight.shape:
            faults.append((info.name, f"{info.name} is {_shape(found)}; it must be {_shape(weight.shape)}"))
        elif weight.is_vector and info.type_name != "F32":
            types.append(f"{info.name} is {info.type_name}; vectors must be F32")
        elif not weight.is_vector and not type_traits(info.type_id)[3]:
            types.append(f"{info.name} is {info.type_name}, which is not a type of weights")
    if faults:
        raise ModelFormatError("BAD_TENSORS", faults[0][0], 0, _listing(file, [text for _, text in faults]))
    if types:
        raise UnsupportedModelError(_listing(file, types))
    _report_unused(file, {info.name for info in tensors.values() if info is not None})
    return Bindings(tensors)


def build_program(
    graph: Graph,
    config: ModelConfig,
    file: ModelFile,
    *,
    pool: ThreadPool,
    arena: Arena,
    max_rows: int,
    level: str | None = None,
) -> Program:
    """Check the weights and build the native program, ready for its first step."""
    bindings = bind_weights(graph, file)
    frequencies = rope_frequencies(config)
    if graph.rope_factors is not None and bindings.tensors[graph.rope_factors] is not None:
        frequencies = frequencies / _rope_factors(file, graph.rope_factors)
    program = Program(
        pool,
        arena,
        n_vocab=config.n_vocab,
        max_rows=max_rows,
        rope_frequencies=frequencies.tolist(),
        level=level,
    )
    _Builder(program, file, bindings).build(graph)
    return program


def rope_frequencies(config: ModelConfig) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the (rope_dim / 2,) rotation frequencies in radians per position, before any factors."""
    exponents = np.arange(config.rope_dim // 2, dtype=np.float64) * 2.0 / config.rope_dim
    return 1.0 / (config.rope_freq_base**exponents * config.rope_scale)


def _rope_factors(file: ModelFile, weight: Weight) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    factors = file.data(weight.name).view(np.float32).astype(np.float64)
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise ModelFormatError(
            "BAD_TENSORS", weight.name, 0, f"{file.path}: {weight.name} must hold finite values above 0"
        )
    return factors


def _find(weight: Weight, file: ModelFile) -> TensorInfo | None:
    info = file.tensors.get(weight.name)
    if info is None and weight.instead is not None:
        info = file.tensors.get(weight.instead)
    return info


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _listing(file: ModelFile, faults: list[str]) -> str:
    more = f"; and {len(faults) - _MAX_SHOWN} more" if len(faults) > _MAX_SHOWN else ""
    return f"{file.path}: {len(faults)} tensor(s) do not fit the architecture: {'; '.join(faults[:_MAX_SHOWN])}{more}"


def _report_unused(file: ModelFile, used: set[str]) -> None:
    unused = [name for name in file.tensors if name not in used and not _HARMLESS.fullmatch(name)]
    unserved = [name for name in unused if _LAYER_WEIGHT.fullmatch(name)]
    if unserved:
        shown = ", ".join(unserved[:_MAX_SHOWN])
        raise UnsupportedModelError(
            f"{file.path}: architecture {file.architecture!r} as quantd serves it has no use for {len(unserved)} of the "
            f"layers' tensors ({shown}); without them the answers would be wrong"
        )
    if unused:
        _LOG.warning(
            "%s: %d tensors are not used: %s", file.path, len(unused), ", ".join(unused[:_MAX_SHOWN])
        )


class _Builder:
    """Hands a graph over to the native program, giving each name its index once."""

    def __init__(self, program: Program, file: ModelFile, bindings: Bindings) -> None:
        self._program = program
        self._file = file
        self._bindings = bindings
        self._indices: dict[str, int] = {}  # tensor name -> index
        self._buffers: dict[Buffer, int] = {}

    def build(self, graph: Graph) -> None:
        for buffer in graph.buffers():
            self._buffers[buffer] = self._program.buffer(buffer.name, buffer.width)
        for op in graph.ops:
            self._add(op)
        self._program.finish()

    def _weight(self, weight: Weight | None) -> int:
        """Return the native index, -1 for a weight that is absent."""
        info = None if weight is None else self._bindings.tensors[weight]
        if weight is None or info is None:
            return -1
        if info.name not in self._indices:
            register = self._program.vector if weight.is_vector else self._program.matrix
            self._indices[info.name] = register(self._file.shards[info.shard], info.name)
        return self._indices[info.name]

    def _add(self, op: Op) -> None:
        program, weight, buffers = self._program, self._weight, self._buffers
        match op:
            case Embed(table, out):
                program.embed(table=weight(table), out=buffers[out])
            case RmsNorm(source, scale, out, eps):
                program.rms_norm(source=buffers[source], weight=weight(scale), out=buffers[out], eps=eps)
            case HeadNorm(buffer, scale, head_dim, eps):
                program.head_norm(buffer=buffers[buffer], weight=weight(scale), head_dim=head_dim, eps=eps)
            case Linear(source, projections, accumulate):
                targets = [(weight(p.weight), weight(p.bias), buffers[p.out]) for p in projections]
                program.linear(source=buffers[source], targets=targets, accumulate=accumulate)
            case GatedLinear(source, gate, up, out):
                program.gated_linear(
                    source=buffers[source], gate=weight(gate), up=weight(up), out=buffers[out]
                )
            case Attention(q, k, v, out, layer, n_heads, interleaved, scale):
                program.attention(
                    q=buffers[q],
                    k=buffers[k],
                    v=buffers[v],
                    out=buffers[out],
                    layer=layer,
                    n_heads=n_heads,
                    interleaved=interleaved,
                    scale=scale,
                )
            case Select(source, out):
                program.select(source=buffers[source], out=buffers[out])
            case Head(source, table):
                program.head(source=buffers[source], weight=weight(table))
