"""From a declared graph and a model file to a native program.

Every declared weight is checked before anything is built, and all faults are reported at once.
"""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass

import numpy as np

from runtime._native import Arena, Program, ThreadPool, type_traits
from runtime.errors import ModelFormatError, UnsupportedModelError
from runtime.gguf import ModelFile, TensorInfo
from runtime.models.config import ModelConfig
from runtime.models.graph import (
    Add,
    AddRow,
    Attention,
    Buffer,
    Embed,
    Experts,
    GatedLinear,
    Gelu,
    Graph,
    Head,
    HeadNorm,
    LayerNorm,
    Linear,
    Op,
    Pool,
    RmsNorm,
    Rope,
    Select,
    Weight,
)
from runtime.models.rope import Frequencies, rope_table

_LOG = logging.getLogger(__name__)
_MAX_SHOWN = 20
# Weights of a layer that no operation reads would change the answers if they were used.
_LAYER_WEIGHT = re.compile(r"blk\.\d+\.(attn|ffn|post|layer|ssm|indexer)[a-z0-9_]*\.(weight|bias)")
_HARMLESS = re.compile(
    r"blk\.\d+\.attn_rot_embd\.(weight|bias)|rope_freqs\.weight|rope_factors_(long|short)\.weight"
)


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
        # Parts of one tensor share its fault.
        texts = list(dict.fromkeys(text for _, text in faults))
        raise ModelFormatError("BAD_TENSORS", faults[0][0], 0, _listing(file, texts))
    if types:
        raise UnsupportedModelError(_listing(file, list(dict.fromkeys(types))))
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
    context_tokens: int = 0,
    level: str | None = None,
) -> Program:
    """Check the weights and build the native program, ready for its first step.

    context_tokens is what one session holds: past the original context, longrope has other factors.
    """
    bindings = bind_weights(graph, file)
    tables = [
        rope_table(rope, _chosen_factors(rope, file, bindings, context_tokens)) for rope in graph.ropes()
    ]
    program = Program(
        pool,
        arena,
        n_vocab=config.n_vocab,
        max_rows=max_rows,
        ropes=[(frequencies.tolist(), magnitude) for frequencies, magnitude in tables],
        level=level,
    )
    _Builder(program, file, bindings).build(graph)
    return program


def _chosen_factors(
    rope: Rope, file: ModelFile, bindings: Bindings, context_tokens: int
) -> Frequencies | None:
    """Return the divisors of the frequencies for a context of this length, None where the file has none."""
    if rope.factors is None:
        return None
    has_short = bindings.tensors[rope.factors] is not None
    if rope.long_factors is None:
        return _rope_factors(file, rope.factors) if has_short else None
    if has_short != (bindings.tensors[rope.long_factors] is not None):
        missing = rope.long_factors if has_short else rope.factors
        raise ModelFormatError(
            "BAD_TENSORS",
            missing.name,
            0,
            f"{file.path}: {missing.name} is missing, its counterpart is there",
        )
    if not has_short:
        return None
    long = context_tokens > rope.scaling.original_context
    return _rope_factors(file, rope.long_factors if long else rope.factors)


def _rope_factors(file: ModelFile, weight: Weight) -> Frequencies:
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
        # (tensor name, rows) -> index
        self._indices: dict[tuple[str, tuple[int, int] | None], int] = {}
        self._ropes: dict[Rope, int] = {}
        self._buffers: dict[Buffer, int] = {}

    def build(self, graph: Graph) -> None:
        for buffer in graph.buffers():
            self._buffers[buffer] = self._program.buffer(buffer.name, buffer.width)
        self._ropes = {rope: i for i, rope in enumerate(graph.ropes())}
        for op in graph.ops:
            self._add(op)
        self._program.finish()

    def _weight(self, weight: Weight | None) -> int:
        """Return the native index, -1 for a weight that is absent."""
        info = None if weight is None else self._bindings.tensors[weight]
        if weight is None or info is None:
            return -1
        key = (info.name, weight.rows)
        if key not in self._indices:
            shard = self._file.shards[info.shard]
            if weight.is_vector:
                self._indices[key] = self._program.vector(shard, info.name)
            else:
                # The matrices of all experts lie one after the other, as one of many rows.
                begin, end = weight.rows or (0, math.prod(weight.shape[:-1]))
                self._indices[key] = self._program.matrix(shard, info.name, begin, end - begin)
        return self._indices[key]

    def _add(self, op: Op) -> None:
        program, weight, buffers = self._program, self._weight, self._buffers
        match op:
            case Embed(table, out, scale):
                program.embed(table=weight(table), out=buffers[out], scale=scale)
            case AddRow(table, out, by):
                program.add_row(table=weight(table), out=buffers[out], by_position=by == "position")
            case Add(source, out, scale):
                program.add(source=buffers[source], out=buffers[out], scale=scale)
            case RmsNorm(source, norm, out, eps):
                program.rms_norm(source=buffers[source], weight=weight(norm), out=buffers[out], eps=eps)
            case LayerNorm(source, norm, bias, out, eps):
                program.layer_norm(
                    source=buffers[source], weight=weight(norm), bias=weight(bias), out=buffers[out], eps=eps
                )
            case HeadNorm(buffer, norm, head_dim, eps):
                program.head_norm(buffer=buffers[buffer], weight=weight(norm), head_dim=head_dim, eps=eps)
            case Linear(source, projections, accumulate):
                targets = [(weight(p.weight), weight(p.bias), buffers[p.out]) for p in projections]
                program.linear(source=buffers[source], targets=targets, accumulate=accumulate)
            case GatedLinear(source, gate, up, out, activation):
                program.gated_linear(
                    source=buffers[source],
                    gate=weight(gate),
                    up=weight(up),
                    out=buffers[out],
                    gelu=activation == "gelu",
                )
            case Gelu(buffer):
                program.gelu(buffer=buffers[buffer])
            case Experts(source, router, gate, up, down, out, n_used):
                program.experts(
                    source=buffers[source],
                    router=weight(router),
                    gate=weight(gate),
                    up=weight(up),
                    down=weight(down),
                    out=buffers[out],
                    n_used=n_used,
                )
            case Attention():
                program.attention(
                    q=buffers[op.q],
                    k=buffers[op.k],
                    v=buffers[op.v],
                    out=buffers[op.out],
                    layer=op.layer,
                    n_heads=op.n_heads,
                    rope=-1 if op.rope is None else self._ropes[op.rope],
                    interleaved=op.rope is not None and op.rope.interleaved,
                    scale=op.scale,
                    window=op.window,
                    softcap=op.softcap,
                    causal=op.causal,
                )
            case Select(source, out):
                program.select(source=buffers[source], out=buffers[out])
            case Head(source, table, scale, softcap):
                program.head(source=buffers[source], weight=weight(table), scale=scale, softcap=softcap)
            case Pool(source, kind):
                program.pool(source=buffers[source], kind=kind)
