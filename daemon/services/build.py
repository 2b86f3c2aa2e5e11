"""Puts the services of one daemon together from its settings."""

from __future__ import annotations

from pathlib import Path

from daemon.access.gate import Gate
from daemon.access.lines import Lines
from daemon.config import Settings
from daemon.errors import ApiError
from daemon.services import Services
from daemon.services.catalog import Catalog
from daemon.services.embed import EmbeddingService
from daemon.services.folder import ModelEntry, ModelFolder, entry_of
from daemon.services.generate import GenerateService
from daemon.services.host import HostLimits, ModelHost, runtime_parts
from daemon.services.library import LibraryService
from daemon.services.model import ModelService
from daemon.services.quantize import QuantizeService
from daemon.services.tokenizer import TokenizerService
from daemon.store.models import ModelStore
from daemon.store.pull import Places
from runtime.memory import RuntimeSettings


def build_services(settings: Settings) -> Services:
    """All services, with no model loaded yet."""
    folder = catalog(settings)
    limits = HostLimits(
        max_waiting=settings.max_waiting,
        max_models=settings.max_models,
        keep_alive_s=settings.keep_alive,
        load_timeout_s=settings.load_timeout,
        exit_on_failure=settings.engine_failure == "exit",
    )
    host = ModelHost(folder, runtime_settings(settings), runtime_parts(), limits)
    lines = Lines(
        max_waiting=settings.max_waiting,
        max_waiting_tokens=settings.max_waiting_tokens,
        max_wait_s=settings.max_wait_seconds,
    )
    model = ModelService(host)
    quantize = QuantizeService(folder)
    return Services(
        gate=Gate(settings.keys_file),
        host=host,
        generate=GenerateService(host, lines),
        tokenizer=TokenizerService(host),
        embedding=EmbeddingService(host, lines),
        model=model,
        library=LibraryService(host, model, Places(settings.hub, settings.registry), quantize),
        quantize=quantize,
    )


def catalog(settings: Settings) -> Catalog:
    """The models that these settings show: those of the folders, and those of the store."""
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
