"""Variables of Ollama and Hugging Face that mean what a setting here means; a variable or an option of ours wins."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

OLLAMA_PORT = 11434

_TRUE = frozenset(("1", "t", "true", "y", "yes", "on"))


def _host(text: str) -> str:
    """OLLAMA_HOST: a host, a port behind a colon, or both, with or without http:// in front and a path behind."""
    scheme, separator, rest = text.strip().strip("\"'").rpartition("://")
    port = {"http": 80, "https": 443}.get(scheme.lower(), OLLAMA_PORT) if separator else OLLAMA_PORT
    rest = rest.partition("/")[0]
    found = re.fullmatch(r"(\[[0-9a-fA-F:.%]*\]|[^:]*)(?::([^:]*))?", rest)
    if found is None:  # an IPv6 address without brackets
        return f"[{rest}]:{port}"
    return f"{found[1] or '127.0.0.1'}:{found[2] or port}"


def _list(text: str) -> list[str]:
    return [one.strip() for one in text.split(",") if one.strip()]


def _store(text: str) -> str:
    """A folder of our own beside Ollama's models: its server removes what it does not know, and so does ours."""
    return str(Path(text) / "quantd")


def _log_level(text: str) -> str | None:
    return "debug" if text.strip().lower() in _TRUE or (text.strip().isdigit() and int(text)) else None


def _number(text: str) -> str | None:
    """0: Ollama is to choose by itself."""
    return None if text.strip() == "0" else text


_VARIABLES: dict[str, tuple[str, Callable[[str], object]]] = {
    "OLLAMA_HOST": ("http", _host),
    "OLLAMA_ORIGINS": ("origins", _list),
    "OLLAMA_MODELS": ("store_dir", _store),
    "OLLAMA_MAX_KV_CACHE": ("kv_budget", str),
    "OLLAMA_KEEP_ALIVE": ("keep_alive", str),
    "OLLAMA_LOAD_TIMEOUT": ("load_timeout", str),
    "OLLAMA_MAX_QUEUE": ("max_waiting", str),
    "OLLAMA_KV_CACHE_TYPE": ("kv_type", str),
    "OLLAMA_NUM_PARALLEL": ("sessions", _number),
    "OLLAMA_MAX_LOADED_MODELS": ("max_models", _number),
    "OLLAMA_CONTEXT_LENGTH": ("context", _number),
    "OLLAMA_DEBUG": ("log_level", _log_level),
    "HF_ENDPOINT": ("hub", str),
}


def foreign_values(environ: Mapping[str, str]) -> Iterator[tuple[str, object, str]]:
    """(setting, value, variable) of every variable that is set and says something."""
    for variable, (setting, read) in _VARIABLES.items():
        text = environ.get(variable)
        value = read(text) if text else None
        if value is not None:
            yield setting, value, variable
