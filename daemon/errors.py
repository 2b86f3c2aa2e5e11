"""The one table of failures: what each is called, and which status it gets on every border.

    failure in the runtime or a service
        -> to_api_error   -> ApiError (reason, message, field, retry_after_s)
             -> to_rpc_status   google.rpc.Status for gRPC     -> from_rpc_error   the same ApiError at the client
             -> openai_body     {"error": {...}} for HTTP
             -> row.exit_code   for the command line

`reason` is a stable UPPER_SNAKE word.  It travels as google.rpc.ErrorInfo.reason (domain "quantd"), so that a
gateway in another process answers exactly as one inside the daemon does.  Nothing here tells a client what a
Python exception said: an exception that nobody expected becomes INTERNAL with the request's id.
"""

from __future__ import annotations

import enum
import errno
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.errors import (
    MemoryPlanError,
    ModelFormatError,
    QuantdError,
    QueueFullError,
    RequestError,
)

if TYPE_CHECKING:
    import grpc
    from google.rpc import status_pb2

DOMAIN = "quantd"
MAX_MESSAGE_CHARS = 2048  # longer messages are cut: an error never answers with more than it was asked


class Code(enum.IntEnum):
    """gRPC status codes by number (google.rpc.Code), so that this module needs no gRPC to be imported."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: the statuses of a reason on each border."""

    grpc_code: Code
    http_status: int
    openai_type: str
    openai_code: str
    exit_code: int


_BAD = "invalid_request_error"
_SERVER = "server_error"

# Exit codes follow sysexits.h: 64 usage, 65 data, 69 unavailable, 70 internal, 73 cannot create, 74 I/O, 75 later, 78 config.
TABLE: dict[str, Row] = {
    # The request is wrong.
    "INVALID_ARGUMENT": Row(Code.INVALID_ARGUMENT, 400, _BAD, "invalid_value", 64),
    "CONTEXT_LENGTH_EXCEEDED": Row(Code.OUT_OF_RANGE, 400, _BAD, "context_length_exceeded", 64),
    "TEMPLATE_ERROR": Row(Code.INVALID_ARGUMENT, 400, _BAD, "template_error", 65),
    "INVALID_MODEL_FILE": Row(Code.INVALID_ARGUMENT, 400, _BAD, "invalid_model_file", 65),
    "UNSUPPORTED_MODEL": Row(Code.INVALID_ARGUMENT, 400, _BAD, "unsupported_model", 65),
    "UNSUPPORTED_RECIPE": Row(Code.INVALID_ARGUMENT, 400, _BAD, "unsupported_recipe", 64),
    "UNAUTHENTICATED": Row(Code.UNAUTHENTICATED, 401, _BAD, "invalid_api_key", 64),
    "PERMISSION_DENIED": Row(Code.PERMISSION_DENIED, 403, "permission_error", "permission_denied", 64),
    "MODEL_NOT_FOUND": Row(Code.NOT_FOUND, 404, "not_found_error", "model_not_found", 64),
    "NOT_FOUND": Row(Code.UNIMPLEMENTED, 404, "not_found_error", "not_found", 64),
    "METHOD_NOT_ALLOWED": Row(Code.UNIMPLEMENTED, 405, _BAD, "method_not_allowed", 64),
    "REQUEST_TIMEOUT": Row(Code.DEADLINE_EXCEEDED, 408, _BAD, "request_timeout", 75),
    "REQUEST_TOO_LARGE": Row(Code.RESOURCE_EXHAUSTED, 413, _BAD, "request_too_large", 64),
    "URI_TOO_LONG": Row(Code.RESOURCE_EXHAUSTED, 414, _BAD, "uri_too_long", 64),
    "UNSUPPORTED_MEDIA_TYPE": Row(Code.INVALID_ARGUMENT, 415, _BAD, "unsupported_media_type", 64),
    "HEADERS_TOO_LARGE": Row(Code.RESOURCE_EXHAUSTED, 431, _BAD, "headers_too_large", 64),
    # The request is right, the daemon's state is not.
    "OUTPUT_EXISTS": Row(Code.ALREADY_EXISTS, 409, "conflict", "output_exists", 73),
    "NO_CHAT_TEMPLATE": Row(Code.FAILED_PRECONDITION, 409, "conflict", "no_chat_template", 65),
    "MODEL_BUSY": Row(Code.FAILED_PRECONDITION, 409, "conflict", "model_busy", 75),
    "QUEUE_FULL": Row(Code.RESOURCE_EXHAUSTED, 429, "rate_limit_error", "queue_full", 75),
    "QUEUE_TIMEOUT": Row(Code.RESOURCE_EXHAUSTED, 429, "rate_limit_error", "queue_timeout", 75),
    "RATE_LIMITED": Row(Code.RESOURCE_EXHAUSTED, 429, "rate_limit_error", "rate_limit_exceeded", 75),
    "QUANTIZE_BUSY": Row(Code.RESOURCE_EXHAUSTED, 429, "rate_limit_error", "quantize_busy", 75),
    "SLOW_CONSUMER": Row(Code.ABORTED, 408, _BAD, "slow_consumer", 75),
    "CANCELLED": Row(Code.CANCELLED, 499, _BAD, "cancelled", 75),
    # The daemon cannot.
    "INTERNAL": Row(Code.INTERNAL, 500, _SERVER, "internal_error", 70),
    "NON_FINITE_LOGITS": Row(Code.INTERNAL, 500, _SERVER, "non_finite_logits", 70),
    "CONSTRAINT_FAILED": Row(Code.ABORTED, 500, _SERVER, "constraint_failed", 70),
    "MODEL_FILE_CHANGED": Row(Code.DATA_LOSS, 500, _SERVER, "model_file_changed", 74),
    "IO_ERROR": Row(Code.DATA_LOSS, 500, _SERVER, "io_error", 74),
    "UNAVAILABLE": Row(Code.UNAVAILABLE, 503, _SERVER, "unavailable", 69),
    "ADDRESS_IN_USE": Row(Code.UNAVAILABLE, 503, _SERVER, "address_in_use", 69),
    "DEADLINE_EXCEEDED": Row(Code.DEADLINE_EXCEEDED, 504, _SERVER, "timeout", 75),
    "INSUFFICIENT_MEMORY": Row(Code.RESOURCE_EXHAUSTED, 507, _SERVER, "insufficient_memory", 75),
    "DIGEST_MISMATCH": Row(Code.DATA_LOSS, 400, _BAD, "digest_mismatch", 65),
    "DOWNLOAD_FAILED": Row(Code.UNAVAILABLE, 502, _SERVER, "download_failed", 69),
    "DISK_FULL": Row(Code.RESOURCE_EXHAUSTED, 507, _SERVER, "disk_full", 74),
    "CANNOT_CREATE": Row(Code.FAILED_PRECONDITION, 409, "conflict", "cannot_create", 73),
    "INVALID_CONFIG": Row(Code.FAILED_PRECONDITION, 500, _SERVER, "invalid_config", 78),
}

# Reasons that always ask the client to come back, with the seconds when the failure itself names none.
_DEFAULT_RETRY_S = {
    "QUEUE_FULL": 1.0,
    "QUEUE_TIMEOUT": 1.0,
    "RATE_LIMITED": 1.0,
    "QUANTIZE_BUSY": 10.0,
    "UNAVAILABLE": 1.0,
}

# A status without our ErrorInfo (made by gRPC itself, or by a proxy) is read by its code alone.
_REASON_OF_CODE = {
    Code.CANCELLED: "CANCELLED",
    Code.INVALID_ARGUMENT: "INVALID_ARGUMENT",
    Code.DEADLINE_EXCEEDED: "DEADLINE_EXCEEDED",
    Code.NOT_FOUND: "MODEL_NOT_FOUND",
    Code.ALREADY_EXISTS: "OUTPUT_EXISTS",
    Code.PERMISSION_DENIED: "PERMISSION_DENIED",
    Code.RESOURCE_EXHAUSTED: "QUEUE_FULL",
    Code.FAILED_PRECONDITION: "MODEL_BUSY",
    Code.OUT_OF_RANGE: "CONTEXT_LENGTH_EXCEEDED",
    Code.UNIMPLEMENTED: "NOT_FOUND",
    Code.UNAVAILABLE: "UNAVAILABLE",
    Code.UNAUTHENTICATED: "UNAUTHENTICATED",
    Code.DATA_LOSS: "IO_ERROR",
}


class ApiError(QuantdError):
    """A failure as clients see it; its row in TABLE says how each border spells it.

    `field` is the path in the quantd.v1 message, such as "options.sampling.top_p" ("" if no field is to blame).
    `details` are further facts for programs, sent as ErrorInfo.metadata.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        field: str = "",
        retry_after_s: float | None = None,
        details: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message[:MAX_MESSAGE_CHARS])
        self.reason = reason if reason in TABLE else "INTERNAL"
        self.field = field
        self.retry_after_s = _DEFAULT_RETRY_S.get(self.reason) if retry_after_s is None else retry_after_s
        self.details = dict(details or {})

    @property
    def row(self) -> Row:
        """All statuses of this failure."""
        return TABLE[self.reason]

    @property
    def grpc_code(self) -> Code:
        return self.row.grpc_code

    @property
    def http_status(self) -> int:
        return self.row.http_status


def to_api_error(failure: BaseException, request_id: str = "") -> ApiError:
    """Any failure as the ApiError that clients may see.

    Expected errors keep their message, which names the bad value but never a file path of the host.  Anything else
    becomes INTERNAL: the text of a stray exception could carry prompts, paths or addresses.
    """
    if isinstance(failure, ApiError):
        return failure
    if isinstance(failure, RequestError):
        return ApiError(failure.reason, failure.message, field=failure.field)
    if isinstance(failure, QueueFullError):
        return ApiError(failure.reason, failure.message, retry_after_s=failure.retry_after_s)
    if isinstance(failure, ModelFormatError):
        details = {"code": failure.code, "where": failure.where, "offset": str(failure.offset)}
        return ApiError(failure.reason, failure.message, details=details)
    if isinstance(failure, MemoryPlanError):
        return ApiError(failure.reason, failure.message, details=_plan_numbers(failure.plan))
    if isinstance(failure, QuantdError) and failure.reason != "INTERNAL":
        return ApiError(failure.reason, failure.message)
    if isinstance(failure, MemoryError):
        return ApiError("INSUFFICIENT_MEMORY", "The daemon has no memory left for this.")
    if isinstance(failure, TimeoutError):
        return ApiError("DEADLINE_EXCEEDED", "The time for this request ran out.")
    if isinstance(failure, OSError):
        return _of_os_error(failure)
    named = f" Request {request_id}." if request_id else ""
    return ApiError("INTERNAL", f"Internal error; the daemon's log has the cause.{named}")


def _of_os_error(failure: OSError) -> ApiError:
    if failure.errno in (errno.ENOSPC, errno.EDQUOT):
        return ApiError("DISK_FULL", "No space left on the disk.")
    if failure.errno == errno.ENOMEM:
        return ApiError("INSUFFICIENT_MEMORY", "The daemon has no memory left for this.")
    return ApiError("IO_ERROR", f"Input/output error: {errno.errorcode.get(failure.errno or 0, 'unknown')}.")


def _plan_numbers(plan: Any) -> dict[str, str]:
    names = (
        "weights_bytes",
        "kv_arena_bytes",
        "scratch_bytes",
        "process_bytes",
        "total_bytes",
        "available_bytes",
    )
    return {name: str(getattr(plan, name)) for name in names if hasattr(plan, name)}


def to_rpc_status(error: ApiError) -> status_pb2.Status:
    """The google.rpc.Status that a gRPC call ends with: ErrorInfo always, BadRequest and RetryInfo where they apply."""
    # Imported here: the command line needs this table long before anything speaks gRPC.
    from google.protobuf import any_pb2, duration_pb2  # noqa: PLC0415
    from google.rpc import error_details_pb2, status_pb2  # noqa: PLC0415

    details: list[Any] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.details)
    ]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.message, reason=error.reason
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        nanos = round(error.retry_after_s * 1e9)
        delay = duration_pb2.Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=int(error.grpc_code), message=error.message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def from_rpc_error(failure: grpc.RpcError) -> ApiError:
    """The ApiError that the server raised, from what the client's call ended with."""
    from google.rpc import status_pb2  # noqa: PLC0415

    call: Any = failure  # every RpcError that a call raises is also a grpc.Call
    for key, value in call.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            error = _of_status(status_pb2.Status.FromString(value))
            if error is not None:
                return error
    code = Code(call.code().value[0])
    reason = _REASON_OF_CODE.get(code, "INTERNAL")
    if code is Code.RESOURCE_EXHAUSTED and "larger than max" in (call.details() or ""):
        reason = "REQUEST_TOO_LARGE"  # gRPC's words for a message over max_receive_message_length
    # Texts that gRPC makes itself name addresses and errno strings of the host between us: they stay out.
    message = {
        "UNAVAILABLE": "The model server cannot be reached.",
        "DEADLINE_EXCEEDED": "The time for this request ran out.",
        "CANCELLED": "The request was cancelled.",
        "REQUEST_TOO_LARGE": "The message is larger than the model server takes.",
        "QUEUE_FULL": "The model server has too many calls under way; try again later.",
    }.get(reason, f"The model server answered {code.name}.")
    return ApiError(reason, message)


def _of_status(status: status_pb2.Status) -> ApiError | None:
    """Reads what to_rpc_status wrote; None for a status that is not ours."""
    from google.rpc import error_details_pb2  # noqa: PLC0415

    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    has_retry = False
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(bad.DESCRIPTOR):
            detail.Unpack(bad)
        elif detail.Is(retry.DESCRIPTOR):
            has_retry = detail.Unpack(retry)
    if info.domain != DOMAIN or info.reason not in TABLE:
        return None
    return ApiError(
        info.reason,
        status.message,
        field=bad.field_violations[0].field if bad.field_violations else "",
        retry_after_s=retry.retry_delay.ToNanoseconds() / 1e9 if has_retry else None,
        details=info.metadata,
    )


def openai_body(error: ApiError, *, param: str | None = None) -> dict[str, Any]:
    """The body of OpenAI's API for a failure.  `param` names the JSON field where it differs from the message's."""
    row = error.row
    name = param or _json_field(error.field) or None
    return {
        "error": {"message": error.message, "type": row.openai_type, "param": name, "code": row.openai_code}
    }


def _json_field(field: str) -> str:
    """OpenAI's JSON has plain "top_p" for "options.sampling.top_p"; "messages[1].role" keeps its path."""
    return field.removeprefix("options.").removeprefix("sampling.")


def retry_after_header(error: ApiError) -> str | None:
    """Whole seconds for the Retry-After header, or None."""
    return None if error.retry_after_s is None else str(max(1, math.ceil(error.retry_after_s)))


def exit_code(failure: QuantdError) -> int:
    """The exit code of a command that ended with this failure."""
    return TABLE[failure.reason].exit_code if failure.reason in TABLE else TABLE["INTERNAL"].exit_code
