"""What is quantized: metadata and tensors, whether they come from a GGUF file or from a Hugging Face folder.

Opening a source reads and checks everything but the weights; those are read in runs of elements while they are encoded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from quant.gguf_header import DEFAULT_ALIGNMENT, KeyValue, StoredValue
from quant.input_files import Bytes, InputFiles
from quant.policy import ModelFacts
from quant.recipes import F32, Q8_0
from runtime._native import type_traits
from runtime.errors import UnsupportedModelError
from runtime.gguf import ModelFile, TensorInfo

_MAX_LAYERS = 1 << 16
_MAX_HEADS = 1 << 20
_MAX_UNIT_ELEMENTS = 1 << 21  # longer rows are read in pieces


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """One tensor, in the type in which it is read."""

    name: str
    type_id: int
    shape: tuple[int, ...]  # row length first, as in GGUF
    n_elements: int
    unit_elements: int  # runs start and end at multiples of it; whole rows unless they are very long
    read: Callable[[InputFiles, int, int], Bytes]  # (files, first element, elements) -> bytes of the type
    place: Callable[[int], tuple[Path, int]]  # element -> file and byte, for messages
    origin: str  # its name in the source
    decoded: SourceTensor | None = None  # of a quantized tensor: the same in F32

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor in its type."""
        _, block_elements, block_bytes, _ = type_traits(self.type_id)
        return self.n_elements // block_elements * block_bytes

    @property
    def type_name(self) -> str:
        """Name of the type."""
        return type_traits(self.type_id)[0]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that can be quantized; made by `open_gguf` or quant.convert.open_folder."""

    path: Path  # as the user named it
    files: tuple[Path, ...]  # that hold the weights
    file_sizes: tuple[int, ...]
    metadata: Sequence[
        KeyValue | StoredValue
    ]  # without the keys that say how the output is quantized and split
    tensors: dict[str, SourceTensor]
    facts: ModelFacts
    side_files: tuple[Path, ...] = ()  # configuration and tokenizer that were read
    alignment: int = DEFAULT_ALIGNMENT
    is_converted: bool = False  # True: from another format

    @property
    def size_bytes(self) -> int:
        """Bytes of all files of weights."""
        return sum(self.file_sizes)


def open_gguf(path: str | os.PathLike[str]) -> ModelSource:
    """Open a GGUF file, or all shards of a split one.

    Raises ModelFormatError, OSError; UnsupportedModelError for a file without tensors.
    """
    file = ModelFile.open(path)
    if not file.tensors:
        raise UnsupportedModelError(
            f"{file.path} holds no tensors (a vocabulary?); there is nothing to quantize"
        )
    kept = [
        StoredValue(key, file.stored(key))
        for key in file.keys()  # noqa: SIM118 - a method, not a dict
        if not key.startswith("split.")
    ]
    return ModelSource(
        path=file.path,
        files=file.paths,
        file_sizes=tuple(shard.size_bytes for shard in file.shards),
        metadata=kept,
        tensors={info.name: _gguf_tensor(info, file.paths[info.shard]) for info in file.tensors.values()},
        facts=_facts(file),
        alignment=file.shards[0].alignment,
    )


def _gguf_tensor(info: TensorInfo, path: Path) -> SourceTensor:
    row = info.shape[0] if info.shape else 1
    _, block_elements, block_bytes, _ = type_traits(info.type_id)
    unit = row if row <= _MAX_UNIT_ELEMENTS else 256
    raw = SourceTensor(
        name=info.name,
        type_id=info.type_id,
        shape=info.shape,
        n_elements=info.n_elements,
        unit_elements=unit,
        read=partial(_read_stored, info),
        place=lambda element: (path, info.offset + element // block_elements * block_bytes),
        origin=info.name,
    )
    if info.type_id != Q8_0:
        return raw
    decoded = SourceTensor(
        name=info.name,
        type_id=F32,
        shape=info.shape,
        n_elements=info.n_elements,
        unit_elements=unit,
        read=lambda files, first, n: _decode_q8_0(raw.read(files, first, n)),
        place=raw.place,
        origin=info.name,
    )
    return SourceTensor(
        raw.name, raw.type_id, raw.shape, raw.n_elements, unit, raw.read, raw.place, raw.origin, decoded
    )


def _read_stored(info: TensorInfo, files: InputFiles, first: int, n: int) -> Bytes:
    _, block_elements, block_bytes, _ = type_traits(info.type_id)
    start = info.offset + first // block_elements * block_bytes
    return files.read(info.shard, start, n // block_elements * block_bytes)


def _decode_q8_0(blocks: Bytes) -> Bytes:
    """Blocks of 34 bytes (a scale in F16, 32 signed bytes) to F32, exactly as every reader of the format does."""
    import numpy as np  # noqa: PLC0415 - only for such sources

    table = np.frombuffer(blocks, np.uint8).reshape(-1, 34)
    scales = table[:, :2].copy().view(np.float16).astype(np.float32)  # (n_blocks, 1)
    values = table[:, 2:].view(np.int8).astype(np.float32) * scales  # (n_blocks, 32)
    return values.reshape(-1).view(np.uint8).data


def _facts(file: ModelFile) -> ModelFacts:
    """Read what the recipes need from the metadata."""
    architecture = file.architecture
    return ModelFacts(
        architecture=architecture,
        n_layers=file.integer(f"{architecture}.block_count", minimum=1, maximum=_MAX_LAYERS),
        n_heads=_of_first_layer(file, f"{architecture}.attention.head_count"),
        n_kv_heads=_of_first_layer(file, f"{architecture}.attention.head_count_kv"),
        n_experts=file.integer(f"{architecture}.expert_count", 0, minimum=0, maximum=_MAX_LAYERS),
    )


def _of_first_layer(file: ModelFile, key: str) -> int:
    """Return a number that some models give for each layer; 0 where it is absent."""
    if (file.kind(key) or "").startswith("array"):
        values = file.integers(key)
        return values[0] if values else 0
    return file.integer(key, 0, minimum=0, maximum=_MAX_HEADS)
