"""The first model is loaded while the rest of the daemon is still being imported.

Most of a start is Python code on one core, and most of loading a model is not: the arena's memory is taken and the
weights are touched by native code that needs no interpreter.  Side by side they cost what the longer one does.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.model import LoadedModel, load_model

if TYPE_CHECKING:
    from runtime.memory import MemoryPlan, RuntimeSettings


class HeadStart:
    """One load, begun at once, for the first who asks for just that model with just these settings."""

    def __init__(self, path: Path, settings: RuntimeSettings) -> None:
        """Begin.  What goes wrong is told to whoever asks for the model."""
        self._asked = path, settings
        self._lock = threading.Lock()
        self._loading: Future[LoadedModel] | None = Future()
        # Not a daemon thread: native code must not be cut off while the interpreter ends.
        threading.Thread(target=self._load, args=(self._loading,), name="quantd-head-start").start()

    def load_model(
        self, path: Path, settings: RuntimeSettings, *, others: Sequence[MemoryPlan] = ()
    ) -> LoadedModel:
        """runtime.model.load_model, which waits for the load that was begun where it is the one that is wanted."""
        with self._lock:
            loading = None
            if (path, settings) == self._asked and not others:
                loading, self._loading = self._loading, None
        return load_model(path, settings, others=others) if loading is None else loading.result()

    def _load(self, loading: Future[LoadedModel]) -> None:
        try:
            model = load_model(*self._asked)
            model.warm_up(n_threads=1)  # the imports have the other core
        except BaseException as failure:  # noqa: BLE001  raised again where the model is asked for
            loading.set_exception(failure)
        else:
            loading.set_result(model)
