"""Asks the runtime about a file that is only planned: would it serve it?

The planned header stands at the front of a sparse file in memory that has the output's full size, so the runtime's own
reader sees the file that will be written; weights are not touched.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from quant.plan import QuantizePlan
from runtime.errors import QuantdError
from runtime.gguf import ModelFile
from runtime.models import build_graph
from runtime.models.config import read_config
from runtime.models.loader import bind_weights
from runtime.tokenizer.build import build_tokenizer


@contextmanager
def planned_file(plan: QuantizePlan, name: str) -> Iterator[ModelFile]:
    """Open the planned output as if it were written; its weights read as zeros.  Errors call it `name`."""
    fd = os.memfd_create("quantd-plan", os.MFD_CLOEXEC)
    try:
        os.truncate(fd, plan.output_bytes)
        os.pwrite(fd, plan.header, 0)
        yield ModelFile.open(_path(fd))
    except QuantdError as error:
        # The file has no name yet.
        error.message = error.message.replace(_path(fd), name)
        error.args = (error.message,)
        raise
    finally:
        os.close(fd)


def check_served(plan: QuantizePlan, name: str) -> None:
    """Raise what loading the output would raise: a tensor that is missing or of another shape, a bad tokenizer."""
    with planned_file(plan, name) as file:
        config = read_config(file)
        bind_weights(build_graph(config), file)
        build_tokenizer(file)


def _path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"
