"""Fixtures that every room shares: reference files beside the checkout, and the bundled demo model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference files: $QUANTD_SHARED, or `shared` beside the checkout."""
    path = Path(os.environ.get("QUANTD_SHARED") or REPOSITORY.parent / "shared")
    if not (path / "models").is_dir():
        pytest.skip(f"no reference files at {path} (set QUANTD_SHARED to their folder)")
    return path


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The bundled unquantized demo model, a llama-architecture F16 GGUF."""
    path = REPOSITORY / "ops" / "demo" / "quantd-demo-f16.gguf"
    if not path.is_file():
        pytest.skip(f"no demo model at {path}")
    return path
