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

    def get(self, key: str, max_elements: int | None = None) -> MetadataValue:
        """Convert one value, arrays (or their first max_elements) to lists; text with invalid UTF-8 uses surrogateescape; KeyError when absent."""

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

    def changed(self) -> bool:
        """Say whether it is poisoned, or somebody wrote into the file since it was opened; one system call."""

def type_traits(type_id: int) -> tuple[str, int, int, bool]:
    """Return (name, elements of a block, bytes of a block, served as weight); ("?", 0, 0, False) if unknown."""

# --- Kernels by level, for tests and benchmarks (bind_kernels.cpp) ---------------------------------------------
# Arrays must be C-contiguous and of exactly the named dtype; anything else is a TypeError.  Wrong shapes, unknown
# levels and unknown types are a ValueError that says what was expected.

Floats: TypeAlias = NDArray[np.float32]
Bytes: TypeAlias = NDArray[np.uint8]

def kernel_levels() -> list[str]:
    """Names of the levels that this CPU can run, narrowest first: "scalar", "avx2", "avx512vnni"."""

def dequantize(type_name: str, data: Bytes, n: int, level: str | None = None) -> Floats:
    """Expand n elements of GGUF blocks (data) to (n) floats; level None means scalar."""

def quantize_activations(level: str, form: str, x: Floats) -> Bytes:
    """One activation row x (n) in the form "q8_32" or "q8_256", as the bytes that kernels.h describes."""

def matmul(
    level: str,
    type_name: str,
    weight: Bytes,
    n_out: int,
    n_in: int,
    x: Floats,
    out_begin: int = 0,
    out_end: int | None = None,
    bias: Floats | None = None,
    residual: Floats | None = None,
) -> Floats:
    """x (n_rows, n_in) times the transposed weight (n_out, n_in) in GGUF blocks: (n_rows, n_out).

    Outputs outside [out_begin, out_end) keep the residual (n_rows, n_out), or zero; bias is (n_out).
    """

def store_kv(level: str, x: Floats, kv_type: str) -> Bytes:
    """One key or value vector x (head_dim) as it is cached; kv_type "f16" or "q8_0"."""

def attention(
    level: str,
    q: Floats,
    k: Floats,
    v: Floats,
    kv_type: str,
    page_tokens: int = 32,
    scale: float | None = None,
) -> Floats:
    """One query row q (n_heads, head_dim) over k and v (n_positions, n_kv_heads, head_dim): (n_heads, head_dim).

    scale None means 1 / sqrt(head_dim).
    """

def rms_norm(level: str, x: Floats, weight: Floats, eps: float) -> Floats:
    """x (n) over its root mean square, times weight (n)."""

def rope(level: str, x: Floats, cos: Floats, sin: Floats, interleaved: bool) -> Floats:
    """One head x (head_dim) rotated by the angles of cos and sin (n_rot / 2 each)."""

def swiglu(level: str, gate: Floats, up: Floats) -> Floats:
    """silu(gate) * up, elementwise over (n)."""

# --- Block encoders of the quantizer (bind_quantize.cpp) ----------------------------------------------------------

def quantize_rows(
    source: NDArray[np.uint8],
    source_type: int,
    n_rows: int,
    n_cols: int,
    target_type: int,
    out: NDArray[np.uint8],
    n_threads: int,
    level: str | None = None,
) -> tuple[int, int, float] | None:
    """Encode rows of F32, F16 or BF16 into blocks of another type, on n_threads cores, without the GIL.

    source and out are contiguous 1-D arrays of exactly the bytes of (n_rows, n_cols).  The same bytes come out for
    every thread count and CPU level.  Gives (row, column, value) of the first element that is not finite or beyond
    the type's range, with out unspecified, else None.  ValueError for wrong sizes, types or level.
    """
