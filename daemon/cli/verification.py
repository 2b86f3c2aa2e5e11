"""The options --verify and --max-increase of `quantd quantize`: what can be refused before the work, and the comparison after it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import RequestError

if TYPE_CHECKING:
    from quant.compare import Divergence


@dataclass(frozen=True, slots=True)
class Verification:
    """A text that both models can be run on."""

    source: Path
    text: str
    threads: int | None

    def run(self, output: Path, on_progress: Callable[[int, int], None] | None) -> Divergence:
        """Compare the output with its source; `on_progress` gets chunks done and in all."""
        from daemon.cli.compare import measure_divergence
        from quant.perplexity import DEFAULT_CTX

        return measure_divergence(
            self.source,
            output,
            self.text,
            ctx=DEFAULT_CTX,
            chunks=None,
            threads=self.threads,
            on_progress=on_progress,
        )


def read_verification(
    source: Path, text_path: Path | None, max_increase: float | None, threads: int | None
) -> Verification | None:
    """None where nothing is to be compared.

    Raises RequestError for a source or text that could not be compared after all the work, and what reading them raises.
    """
    if text_path is None:
        if max_increase is not None:
            raise RequestError(
                "max_increase", "max_increase: there is nothing to compare without --verify TEXT"
            )
        return None
    if max_increase is not None and not math.isfinite(max_increase):
        raise RequestError("max_increase", f"max_increase: must be a number of percent, not {max_increase}")
    if source.is_dir():
        raise RequestError(
            "verify", "verify: the source must be a GGUF file, which can be run beside the output"
        )
    from daemon.cli.scoring import read_text
    from quant.compare import require_chunks
    from quant.perplexity import DEFAULT_CTX
    from runtime.gguf import ModelFile
    from runtime.models.config import read_config
    from runtime.tokenizer import build_tokenizer

    file = ModelFile.open(source)
    read_config(file)  # refuses what is not served
    text = read_text(text_path)
    require_chunks(len(build_tokenizer(file).encode(text, add_special=True)), DEFAULT_CTX, "verify")
    return Verification(source, text, threads)
