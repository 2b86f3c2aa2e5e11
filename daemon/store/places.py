"""Where models come from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Places:
    """Where models come from."""

    hub: str = "https://huggingface.co"
    registry: str = "https://registry.ollama.ai"
    any_host: bool = False  # whether a name may bring a registry of its own
