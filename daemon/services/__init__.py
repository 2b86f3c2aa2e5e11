"""The domain: async methods over quantd.v1 messages.  Validation, defaults, limits, admission and errors live here,
once, for gRPC and for the gateway alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daemon.access.gate import Gate
    from daemon.services.embed import EmbeddingService
    from daemon.services.generate import GenerateService
    from daemon.services.host import ModelHost
    from daemon.services.library import LibraryService
    from daemon.services.model import ModelService
    from daemon.services.quantize import QuantizeService
    from daemon.services.tokenizer import TokenizerService


@dataclass(frozen=True, slots=True)
class Services:
    """All services of one daemon, on one model host."""

    gate: Gate
    host: ModelHost
    generate: GenerateService
    tokenizer: TokenizerService
    embedding: EmbeddingService
    model: ModelService
    library: LibraryService
    quantize: QuantizeService
