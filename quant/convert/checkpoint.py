"""The weights of a Hugging Face folder: one safetensors file, or shards with an index."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from quant.convert.config import read_json
from quant.convert.safetensors import DTYPES, StoredTensor, read_table
from quant.convert.views import Merged, Stored, View, Widened
from quant.recipes import F32
from runtime.errors import ModelFormatError, UnsupportedModelError

INDEX = "model.safetensors.index.json"
MAX_FILES = 1024
_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
_MAX_SHOWN = 8
# Constants that some folders carry beside the weights; architectures compute them.
_HARMLESS = re.compile(
    r"(.*\.)?(rotary_emb\.inv_freq|masked_bias|attn\.bias|attention\.bias|position_ids|rotary_pos_emb\.inv_freq)"
)


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One file of weights."""

    path: Path
    size_bytes: int


class Checkpoint:
    """Every stored tensor by name.  Taking one marks it as used, so that what nothing reads is noticed."""

    def __init__(self, folder: Path, files: list[WeightFile], tensors: dict[str, StoredTensor]) -> None:
        self.folder = folder
        self.files = files
        self.tensors = tensors
        self._used: set[str] = set()
        self._merges: dict[str, list[tuple[Stored, Stored, float]]] = {}

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read the tables of all files.

        Raises ModelFormatError (MISSING_SHARD, BAD_SAFETENSORS, DUPLICATE_TENSOR), UnsupportedModelError where there
        are no safetensors, OSError.
        """
        paths, wanted = _find_files(folder)
        files: list[WeightFile] = []
        tensors: dict[str, StoredTensor] = {}
        for index, path in enumerate(paths):
            files.append(WeightFile(path, path.stat().st_size))
            for tensor in read_table(path, index):
                if tensor.name in tensors:
                    other = paths[tensors[tensor.name].file].name
                    _fail("DUPLICATE_TENSOR", tensor.name, f"{path}: tensor {tensor.name} is also in {other}")
                tensors[tensor.name] = tensor
        for name, file_name in wanted.items():
            found = tensors.get(name)
            if found is None or paths[found.file].name != file_name:
                _fail(
                    "BAD_INDEX",
                    name,
                    f"{folder / INDEX}: tensor {name} is not in {file_name}, as the index says",
                )
        return cls(folder, files, tensors)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def merge(self, name: str, a: Stored, b: Stored, scale: float) -> None:
        """Add scale * b a to a matrix whenever it is taken."""
        self._merges.setdefault(name, []).append((a, b, scale))

    def take(self, name: str, shape: tuple[int, ...]) -> View:
        """Return a weight of this shape (row length last); ModelFormatError names what is wrong."""
        tensor = self.tensors.get(name)
        if tensor is None:
            _fail("BAD_TENSORS", name, f"{self.folder}: tensor {name} is missing; it must be {_shape(shape)}")
        if tensor.shape != shape:
            where = self.files[tensor.file].path
            _fail(
                "BAD_TENSORS",
                name,
                f"{where}: tensor {name} is {_shape(tensor.shape)}; config.json makes it {_shape(shape)}",
            )
        if tensor.dtype not in DTYPES:
            raise UnsupportedModelError(
                f"{self.files[tensor.file].path}: tensor {name} is of dtype {tensor.dtype}; convert from the "
                "original weights in F32, F16 or BF16"
            )
        self._used.add(name)
        view: View = Stored(tensor)
        for a, b, scale in self._merges.get(name, ()):
            view = Merged(view, a, b, scale)
        return view

    def vector(self, name: str, n: int) -> View:
        """Return a vector (n,) in F32."""
        stored = self.take(name, (n,))
        return stored if stored.type_id == F32 else Widened(stored)

    def ignore(self, prefix: str) -> None:
        """Leave out every tensor whose name starts so."""
        self._used.update(name for name in self.tensors if name.startswith(prefix))

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, () when it is not there."""
        tensor = self.tensors.get(name)
        return tensor.shape if tensor else ()

    def require_all_used(self) -> None:
        """Raise UnsupportedModelError naming tensors that nothing has taken: without them the answers would be wrong."""
        unused = [name for name in self.tensors if name not in self._used and not _HARMLESS.fullmatch(name)]
        if unused:
            shown = ", ".join(unused[:_MAX_SHOWN])
            more = f" and {len(unused) - _MAX_SHOWN} more" if len(unused) > _MAX_SHOWN else ""
            raise UnsupportedModelError(
                f"{self.folder}: the architecture as quantd converts it has no use for {len(unused)} tensors: {shown}{more}"
            )


def _find_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the files of weights, and the index: tensor name to file name."""
    if (folder / INDEX).exists():
        return _indexed(folder)
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    names = [name for name in names if not name.startswith(("adapter_", "."))]
    if "model.safetensors" in names:
        return [folder / "model.safetensors"], {}
    shards = [match for name in names if (match := _SHARD.fullmatch(name))]
    if shards:
        return _complete(folder, shards), {}
    if len(names) == 1:
        return [folder / names[0]], {}
    if not names:
        other = sorted(path.name for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pth"})
        hint = (
            f" ({other[0]} is a pickle, which can run code; convert it to safetensors first)" if other else ""
        )
        raise UnsupportedModelError(f"{folder} holds no .safetensors file{hint}")
    raise UnsupportedModelError(
        f"{folder} holds {len(names)} .safetensors files and no {INDEX} that says which to use"
    )


def _complete(folder: Path, shards: list[re.Match[str]]) -> list[Path]:
    stem, count = shards[0]["stem"], int(shards[0]["count"])
    if not 1 <= count <= MAX_FILES:
        _fail("BAD_INDEX", "", f"{folder}: {shards[0].string} says that there are {count} shards")
    paths = [folder / f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    _require_all(folder, paths)
    return paths


def _indexed(folder: Path) -> tuple[list[Path], dict[str, str]]:
    wanted = read_json(folder / INDEX).get("weight_map")
    if (
        not isinstance(wanted, dict)
        or not wanted
        or not all(isinstance(name, str) for name in wanted.values())
    ):
        _fail("BAD_INDEX", "weight_map", f"{folder / INDEX}: weight_map must map tensor names to file names")
    names = sorted(set(wanted.values()))
    for name in names:
        if name != Path(name).name or name.startswith(".") or not name.endswith(".safetensors"):
            _fail(
                "BAD_INDEX",
                "weight_map",
                f"{folder / INDEX}: {name[:80]!r} is no name of a file in the folder",
            )
    if len(names) > MAX_FILES:
        _fail("BAD_INDEX", "weight_map", f"{folder / INDEX}: {len(names)} files; at most {MAX_FILES}")
    paths = [folder / name for name in names]
    _require_all(folder, paths)
    return paths, wanted


def _require_all(folder: Path, paths: list[Path]) -> None:
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        shown = ", ".join(missing[:_MAX_SHOWN]) + (" ..." if len(missing) > _MAX_SHOWN else "")
        _fail(
            "MISSING_SHARD",
            missing[0],
            f"{folder}: {len(missing)} of {len(paths)} shards are missing: {shown}",
        )


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _fail(code: str, where: str, message: str) -> NoReturn:
    raise ModelFormatError(code, where, 0, message)
