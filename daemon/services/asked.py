"""What the operator asked for, read from the settings: which models there are, which one to serve, and how.

A start asks for a model file before anything else, to load it beside all other imports: what only names need is imported
where a name is looked up.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from daemon.errors import ApiError
from daemon.services.folder import ModelEntry, ModelFolder, entry_of
from runtime.memory import RuntimeSettings

if TYPE_CHECKING:
    from daemon.config import Settings
    from daemon.services.catalog import Catalog


def catalog(settings: Settings) -> Catalog:
    """The models that these settings show: those of the folders, and those of the store."""
    from daemon.services.catalog import Catalog  # noqa: PLC0415
    from daemon.store.models import ModelStore  # noqa: PLC0415

    return Catalog(ModelFolder(settings.models_dir, settings.output_dir), ModelStore(settings.store_folder()))


def runtime_settings(settings: Settings) -> RuntimeSettings:
    """The part of the settings that the runtime knows."""
    return RuntimeSettings(
        sessions=settings.sessions,
        context_tokens=settings.context,
        kv_budget_bytes=settings.kv_budget,
        kv_type=settings.kv_type,
        prefix_cache=settings.prefix_cache,
        speculate=settings.speculate == "auto",
        threads=settings.threads,
    )


def find_model(settings: Settings) -> ModelEntry | None:
    """What the operator asked to serve: a file, or a name in the model folder.  None: nothing."""
    if settings.model is None:
        return None
    path = Path(settings.model)
    if path.is_file():
        return entry_of(path)
    entry = catalog(settings).find(settings.model)
    if entry is None:
        where = f", nor a model in {settings.models_dir}" if settings.models_dir else ""
        raise ApiError(
            "MODEL_NOT_FOUND",
            f"{settings.model} is no model file{where}, nor a name in the store"
            " (quantd list shows what there is, quantd pull fetches more)",
            field="model",
        )
    return entry
