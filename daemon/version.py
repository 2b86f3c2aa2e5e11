"""Which quantd this is."""

from __future__ import annotations

import functools
import importlib.metadata


@functools.cache
def version() -> str:
    """The version of the installed distribution; "source" where none is installed."""
    try:
        return importlib.metadata.version("quantd")
    except importlib.metadata.PackageNotFoundError:
        return "source"
