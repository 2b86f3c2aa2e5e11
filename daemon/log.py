"""Logs: lines for people on a terminal, JSON otherwise, on stderr.  Prompts and answers are never logged."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def _without_rich() -> Iterator[None]:
    """structlog imports rich where it can, for tracebacks in colours that no log of ours has: a twentieth of a start."""
    absent = "rich" not in sys.modules
    if absent:
        # An import of it fails.
        sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if absent:
            del sys.modules["rich"]


with _without_rich():
    import structlog


def set_up(log_format: str = "auto", level: str = "info") -> None:
    """Sends structlog's events and the records of all libraries through one formatter.

    `log_format` is "text", "json", or "auto" (text on a terminal).
    """
    as_text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any = structlog.dev.ConsoleRenderer() if as_text else structlog.processors.JSONRenderer()
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            renderer,
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # One line a request is ours to write; uvicorn's would repeat it.
    logging.getLogger("uvicorn.access").disabled = True
    # Its warnings are of broken requests, which are answered: no client may fill the log.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def get_logger(name: str) -> Any:
    """A logger whose methods take an event word and facts: log.info("model_loaded", model=name)."""
    return structlog.stdlib.get_logger(name)
