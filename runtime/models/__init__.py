"""The architectures that quantd serves: one module and one line here for each.

A module has `build(config) -> Graph`.  It is imported when a model of that architecture is loaded.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from runtime.models.config import ModelConfig
    from runtime.models.graph import Graph

# GGUF's general.architecture -> module of this package
_ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}


def architecture_names() -> tuple[str, ...]:
    """Return the values of general.architecture that are served."""
    return tuple(_ARCHITECTURES)


def build_graph(config: ModelConfig) -> Graph:
    """Return the graph of a model; KeyError for an architecture that read_config would have refused."""
    module = import_module(f"runtime.models.{_ARCHITECTURES[config.architecture]}")
    return cast("Graph", module.build(config))
