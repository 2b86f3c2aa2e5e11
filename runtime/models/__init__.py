"""The architectures that quantd serves: one module and one line here for each.

A module has `build(config) -> Graph`.  It is imported when a model of that architecture is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from runtime.models.config import ModelConfig
    from runtime.models.graph import Graph


@dataclass(frozen=True, slots=True)
class Architecture:
    """What the reading of a file must know of an architecture before its graph is built."""

    module: str  # of this package
    experts: bool | None = False  # mixture of experts: False never, True always, None where the file has them
    windows: int | None = None  # None: no sliding windows; n: every n-th layer sees all, 0: none does
    encoder: bool = False  # gives embeddings and does not generate


# GGUF's general.architecture -> how it is built
_ARCHITECTURES = {
    "bert": Architecture("bert", encoder=True),
    "gemma2": Architecture("gemma2", windows=2),
    "gemma3": Architecture("gemma3", windows=6),
    "granite": Architecture("granite"),
    "llama": Architecture("llama", experts=None, windows=0),
    "nomic-bert": Architecture("nomic_bert", encoder=True),
    "olmo2": Architecture("olmo2", windows=4),
    "phi3": Architecture("phi3", windows=0),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "qwen3moe": Architecture("qwen3moe", experts=True),
    "smollm3": Architecture("smollm3"),
}


def architecture_names() -> tuple[str, ...]:
    """Return the values of general.architecture that are served."""
    return tuple(_ARCHITECTURES)


def architecture(name: str) -> Architecture:
    """Return how an architecture is built; KeyError for one that is not served."""
    return _ARCHITECTURES[name]


def build_graph(config: ModelConfig) -> Graph:
    """Return the graph of a model; KeyError for an architecture that read_config would have refused."""
    module = import_module(f"runtime.models.{_ARCHITECTURES[config.architecture].module}")
    return cast("Graph", module.build(config))
