"""Where an output comes from: hashes of inputs and data, recipe, error of each tensor.

It is embedded as metadata (quantd.*) and written beside the output as NAME.manifest.json.  It holds no dates, paths or
versions: the same inputs and options give the same bytes.  The embedded values have a fixed size, so that the header
can be placed before they are known.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from quant.chunks import ERROR_EVERY_ROWS
from quant.gguf_header import KeyValue
from quant.plan import QuantizePlan
from runtime._native import type_traits
from runtime.errors import ModelFormatError
from runtime.gguf import ModelFile

VERSION = 1
UNKNOWN_HASH = "0" * 64
SUFFIX = ".manifest.json"

_DATA_HASH = "quantd.data_sha256"
_INPUT_HASHES = "quantd.input_sha256"
_ERRORS = "quantd.tensor_errors"


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file that went in."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that is known after the work; of a job that has only begun, the hashes and errors are zeros."""

    inputs: tuple[InputFile, ...]
    recipe: str
    options: str  # overrides and what else changes the result, as one would write it
    input_sha256: tuple[str, ...]  # of each input, UNKNOWN_HASH where it was not computed
    data_sha256: str  # of the output's data section
    tensor_errors: tuple[float, ...]  # relative RMSE of each tensor in the file's order

    def metadata(self) -> list[KeyValue]:
        """Return the embedded entries."""
        return [
            KeyValue("quantd.manifest_version", "u32", VERSION),
            KeyValue("quantd.recipe", "string", self.recipe),
            KeyValue("quantd.options", "string", self.options),
            KeyValue("quantd.inputs", "array[string]", [one.name for one in self.inputs]),
            KeyValue("quantd.input_bytes", "array[u64]", [one.size_bytes for one in self.inputs]),
            KeyValue(_INPUT_HASHES, "array[string]", list(self.input_sha256)),
            KeyValue(_DATA_HASH, "string", self.data_sha256),
            KeyValue(_ERRORS, "array[f32]", list(self.tensor_errors)),
        ]

    def to_json(self, plan: QuantizePlan) -> str:
        """Return the file that lies beside the output."""
        return (
            json.dumps(
                {
                    "manifest_version": VERSION,
                    "recipe": self.recipe,
                    "options": self.options,
                    "output_bytes": plan.output_bytes,
                    "data_sha256": self.data_sha256,
                    "error": f"relative RMSE on every {ERROR_EVERY_ROWS}th row; 0: copied",
                    "inputs": [
                        {
                            "name": one.name,
                            "bytes": one.size_bytes,
                            "sha256": None if sha256 == UNKNOWN_HASH else sha256,
                        }
                        for one, sha256 in zip(self.inputs, self.input_sha256, strict=True)
                    ],
                    "tensors": [
                        {
                            "name": tensor.name,
                            "shape": list(tensor.source.shape),
                            "type": type_traits(tensor.target_type)[0],
                            "bytes": tensor.target_bytes,
                            "error": error,
                        }
                        for tensor, error in zip(plan.tensors, self.tensor_errors, strict=True)
                    ],
                },
                indent=1,
            )
            + "\n"
        )


def begun(inputs: Sequence[InputFile], recipe: str, options: str, n_tensors: int) -> Manifest:
    """Return the manifest before the work: as large as the one after it."""
    return Manifest(
        tuple(inputs), recipe, options, (UNKNOWN_HASH,) * len(inputs), UNKNOWN_HASH, (0.0,) * n_tensors
    )


def read_embedded(path: Path, planned: Manifest) -> Manifest | None:
    """Return the manifest of a file that may be the output of the same job, None where it cannot be."""
    with contextlib.suppress(ModelFormatError, OSError, KeyError):
        file = ModelFile.open(path)
        hashes = cast("list[str]", file.get(_INPUT_HASHES))
        errors = cast("list[float]", file.get(_ERRORS))
        data = cast(str, file.get(_DATA_HASH))
        if isinstance(hashes, list) and isinstance(errors, list) and isinstance(data, str):
            same = len(hashes) == len(planned.inputs) and len(errors) == len(planned.tensor_errors)
            if same:
                return Manifest(
                    planned.inputs, planned.recipe, planned.options, tuple(hashes), data, tuple(errors)
                )
    return None


def write_beside(output: Path, text: str) -> None:
    """Write NAME.manifest.json aside, sync and rename it; what is there already and the same stays."""
    target = output.with_name(output.name + SUFFIX)
    raw = text.encode()
    with contextlib.suppress(OSError):
        if target.read_bytes() == raw:
            return
    aside = target.with_name(f".{target.name}.partial")
    flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(aside, flags, 0o666), "wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(target)
