"""LoRA adapters in PEFT's form (adapter_config.json, adapter_model.safetensors), merged while the weights are read.

W + scale * lora_alpha / r * B A, with A (r, n_in) and B (n_out, r); rank-stabilized adapters divide by sqrt(r).
Source: arXiv:2106.09685, PEFT's documentation of LoraConfig.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quant.convert.checkpoint import Checkpoint, WeightFile
from quant.convert.config import Config, read_json
from quant.convert.safetensors import DTYPES, read_table
from quant.convert.views import Stored
from runtime.errors import ModelFormatError, RequestError, UnsupportedModelError

MAX_ADAPTERS = 8
MAX_RANK = 1024
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter that the user named, and how much of it is wanted."""

    folder: Path
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Adapter:
        """Read DIR[:scale]; RequestError where the scale is no number."""
        folder, separator, number = text.rpartition(":")
        if not separator or Path(text).is_dir():
            return cls(Path(text))
        try:
            scale = float(number)
        except ValueError:
            scale = math.nan
        if not math.isfinite(scale) or abs(scale) > 100:
            raise RequestError("lora", f"lora: the scale of {text!r} must be a number from -100 to 100")
        return cls(Path(folder), scale)

    def describe(self) -> str:
        """Return how the manifest names it."""
        return f"lora={self.folder.name}:{self.scale:g}"


def add_adapters(weights: Checkpoint, adapters: Sequence[Adapter]) -> None:
    """Let the checkpoint give its matrices with the adapters merged.

    Raises UnsupportedModelError for kinds of adapters that are not merged, ModelFormatError where one does not belong to
    these weights, RequestError for too many.
    """
    if len(adapters) > MAX_ADAPTERS:
        raise RequestError("lora", f"lora: {len(adapters)} adapters; at most {MAX_ADAPTERS}")
    for adapter in adapters:
        _add(weights, adapter)


def _add(weights: Checkpoint, adapter: Adapter) -> None:
    path = adapter.folder / WEIGHTS
    rank, factor = _read_config(adapter.folder)
    file = len(weights.files)
    tensors = {_plain(tensor.name): tensor for tensor in read_table(path, file)}
    weights.files.append(WeightFile(path, path.stat().st_size))
    modules = sorted({name.rpartition(".lora_")[0] for name in tensors})
    for module in modules:
        a, b = tensors.pop(f"{module}.lora_A.weight", None), tensors.pop(f"{module}.lora_B.weight", None)
        name = f"{module}.weight"
        base = weights.shape_of(name)
        if a is None or b is None or len(base) != 2:
            raise _fault(
                path,
                module,
                f"does not belong to these weights: there is no matrix {name}, or A or B is missing",
            )
        if (a.shape, b.shape) != ((rank, base[1]), (base[0], rank)):
            raise _fault(
                path, module, f"A {a.shape} and B {b.shape} do not fit {name} {base} and rank {rank}"
            )
        if a.dtype not in DTYPES or b.dtype not in DTYPES:
            raise UnsupportedModelError(
                f"{path}: {module} is of dtype {a.dtype}; F32, F16 and BF16 are merged"
            )
        weights.merge(name, Stored(a), Stored(b), adapter.scale * factor)
    if tensors:
        raise UnsupportedModelError(
            f"{path}: {min(tensors)} is no part of a plain LoRA adapter and cannot be merged"
        )
    if not modules:
        raise _fault(path, "", "the adapter holds nothing")


def _read_config(folder: Path) -> tuple[int, float]:
    """Return (rank, alpha / rank)."""
    config = Config(folder / CONFIG, read_json(folder / CONFIG))
    if config.string("peft_type", "LORA") != "LORA":
        raise UnsupportedModelError(
            f"{config.path}: peft_type is {config.get('peft_type')!r}; LORA is merged"
        )
    for key in (
        "use_dora",
        "fan_in_fan_out",
        "rank_pattern",
        "alpha_pattern",
        "modules_to_save",
        "lora_bias",
    ):
        if config.get(key):
            raise UnsupportedModelError(f"{config.path}: {key} is set; such adapters are not merged")
    if config.string("bias", "none") != "none":
        raise UnsupportedModelError(
            f"{config.path}: bias is {config.get('bias')!r}; adapters of biases are not merged"
        )
    rank = config.integer("r", maximum=MAX_RANK)
    alpha = config.number("lora_alpha", minimum=0, maximum=1e6)
    return rank, alpha / (math.sqrt(rank) if config.boolean("use_rslora", default=False) else rank)


def _plain(name: str) -> str:
    """Return a tensor's name without PEFT's frame."""
    return (
        name.removeprefix(_PREFIX)
        .replace(".lora_A.default.", ".lora_A.")
        .replace(".lora_B.default.", ".lora_B.")
    )


def _fault(path: Path, module: str, what: str) -> ModelFormatError:
    where = f"{module}: " if module else ""
    return ModelFormatError("BAD_ADAPTER", module, 0, f"{path}: {where}{what}")
