"""Model files: one GGUF file or all shards of a split model, with typed access to metadata.

The native reader (runtime/native/gguf.h) has checked the format before anything here runs; this module adds what
concerns several files, and the questions that a model asks: is this key an integer in this range?
All metadata comes from the first shard.  Values are converted when asked for and not kept.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeAlias, cast

from runtime._native import GgufFile, type_traits
from runtime.errors import ModelChangedError, ModelFormatError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MetadataValue: TypeAlias = int | float | bool | str | list[int] | list[float] | list[bool] | list[str]

MAX_SHARDS = 1024
MAX_ARCHITECTURE_CHARS = 64

_SHARD_NAME = re.compile(r"(?P<prefix>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_INTEGER_KINDS = frozenset({"u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64"})
_NUMBER_KINDS = _INTEGER_KINDS | {"f32", "f64"}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: where it lies and what it is."""

    name: str
    type_id: int
    type_name: str  # "Q4_K"
    shape: tuple[int, ...]  # row length first, as in GGUF
    n_elements: int
    n_bytes: int
    offset: int  # absolute, in its shard's file
    shard: int  # index into ModelFile.shards


class ModelFile:
    """A GGUF model, opened read-only.  `ModelFile.open` is the way to get one."""

    def __init__(self, shards: tuple[GgufFile, ...]) -> None:
        self.shards = shards
        self.paths = tuple(Path(shard.path) for shard in shards)
        self.size_bytes = sum(shard.size_bytes for shard in shards)
        self.tensors: dict[str, TensorInfo] = _collect_tensors(shards)
        self._metadata = shards[0]
        self._keys = frozenset(shards[0].keys())

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ModelFile:
        """Open a file, or every shard of the split model that the file belongs to.

        Raises ModelFormatError (codes of the native reader; BAD_SPLIT, MISSING_SHARD, DUPLICATE_TENSOR for splits) or
        OSError.
        """
        path = Path(path)
        file = _open_shard(path)
        count = _shard_count(file, path)
        if count == 1:
            return cls((file,))
        return cls(_open_split(path, file, count))

    def with_tensors_of(self, other: ModelFile) -> ModelFile:
        """Return this model with the tensors of `other` in place of, or beside, its own; metadata is this one's."""
        joined = ModelFile(self.shards)
        joined.shards = (*self.shards, *other.shards)
        n_shards = len(self.shards)
        joined.tensors |= {
            name: replace(info, shard=info.shard + n_shards) for name, info in other.tensors.items()
        }
        return joined

    @property
    def path(self) -> Path:
        """The path of the first shard."""
        return self.paths[0]

    @property
    def architecture(self) -> str:
        """`general.architecture`, never empty."""
        value = self.string("general.architecture")
        if not value or len(value) > MAX_ARCHITECTURE_CHARS or not (value.isascii() and value.isprintable()):
            self._fail(
                "BAD_VALUE", "general.architecture", "does not name an architecture; the file is damaged"
            )
        return value

    def keys(self) -> list[str]:
        """Return the metadata keys in file order."""
        return self._metadata.keys()

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def kind(self, key: str) -> str | None:
        """Return the type of a value ("u32", "array[string]"), None when the key is absent."""
        return self._metadata.kind(key) if key in self._keys else None

    def length(self, key: str) -> int:
        """Return the number of elements of an array without converting it; 0 when the key is absent."""
        return self._metadata.length(key) if key in self._keys else 0

    def get(self, key: str, default: MetadataValue | None = None) -> MetadataValue | None:
        """Return a value as it is, `default` when the key is absent."""
        return self._metadata.get(key) if key in self._keys else default

    def stored(self, key: str) -> bytes:
        """Return a value as it stands in the file, its kind before it (GGUF v2 and v3); KeyError when the key is absent."""
        return self._metadata.stored(key)

    def head(self, key: str, max_elements: int) -> MetadataValue | None:
        """Return a value as it is, of an array only the first elements; None when the key is absent."""
        return self._metadata.get(key, max_elements) if key in self._keys else None

    def integer(
        self,
        key: str,
        default: int | None = None,
        *,
        minimum: int | None = None,
        maximum: int | None = None,
    ) -> int:
        """Return an integer within [minimum, maximum]; `default` when absent, an error when that is None."""
        if default is not None and key not in self._keys:
            return default
        self._require(key, _INTEGER_KINDS, "an integer")
        value = cast(int, self._metadata.get(key))
        self._check_range(key, value, minimum, maximum)
        return value

    def number(
        self,
        key: str,
        default: float | None = None,
        *,
        minimum: float | None = None,
        maximum: float | None = None,
    ) -> float:
        """Return a finite number within [minimum, maximum]; `default` when absent, an error when that is None."""
        if default is not None and key not in self._keys:
            return default
        self._require(key, _NUMBER_KINDS, "a number")
        value = float(cast(float, self._metadata.get(key)))
        if not math.isfinite(value):
            self._fail("BAD_VALUE", key, f"is {value}; a finite number is needed")
        self._check_range(key, value, minimum, maximum)
        return value

    def string(self, key: str, default: str | None = None) -> str:
        """Return a string; `default` when absent, an error when that is None."""
        if default is not None and key not in self._keys:
            return default
        self._require(key, frozenset({"string"}), "a string")
        return cast(str, self._metadata.get(key))

    def boolean(self, key: str, default: bool | None = None) -> bool:
        """Return a boolean; `default` when absent, an error when that is None."""
        if default is not None and key not in self._keys:
            return default
        self._require(key, frozenset({"bool"}), "a boolean")
        return cast(bool, self._metadata.get(key))

    def strings(self, key: str) -> list[str]:
        """Return an array of strings; invalid UTF-8 is kept with surrogateescape."""
        self._require(key, frozenset({"array[string]"}), "an array of strings")
        return cast(list[str], self._metadata.get(key))

    def integers(self, key: str) -> list[int]:
        """Return an array of integers."""
        self._require(key, _array_of(_INTEGER_KINDS), "an array of integers")
        return cast(list[int], self._metadata.get(key))

    def numbers(self, key: str) -> list[float]:
        """Return an array of finite numbers."""
        self._require(key, _array_of(_NUMBER_KINDS), "an array of numbers")
        values = cast(list[float], self._metadata.get(key))
        if not all(map(math.isfinite, values)):
            self._fail("BAD_VALUE", key, "holds a number that is not finite")
        return values

    def data(self, name: str) -> NDArray[np.uint8]:
        """Return the (n_bytes,) read-only bytes of a tensor in the mapping; KeyError when there is none."""
        return self.shards[self.tensors[name].shard].data(name)

    def resident_bytes(self) -> int:
        """Return the bytes of all shards that lie in memory now."""
        return sum(shard.resident_bytes() for shard in self.shards)

    def check_unchanged(self) -> None:
        """Raise ModelChangedError if a file was written to, truncated or became unreadable since it was opened.

        What was computed from the weights before this call is right if the call returns: ask after each step.  It costs a
        system call a shard.
        """
        for shard in self.shards:
            if shard.changed():
                raise ModelChangedError(
                    f"{shard.path} was changed, truncated or could not be read while it was in use; restore the "
                    "file and load the model again",
                )

    def _require(self, key: str, kinds: frozenset[str], what: str) -> None:
        kind = self.kind(key)
        if kind is None:
            raise ModelFormatError(
                "MISSING_KEY", key, 0, f"{self.path}: metadata key {key} is missing; it must be {what}"
            )
        if kind not in kinds:
            self._fail("WRONG_TYPE", key, f"is of type {kind}; it must be {what}")

    def _check_range(self, key: str, value: float, minimum: float | None, maximum: float | None) -> None:
        if (minimum is not None and value < minimum) or (maximum is not None and value > maximum):
            low = "" if minimum is None else f" at least {minimum}"
            high = "" if maximum is None else f" at most {maximum}"
            both = " and" if low and high else ""
            self._fail("OUT_OF_RANGE", key, f"is {value}; it must be{low}{both}{high}")

    def _fail(self, code: str, key: str, what: str) -> NoReturn:
        offset = self._metadata.offset(key)
        raise ModelFormatError(
            code, key, offset, f"{self.path}: metadata key {key} {what} (at byte {offset})"
        )


def _array_of(kinds: frozenset[str]) -> frozenset[str]:
    return frozenset(f"array[{kind}]" for kind in kinds)


def _open_shard(path: Path) -> GgufFile:
    try:
        return GgufFile(path)
    except ModelFormatError as error:
        raise ModelFormatError(error.code, error.where, error.offset, f"{path}: {error.message}") from None


def _split_value(file: GgufFile, path: Path, key: str, minimum: int, maximum: int) -> int | None:
    """Return an integer of the split.* keys, None when absent."""
    if key not in frozenset(file.keys()):
        return None
    value = file.get(key)
    if file.kind(key) not in _INTEGER_KINDS or not minimum <= cast(int, value) <= maximum:
        offset = file.offset(key)
        shown = value if isinstance(value, int | float) else file.kind(key)
        message = (
            f"{path}: {key} is {shown}; it must be an integer from {minimum} to {maximum} (at byte {offset})"
        )
        raise ModelFormatError("BAD_SPLIT", key, offset, message)
    return cast(int, value)


def _shard_count(file: GgufFile, path: Path) -> int:
    """Return the number of shards of the model that a file belongs to."""
    count = _split_value(file, path, "split.count", 1, MAX_SHARDS)
    return 1 if count is None else count


def _open_split(path: Path, file: GgufFile, count: int) -> tuple[GgufFile, ...]:
    """Open the shards beside `path`; names are made from its own name only, so they stay in its folder."""
    match = _SHARD_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count or not 1 <= int(match["number"]) <= count:
        message = (
            f"{path}: this is one of {count} shards, so its name must end in -0000N-of-{count:05d}.gguf; "
            "keep the names that the shards were published under"
        )
        raise ModelFormatError("BAD_SPLIT", "split.count", file.offset("split.count"), message)
    shards = []
    for index in range(count):
        shard_path = path.with_name(f"{match['prefix']}-{index + 1:05d}-of-{count:05d}.gguf")
        shard = file if shard_path == path else _open_sibling(shard_path)
        _check_shard(shard, shard_path, index, count)
        shards.append(shard)
    _check_total(shards)
    return tuple(shards)


def _open_sibling(path: Path) -> GgufFile:
    try:
        return _open_shard(path)
    except FileNotFoundError:
        message = f"{path} is missing; every shard must lie in one folder under its published name"
        raise ModelFormatError("MISSING_SHARD", path.name, 0, message) from None


def _check_shard(shard: GgufFile, path: Path, index: int, count: int) -> None:
    for key, wanted in (("split.count", count), ("split.no", index)):
        value = _split_value(shard, path, key, 0, 65535)
        if value != wanted:
            offset = 0 if value is None else shard.offset(key)
            message = (
                f"{path}: {key} is {value}, the file's name asks for {wanted}; this shard is of another split"
            )
            raise ModelFormatError("BAD_SPLIT", key, offset, message)


def _check_total(shards: list[GgufFile]) -> None:
    wanted = _split_value(shards[0], Path(shards[0].path), "split.tensors.count", 0, 2**31)
    found = sum(len(shard.tensors()) for shard in shards)
    if wanted is not None and wanted != found:
        message = f"{shards[0].path}: the shards hold {found} tensors, split.tensors.count says {wanted}"
        raise ModelFormatError(
            "BAD_SPLIT", "split.tensors.count", shards[0].offset("split.tensors.count"), message
        )


def _collect_tensors(shards: tuple[GgufFile, ...]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    names: dict[int, str] = {}
    for shard, file in enumerate(shards):
        for name, type_id, shape, offset, n_bytes in file.tensors():
            if name in tensors:
                message = f"{file.path}: tensor {name} is also in {shards[tensors[name].shard].path}"
                raise ModelFormatError("DUPLICATE_TENSOR", name, offset, message)
            type_name = names.setdefault(type_id, type_traits(type_id)[0])
            n_elements = math.prod(shape)
            tensors[name] = TensorInfo(name, type_id, type_name, shape, n_elements, n_bytes, offset, shard)
    return tensors
