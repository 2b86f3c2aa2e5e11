"""Errors of the runtime, raised close to the cause.

    QuantdError                 anything below; `reason` is a stable UPPER_SNAKE word
    |- ModelFormatError         a model file breaks the GGUF format; names key or tensor and byte offset
    |- UnsupportedModelError    a sound file that this version does not serve (architecture, type, tokenizer)
    |- ModelChangedError        the mapped file was truncated or could not be read while in use
    |- MemoryPlanError          the memory plan does not fit; carries the plan
    |- RequestError             a bad value in a request; `field` names it
    |  `- ContextLengthError    prompt plus wanted tokens exceed the session's context
    |- QueueFullError           too many requests wait; `retry_after_s` says when to come back
    `- EngineStoppedError       the engine is draining, stopped or failed

daemon/errors.py maps each of them once to gRPC, HTTP and OpenAI's error body.
"""

from __future__ import annotations

from typing import Any


class QuantdError(Exception):
    """Base of all expected errors; `reason` is stable and may be shown to programs."""

    reason = "INTERNAL"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ModelFormatError(QuantdError):
    """A model file breaks the GGUF format.

    `code` is a stable UPPER_SNAKE word, `where` names the key or tensor ("" for the header), `offset` is the
    byte in the file.  The native reader raises it with exactly these four arguments.
    """

    reason = "INVALID_MODEL_FILE"

    def __init__(self, code: str, where: str, offset: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.where = where
        self.offset = offset


class UnsupportedModelError(QuantdError):
    """A sound file that this version of quantd does not serve."""

    reason = "UNSUPPORTED_MODEL"


class ModelChangedError(QuantdError):
    """The mapped model file was changed or became unreadable while in use."""

    reason = "MODEL_FILE_CHANGED"


class MemoryPlanError(QuantdError):
    """The memory plan does not fit; `plan` is the runtime.memory.MemoryPlan with every number."""

    reason = "INSUFFICIENT_MEMORY"

    def __init__(self, message: str, plan: Any) -> None:
        super().__init__(message)
        self.plan = plan


class RequestError(QuantdError):
    """A bad value in a request; `field` is its name in the quantd.v1 messages."""

    reason = "INVALID_ARGUMENT"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class ContextLengthError(RequestError):
    """Prompt plus wanted tokens exceed the session's context."""

    reason = "CONTEXT_LENGTH_EXCEEDED"

    def __init__(self, field: str, message: str, *, prompt_tokens: int, context_tokens: int) -> None:
        super().__init__(field, message)
        self.prompt_tokens = prompt_tokens
        self.context_tokens = context_tokens


class QueueFullError(QuantdError):
    """Too many requests wait for a session."""

    reason = "QUEUE_FULL"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineStoppedError(QuantdError):
    """The engine is draining, stopped or failed and takes no more requests."""

    reason = "UNAVAILABLE"
