"""Qwen 3, mixture of experts (general.architecture = "qwen3moe"): Qwen 3 with experts in every layer."""

from __future__ import annotations

from runtime.models.config import ModelConfig
from runtime.models.decoder import decoder, mixture
from runtime.models.graph import Graph
from runtime.models.qwen3 import attention


def build(config: ModelConfig) -> Graph:
    """Return the graph of one Qwen 3 mixture."""
    return decoder(config, attention, mixture)
