"""Is a model file whole?  Structure, every block's numbers, and the checksum of the data where the file carries one.

The native reader checks the structure on opening: sizes, offsets, types, strings.  Here every weight block is looked at: its
scales and minima, or the values themselves, must be finite; a damaged one would turn every answer into noise.  Files that
quantd made carry the sha256 of their data section (`quantd.data_sha256`).  Files are read a few MiB at a time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime._native import type_traits
from runtime.gguf import ModelFile, TensorInfo

CHUNK_BYTES = 8 << 20
MAX_FAULTS = 20  # listed; more are counted
DATA_HASH = "quantd.data_sha256"

Bytes = NDArray[np.uint8]

# Type: bytes of a block at which an f16 lies.
_HALVES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "F16": (0,),
}
_NAN_E8M0 = 255


@dataclass(frozen=True, slots=True)
class Fault:
    """One tensor with blocks that are not finite."""

    tensor: str
    block: int  # the first of them
    n_blocks: int
    offset: int  # byte of the file at which the first lies


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found; `checksum` is "ok", "wrong" or "none"."""

    tensors: int
    n_bytes: int
    checksum: str
    faults: tuple[Fault, ...]
    unchecked: tuple[str, ...]  # types whose blocks nobody here can read

    @property
    def is_sound(self) -> bool:
        return self.checksum != "wrong" and not self.faults


def verify(
    path: str | os.PathLike[str], on_progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Read a whole file (or all shards of a split one); `on_progress` gets bytes done and in all.

    Raises ModelFormatError where the structure is not sound, OSError.
    """
    file = ModelFile.open(path)
    total, done = sum(info.n_bytes for info in file.tensors.values()), 0
    faults: list[Fault] = []
    unchecked: set[str] = set()
    for name, info in file.tensors.items():
        data = file.data(name)
        block_bytes = type_traits(info.type_id)[2]
        step = max(CHUNK_BYTES // block_bytes, 1) * block_bytes
        first, count = -1, 0
        for start in range(0, len(data), step):
            piece = data[start : start + step]
            bad = _bad_blocks(info, piece.reshape(-1, block_bytes))
            if bad is None:
                unchecked.add(info.type_name)
            elif bad.any():
                first = first if first >= 0 else start // block_bytes + int(bad.argmax())
                count += int(bad.sum())
            done += len(piece)
            if on_progress is not None:
                on_progress(done, total)
        if count:
            faults.append(Fault(name, first, count, info.offset + first * block_bytes))
    file.check_unchanged()
    return Verification(len(file.tensors), total, _checksum(file), tuple(faults), tuple(sorted(unchecked)))


def _bad_blocks(info: TensorInfo, blocks: Bytes) -> NDArray[np.bool_] | None:
    """(n_blocks, block bytes) -> (n_blocks,) True where a number is not finite; None for a type that is not read here."""
    kind = info.type_name
    bad: NDArray[np.bool_] = np.zeros(len(blocks), np.bool_)
    if kind in _HALVES:
        for at in _HALVES[kind]:
            bad |= (blocks[:, at + 1] & 0x7C) == 0x7C  # all bits of the exponent
    elif kind == "BF16":
        bad |= ((blocks[:, 1] & 0x7F) == 0x7F) & ((blocks[:, 0] & 0x80) == 0x80)
    elif kind == "F32":
        bad |= ((blocks[:, 3] & 0x7F) == 0x7F) & ((blocks[:, 2] & 0x80) == 0x80)
    elif kind == "MXFP4":
        bad |= blocks[:, 0] == _NAN_E8M0
    elif not kind.startswith("I") or kind.startswith("IQ"):
        return None  # others are whole numbers
    return bad


def _checksum(file: ModelFile) -> str:
    expected = file.get(DATA_HASH)
    if not isinstance(expected, str) or len(file.shards) != 1:
        return "none"
    digest = hashlib.sha256()
    with file.paths[0].open("rb") as raw:
        raw.seek(file.shards[0].data_offset)
        while piece := raw.read(CHUNK_BYTES):
            digest.update(piece)
    return "ok" if digest.hexdigest() == expected else "wrong"
