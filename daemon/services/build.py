"""Puts the services of one daemon together from its settings."""

from __future__ import annotations

import dataclasses

from daemon.access.gate import Gate
from daemon.access.lines import Lines
from daemon.config import Settings
from daemon.services import Services
from daemon.services.asked import catalog, runtime_settings
from daemon.services.embed import EmbeddingService
from daemon.services.generate import GenerateService
from daemon.services.host import HostLimits, ModelHost, runtime_parts
from daemon.services.library import LibraryService
from daemon.services.model import ModelService
from daemon.services.quantize import QuantizeService
from daemon.services.served import LoadModel
from daemon.services.tokenizer import TokenizerService
from daemon.store.places import Places


def build_services(settings: Settings, load_model: LoadModel | None = None) -> Services:
    """All services, with no model loaded yet; `load_model` takes the place of the runtime's."""
    folder = catalog(settings)
    limits = HostLimits(
        max_waiting=settings.max_waiting,
        max_models=settings.max_models,
        keep_alive_s=settings.keep_alive,
        load_timeout_s=settings.load_timeout,
        exit_on_failure=settings.engine_failure == "exit",
    )
    parts = runtime_parts()
    if load_model is not None:
        parts = dataclasses.replace(parts, load_model=load_model)
    host = ModelHost(folder, runtime_settings(settings), parts, limits)
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
