"""What a quantization will write, known to the byte before any work starts."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from quant.gguf_header import TensorEntry, align, header_bytes, quantized_metadata
from quant.recipes import BF16, F16, F32, ModelFacts, Recipe, TensorShape, plan_types
from runtime._native import type_traits
from runtime.errors import UnsupportedModelError
from runtime.gguf import ModelFile, TensorInfo

SOURCE_TYPES = frozenset({F32, F16, BF16})
_MAX_LAYERS = 1 << 16
_MAX_HEADS = 1 << 20


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor of the output."""

    source: TensorInfo
    target_type: int
    target_bytes: int
    offset: int  # in the output's data section

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def is_copied(self) -> bool:
        """True where the bytes go over as they are."""
        return self.target_type == self.source.type_id


@dataclass(frozen=True, slots=True)
class QuantizePlan:
    """The whole output: its header, and every tensor in the order of writing."""

    recipe: Recipe
    tensors: tuple[TensorPlan, ...]
    header: bytes  # padded to the alignment
    alignment: int
    output_bytes: int
    source_bytes: int  # of the tensors

    @property
    def bits_per_weight(self) -> float:
        """Bits of an element on average, over all tensors."""
        n_elements = sum(tensor.source.n_elements for tensor in self.tensors)
        return 8 * sum(tensor.target_bytes for tensor in self.tensors) / max(n_elements, 1)

    def types(self) -> dict[str, tuple[int, int]]:
        """Return (tensors, bytes) of each type of the output, largest first."""
        counts: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        for tensor in self.tensors:
            name = type_traits(tensor.target_type)[0]
            counts[name] += 1
            sizes[name] += tensor.target_bytes
        return {name: (counts[name], size) for name, size in sizes.most_common()}


def plan_quantization(source: ModelFile, recipe: Recipe) -> QuantizePlan:
    """Choose the type and place of every tensor.

    Raises UnsupportedModelError for a source that is quantized already or holds no tensors, ModelFormatError for
    metadata that the rules need and that is missing.
    """
    if not source.tensors:
        raise UnsupportedModelError(
            f"{source.path} holds no tensors (a vocabulary?); there is nothing to quantize"
        )
    shapes = [TensorShape(info.name, info.type_id, info.shape) for info in source.tensors.values()]
    types = plan_types(recipe, model_facts(source), shapes)
    alignment = source.shards[0].alignment
    tensors, offset = [], 0
    for name, target_type in types.items():
        info = source.tensors[name]
        if target_type != info.type_id or type_traits(info.type_id)[1] > 1:
            _require_unquantized(source.path, info)
        n_bytes = tensor_bytes(info.shape, target_type)
        tensors.append(TensorPlan(info, target_type, n_bytes, offset))
        offset = align(offset + n_bytes, alignment)
    table = [TensorEntry(t.name, t.source.shape, t.target_type, t.offset) for t in tensors]
    header = header_bytes(quantized_metadata(source, recipe.file_type), table, alignment)
    source_bytes = sum(info.n_bytes for info in source.tensors.values())
    return QuantizePlan(recipe, tuple(tensors), header, alignment, len(header) + offset, source_bytes)


def model_facts(source: ModelFile) -> ModelFacts:
    """Read what the rules need from the metadata."""
    architecture = source.architecture
    return ModelFacts(
        architecture=architecture,
        n_layers=source.integer(f"{architecture}.block_count", minimum=1, maximum=_MAX_LAYERS),
        n_heads=_of_first_layer(source, f"{architecture}.attention.head_count"),
        n_kv_heads=_of_first_layer(source, f"{architecture}.attention.head_count_kv"),
        n_experts=source.integer(f"{architecture}.expert_count", 0, minimum=0, maximum=_MAX_LAYERS),
    )


def tensor_bytes(shape: tuple[int, ...], type_id: int) -> int:
    """Return the bytes of a tensor whose rows are whole blocks of the type."""
    _, block_elements, block_bytes, _ = type_traits(type_id)
    return math.prod(shape) // block_elements * block_bytes


def _of_first_layer(source: ModelFile, key: str) -> int:
    """Return a number that some models give for each layer; 0 where it is absent."""
    if (source.kind(key) or "").startswith("array"):
        values = source.integers(key)
        return values[0] if values else 0
    return source.integer(key, 0, minimum=0, maximum=_MAX_HEADS)


def _require_unquantized(path: Path, info: TensorInfo) -> None:
    if info.type_id not in SOURCE_TYPES:
        raise UnsupportedModelError(
            f"{path} is no F32, F16 or BF16 model: tensor {info.name} is {info.type_name}; quantize from the original"
        )
