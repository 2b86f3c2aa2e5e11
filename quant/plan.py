"""What a quantization will write, known to the byte before any work starts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from quant.gguf_header import (
    EncodedMetadata,
    KeyValue,
    TensorEntry,
    align,
    encode_metadata,
    header_bytes,
    quantized_metadata,
)
from quant.policy import NO_OVERRIDES, Overrides, TensorShape, plan_types
from quant.recipes import FLOATS, Recipe
from quant.source import ModelSource, SourceTensor
from runtime._native import type_traits
from runtime.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor of the output."""

    source: SourceTensor
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
    overrides: Overrides
    tensors: tuple[TensorPlan, ...]
    metadata: EncodedMetadata  # of the output, without what is only known after the work
    header: bytes  # padded to the alignment
    alignment: int
    output_bytes: int
    source_bytes: int  # of the tensors

    def header_with(self, entries: Sequence[KeyValue]) -> bytes:
        """Return the header with these entries behind the metadata."""
        table = [TensorEntry(t.name, t.source.shape, t.target_type, t.offset) for t in self.tensors]
        return header_bytes(entries, table, self.alignment, self.metadata)

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


def plan_quantization(
    source: ModelSource,
    recipe: Recipe,
    overrides: Overrides = NO_OVERRIDES,
    *,
    calibrated: bool = False,
    entries: Sequence[KeyValue] = (),
) -> QuantizePlan:
    """Choose the type and place of every tensor; `entries` is metadata to add, of its final size.

    Raises UnsupportedModelError for a source that is quantized already, RequestError for an override that matches
    nothing.
    """
    shapes = [TensorShape(tensor.name, tensor.type_id, tensor.shape) for tensor in source.tensors.values()]
    types = plan_types(recipe, source.facts, shapes, overrides, calibrated=calibrated)
    tensors, offset = [], 0
    for name, target_type in types.items():
        stored = source.tensors[name]
        tensor = stored if target_type == stored.type_id else stored.decoded or stored
        if type_traits(tensor.type_id)[1] > 1 and tensor.decoded is None:
            _refuse_quantized(source, tensor)
        if target_type != tensor.type_id and tensor.type_id not in FLOATS:
            _refuse_quantized(source, tensor)
        n_bytes = tensor_bytes(tensor.shape, target_type)
        tensors.append(TensorPlan(tensor, target_type, n_bytes, offset))
        offset = align(offset + n_bytes, source.alignment)
    plan = QuantizePlan(
        recipe=recipe,
        overrides=overrides,
        tensors=tuple(tensors),
        metadata=encode_metadata(quantized_metadata(source.metadata, recipe.file_type)),
        header=b"",
        alignment=source.alignment,
        output_bytes=0,
        source_bytes=sum(tensor.source.n_bytes for tensor in tensors),
    )
    header = plan.header_with(entries)
    return replace(plan, header=header, output_bytes=len(header) + offset)


def tensor_bytes(shape: tuple[int, ...], type_id: int) -> int:
    """Return the bytes of a tensor whose rows are whole blocks of the type."""
    _, block_elements, block_bytes, _ = type_traits(type_id)
    return math.prod(shape) // block_elements * block_bytes


def _refuse_quantized(source: ModelSource, tensor: SourceTensor) -> None:
    raise UnsupportedModelError(
        f"{source.path} is no F32, F16, BF16 or Q8_0 model: tensor {tensor.name} is {tensor.type_name}; quantize from "
        "the original"
    )
