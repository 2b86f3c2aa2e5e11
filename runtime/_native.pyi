"""Types of runtime._native, the C++ core.  One section per bind_<area>.cpp."""

from os import PathLike
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

# --- GGUF files (bind_gguf.cpp) ---------------------------------------------------------------------------------

MetadataValue: TypeAlias = int | float | bool | str | list[int] | list[float] | list[bool] | list[str]

class GgufFile:
    """One GGUF file (one shard) over a read-only mapping; all metadata has been checked once it is there."""

    def __init__(self, path: str | PathLike[str]) -> None:
        """Raise ModelFormatError where the file is not sound GGUF, OSError where the system refuses."""

    @property
    def path(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def alignment(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def data_offset(self) -> int: ...
    def keys(self) -> list[str]:
        """Return the metadata keys in file order."""

    def kind(self, key: str) -> str:
        """Return the type of a value: "u32", "string", "array[string]"; KeyError when absent."""

    def get(self, key: str) -> MetadataValue:
        """Convert one value, arrays to lists; text with invalid UTF-8 uses surrogateescape; KeyError when absent."""

    def length(self, key: str) -> int:
        """Return the number of elements of an array without converting it, 1 for other values."""

    def offset(self, key: str) -> int:
        """Return the byte of the file at which the value lies."""

    def tensors(self) -> list[tuple[str, int, tuple[int, ...], int, int]]:
        """Return (name, type id, shape with the row length first, absolute offset, n_bytes) in file order."""

    def data(self, name: str) -> NDArray[np.uint8]:
        """Return the (n_bytes,) read-only view of a tensor in the mapping; it keeps the file open."""

    def resident_bytes(self) -> int:
        """Return the bytes of the mapping that lie in memory now."""

    def poisoned(self) -> bool:
        """Say whether the file was truncated or unreadable under the mapping; its bytes then read as zero."""

def type_traits(type_id: int) -> tuple[str, int, int, bool]:
    """Return (name, elements of a block, bytes of a block, served as weight); ("?", 0, 0, False) if unknown."""
