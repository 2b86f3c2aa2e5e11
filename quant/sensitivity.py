"""Where a quantization loses: the relative error of every weight tensor, and a picture of it by layer and kind.

The error of a tensor is the RMS of the difference over the RMS of the original, on a sample of rows; with importance data
each column counts by the mean square of what it is multiplied with, so the error is that of the layer's output.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from quant.importance import Importance
from quant.policy import expert_rows
from runtime._native import dequantize, type_traits
from runtime.errors import RequestError
from runtime.gguf import ModelFile, TensorInfo

SAMPLED_ROWS = 128  # of a tensor, evenly spread
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(.+)\.weight")
_CELL = (58, 20)  # width and height in pixels
_MARGIN = (90, 120)  # left and top

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TensorLoss:
    """What one tensor lost."""

    name: str
    type_name: str  # in the quantized file
    n_elements: int
    n_bytes: int  # in the quantized file
    error: float  # relative, 0: the same


def tensor_losses(
    original: ModelFile,
    quantized: ModelFile,
    importance: Importance | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[TensorLoss]:
    """Compare every weight matrix of two files of one model.

    Raises RequestError where a tensor of the original is missing or has another shape in the quantized file.
    """
    losses = []
    matrices = [info for info in original.tensors.values() if len(info.shape) > 1 and info.shape[1] > 1]
    for done, info in enumerate(matrices):
        found = quantized.tensors.get(info.name)
        if found is None or found.shape != info.shape:
            raise RequestError(
                "quantized", f"{quantized.path}: tensor {info.name} is not that of {original.path}"
            )
        error = _loss(original, info, quantized, found, importance)
        losses.append(TensorLoss(info.name, found.type_name, info.n_elements, found.n_bytes, error))
        if on_progress is not None:
            on_progress(done + 1, len(matrices))
    return losses


def _loss(
    original: ModelFile,
    info: TensorInfo,
    quantized: ModelFile,
    found: TensorInfo,
    importance: Importance | None,
) -> float:
    n_matrices, n_rows = expert_rows(info.shape)
    total = n_matrices * n_rows
    rows = np.unique(np.linspace(0, total - 1, min(SAMPLED_ROWS, total)).astype(np.int64))
    lost = whole = 0.0
    for row in rows:
        x, y = (sample_row(file, one, int(row)) for file, one in ((original, info), (quantized, found)))
        weight = importance.of(info.name, info.shape[0], int(row) // n_rows) if importance else None
        squares = np.square((x - y).astype(np.float64)), np.square(x.astype(np.float64))
        lost += float((squares[0] if weight is None else squares[0] * weight).sum())
        whole += float((squares[1] if weight is None else squares[1] * weight).sum())
    return float(np.sqrt(lost / whole)) if whole else 0.0


def sample_row(file: ModelFile, info: TensorInfo, row: int) -> Floats:
    """Return one row of a tensor as floats, (n_in,)."""
    _, block_elements, block_bytes, _ = type_traits(info.type_id)
    row_bytes = info.shape[0] // block_elements * block_bytes
    data = np.ascontiguousarray(file.data(info.name)[row * row_bytes : (row + 1) * row_bytes])
    return dequantize(info.type_name, data, info.shape[0])


def picture(losses: Sequence[TensorLoss], title: str) -> str:
    """Return an SVG: a row for each layer, a column for each kind of tensor, dark where much is lost."""
    layers: dict[str, dict[str, TensorLoss]] = {}
    kinds: list[str] = []
    for loss in losses:
        match = _LAYER_TENSOR.fullmatch(loss.name)
        layer, kind = (match[1], match[2]) if match else ("outside", loss.name.removesuffix(".weight"))
        layers.setdefault(layer, {})[kind] = loss
        if kind not in kinds:
            kinds.append(kind)
    names = sorted(layers, key=lambda name: (name != "outside", int(name) if name.isdecimal() else -1))
    most = max((loss.error for loss in losses), default=0.0) or 1.0
    (width, height), (left, top) = _CELL, _MARGIN
    parts = [_text(8, 18, title, size=14)]
    for column, kind in enumerate(kinds):
        x = left + column * width + width / 2
        parts.append(_text(x, top - 8, kind, extra=f' transform="rotate(-45 {x:g} {top - 8})"'))
    for line, name in enumerate(names):
        y = top + line * height
        parts.append(_text(8, y + 14, f"layer {name}" if name.isdecimal() else name))
        for column, kind in enumerate(kinds):
            cell = layers[name].get(kind)
            if cell is not None:
                parts.append(_cell(left + column * width, y, cell, cell.error / most))
    size = left + len(kinds) * width + 90, top + len(names) * height + 16
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" '
        f'viewBox="0 0 {size[0]} {size[1]}" font-family="sans-serif">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _cell(x: float, y: float, loss: TensorLoss, shade: float) -> str:
    width, height = _CELL
    level = round(255 * (1 - 0.85 * shade))
    ink = "white" if shade > 0.6 else "black"
    tip = f"{loss.name}: {loss.type_name}, relative error {loss.error:.5f}"
    return (
        f'<g><title>{escape(tip)}</title><rect x="{x:g}" y="{y:g}" width="{width - 1}" height="{height - 1}" '
        f'fill="rgb({level},{level},255)"/>'
        + _text(
            x + width / 2,
            y + 14,
            f"{100 * loss.error:.2f} %",
            extra=f' fill="{ink}" text-anchor="middle"',
            size=10,
        )
        + "</g>"
    )


def _text(x: float, y: float, text: str, *, size: int = 11, extra: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}"{extra}>{escape(text)}</text>'
