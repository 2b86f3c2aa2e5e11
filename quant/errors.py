"""Failures of a quantization, beside those of reading its source (runtime.errors).

QuantdError
|- OutputExistsError        the target is there already
|- CannotCreateError        the target cannot be created (folder missing, no permission, a folder of that name)
|- DiskFullError            the disk, a quota or a limit holds no more
|- OutputError              writing failed otherwise
`- QuantizeCancelledError   asked to stop; nothing is left behind
"""

from __future__ import annotations

from runtime.errors import QuantdError


class OutputExistsError(QuantdError):
    """The target is there already."""

    reason = "OUTPUT_EXISTS"


class CannotCreateError(QuantdError):
    """The target cannot be created."""

    reason = "CANNOT_CREATE"


class DiskFullError(QuantdError):
    """The disk, a quota or a limit on file sizes holds no more."""

    reason = "DISK_FULL"


class OutputError(QuantdError):
    """Writing or checking the output failed."""

    reason = "IO_ERROR"


class QuantizeCancelledError(QuantdError):
    """The work was asked to stop; nothing is left behind."""

    reason = "CANCELLED"
