"""The options of `quantd quantize` that concern quality: where importance comes from, and the comparison at the end."""

from __future__ import annotations

from pathlib import Path

import click

from daemon.cli.compare import exceeds, measure_divergence, show
from daemon.cli.perplexity import read_text
from quant.calibration_text import TEXT
from quant.importance import Importance, collect, dataset_name, read_imatrix, write_imatrix
from quant.perplexity import DEFAULT_CTX
from runtime.errors import RequestError

BUILT_IN = "built-in"


def importance_for(
    source: Path,
    *,
    calibrate: str | None,
    imatrix: Path | None,
    save_imatrix: Path | None,
    threads: int | None,
) -> Importance | None:
    """Return the importance that the options ask for, None without them.

    `calibrate` is BUILT_IN or the name of a text; it needs a GGUF source that the runtime serves.  Raises RequestError and
    what quant.importance raises.
    """
    if calibrate is not None and imatrix is not None:
        raise RequestError("imatrix", "imatrix: give --calibrate or --imatrix, not both")
    if imatrix is not None:
        return read_imatrix(imatrix)
    if calibrate is None:
        if save_imatrix is not None:
            raise RequestError("save_imatrix", "save_imatrix: there is nothing to save without --calibrate")
        return None
    if source.is_dir():
        raise RequestError(
            "calibrate",
            "calibrate: the source must be a GGUF file; convert the folder first with --recipe F16 or BF16, or give an "
            "--imatrix",
        )
    text = TEXT if calibrate == BUILT_IN else read_text(Path(calibrate))
    dataset = BUILT_IN if calibrate == BUILT_IN else dataset_name(calibrate)
    importance = collect(source, text, dataset=dataset, threads=threads)
    click.echo(f"calibrated on {importance.n_tokens:,} tokens of {dataset}", err=True)
    if save_imatrix is not None:
        write_imatrix(save_imatrix, importance)
    return importance


def verify_output(
    source: Path,
    output: Path,
    text: Path,
    *,
    max_increase: float | None,
    threads: int | None,
    as_json: bool,
) -> bool:
    """Compare the output with its source on a text, print the result, and say whether it is within `max_increase`."""
    if source.is_dir():
        raise RequestError(
            "verify", "verify: the source must be a GGUF file, which can be run beside the output"
        )
    result = measure_divergence(
        source, output, read_text(text), ctx=DEFAULT_CTX, chunks=None, threads=threads
    )
    show(result, max_increase, as_json=as_json)
    return not exceeds(result, max_increase)
