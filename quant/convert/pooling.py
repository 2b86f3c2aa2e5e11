"""How a folder of Sentence Transformers makes one vector of a text: modules.json and the pooling's own config.json."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

from quant.convert.config import read_json_if_there
from quant.convert.converted import Converted
from runtime.errors import ModelFormatError, UnsupportedModelError

_POOLINGS = {"mean": 1, "cls": 2, "lasttoken": 3}  # as GGUF numbers them
_FLAGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
}


def set_pooling(out: Converted, folder: Path) -> None:
    """Set pooling_type where the folder says it; the mean is what readers take otherwise."""
    path = folder / "modules.json"
    if not path.is_file():
        return
    try:
        modules = json.loads(path.read_bytes())
        places = [str(one["path"]) for one in modules if str(one["type"]).endswith("Pooling")]
    except (ValueError, TypeError, LookupError, RecursionError):
        raise ModelFormatError("BAD_JSON", "modules.json", 0, f"{path}: not a list of modules") from None
    if not places:
        return
    place = PurePosixPath(places[0])
    if place.is_absolute() or ".." in place.parts:
        raise ModelFormatError(
            "BAD_CONFIG", "modules.json", 0, f"{path}: {places[0][:80]!r} leaves the folder"
        )
    values = read_json_if_there(folder / place / "config.json")
    named = values.get("pooling_mode")
    chosen = [kind for flag, kind in _FLAGS.items() if values.get(flag) is True]
    kind = chosen[0] if chosen else named
    others = [flag for flag, on in values.items() if flag.startswith("pooling_mode_") and on is True]
    if kind not in _POOLINGS or len(others) > 1:
        raise UnsupportedModelError(
            f"{folder / place}: the pooling {others or named} is not served; mean, cls, last token are"
        )
    out.set("pooling_type", "u32", _POOLINGS[kind])
