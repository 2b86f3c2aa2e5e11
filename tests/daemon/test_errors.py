"""The error table: every reason survives the wire, and nothing of a stray exception reaches a client."""

import errno
from types import SimpleNamespace

import grpc
import pytest
from google.rpc import error_details_pb2

from daemon.errors import (
    MAX_MESSAGE_CHARS,
    TABLE,
    ApiError,
    exit_code,
    from_rpc_error,
    openai_body,
    retry_after_header,
    to_api_error,
    to_rpc_status,
)
from runtime import errors


class FakeRpcError(grpc.RpcError):
    def __init__(self, code, details=None):
        self._code, self._details, self.text = code, details, ""

    def code(self):
        return self._code

    def details(self):
        return self.text

    def trailing_metadata(self):
        return () if self._details is None else (("grpc-status-details-bin", self._details),)


def over_the_wire(error):
    code = next(code for code in grpc.StatusCode if code.value[0] == int(error.grpc_code))
    return from_rpc_error(FakeRpcError(code, to_rpc_status(error).SerializeToString()))


@pytest.mark.parametrize("reason", sorted(TABLE))
def test_every_reason_survives_the_wire(reason):
    sent = ApiError(
        reason, "what happened", field="options.sampling.top_p", retry_after_s=2.5, details={"a": "b"}
    )
    got = over_the_wire(sent)
    assert (got.reason, got.message, got.field, got.retry_after_s, got.details) == (
        reason,
        "what happened",
        "options.sampling.top_p",
        2.5,
        {"a": "b"},
    )
    assert openai_body(got) == openai_body(sent)
    assert got.http_status == sent.http_status


@pytest.mark.parametrize(
    ("failure", "reason", "http", "code"),
    [
        (errors.RequestError("options.max_tokens", "bad"), "INVALID_ARGUMENT", 400, "invalid_value"),
        (
            errors.ContextLengthError("text", "too long", prompt_tokens=9, context_tokens=4),
            "CONTEXT_LENGTH_EXCEEDED",
            400,
            "context_length_exceeded",
        ),
        (errors.QueueFullError("full", retry_after_s=3), "QUEUE_FULL", 429, "queue_full"),
        (errors.EngineStoppedError("draining"), "UNAVAILABLE", 503, "unavailable"),
        (
            errors.ModelFormatError("TRUNCATED", "key", 17, "cut"),
            "INVALID_MODEL_FILE",
            400,
            "invalid_model_file",
        ),
        (errors.UnsupportedModelError("no"), "UNSUPPORTED_MODEL", 400, "unsupported_model"),
        (errors.ModelChangedError("gone"), "MODEL_FILE_CHANGED", 500, "model_file_changed"),
        (
            errors.MemoryPlanError("no", SimpleNamespace(total_bytes=5)),
            "INSUFFICIENT_MEMORY",
            507,
            "insufficient_memory",
        ),
        (OSError(errno.ENOSPC, "secret path"), "DISK_FULL", 507, "disk_full"),
        (OSError(errno.EIO, "secret path"), "IO_ERROR", 500, "io_error"),
        (MemoryError("secret"), "INSUFFICIENT_MEMORY", 507, "insufficient_memory"),
        (TimeoutError("secret"), "DEADLINE_EXCEEDED", 504, "timeout"),
        (ValueError("secret"), "INTERNAL", 500, "internal_error"),
        (KeyError("secret"), "INTERNAL", 500, "internal_error"),
    ],
)
def test_each_failure_has_its_row(failure, reason, http, code):
    error = to_api_error(failure, "req-1")
    assert (error.reason, error.http_status) == (reason, http)
    assert openai_body(error)["error"]["code"] == code
    assert "secret" not in error.message


def test_every_error_class_of_the_runtime_has_a_row():
    classes = [errors.QuantdError]
    for one in classes:
        classes.extend(one.__subclasses__())
    for one in classes:
        assert one.reason in TABLE


def test_an_unexpected_exception_names_only_the_request():
    error = to_api_error(RuntimeError("/etc/secret"), "req-7")
    assert "req-7" in error.message
    assert "secret" not in error.message


def test_status_carries_error_info_bad_request_and_retry_info():
    status = to_rpc_status(ApiError("QUEUE_FULL", "full", field="model", retry_after_s=1.25))
    kinds = [detail.type_url.rsplit(".", 1)[1] for detail in status.details]
    assert kinds == ["ErrorInfo", "BadRequest", "RetryInfo"]
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    assert (info.reason, info.domain) == ("QUEUE_FULL", "quantd")
    retry = error_details_pb2.RetryInfo()
    status.details[2].Unpack(retry)
    assert (retry.retry_delay.seconds, retry.retry_delay.nanos) == (1, 250_000_000)


def test_openai_body_names_the_json_field():
    body = openai_body(ApiError("INVALID_ARGUMENT", "no", field="options.sampling.temperature"))
    assert body == {
        "error": {
            "message": "no",
            "type": "invalid_request_error",
            "param": "temperature",
            "code": "invalid_value",
        }
    }
    assert (
        openai_body(ApiError("INVALID_ARGUMENT", "no", field="messages[1].role"))["error"]["param"]
        == "messages[1].role"
    )
    assert openai_body(ApiError("INTERNAL", "no"))["error"]["param"] is None
    assert openai_body(ApiError("INVALID_ARGUMENT", "no", field="x"), param="y")["error"]["param"] == "y"


@pytest.mark.parametrize(
    ("code", "http"),
    [
        (grpc.StatusCode.UNAVAILABLE, 503),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504),
        (grpc.StatusCode.CANCELLED, 499),
        (grpc.StatusCode.UNKNOWN, 500),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
        (grpc.StatusCode.UNIMPLEMENTED, 404),
    ],
)
def test_a_status_that_is_not_ours_is_read_by_its_code(code, http):
    assert from_rpc_error(FakeRpcError(code)).http_status == http
    assert from_rpc_error(FakeRpcError(code, b"")).http_status == http


def test_a_message_that_grpc_itself_found_too_large():
    failure = FakeRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED)
    failure.text = "SERVER: Received message larger than max (4194310 vs. 4194304)"
    assert from_rpc_error(failure).http_status == 413


def test_messages_are_bounded_and_retry_seconds_whole():
    assert len(ApiError("INTERNAL", "x" * 10_000).message) == MAX_MESSAGE_CHARS
    assert retry_after_header(ApiError("QUEUE_FULL", "full", retry_after_s=1.2)) == "2"
    assert retry_after_header(ApiError("QUEUE_FULL", "full", retry_after_s=0.1)) == "1"
    assert retry_after_header(ApiError("INTERNAL", "no")) is None


def test_exit_codes():
    assert exit_code(errors.RequestError("a", "b")) == 64
    assert exit_code(errors.ModelFormatError("A", "b", 0, "c")) == 65
    assert exit_code(errors.MemoryPlanError("a", None)) == 75
    assert exit_code(ApiError("ADDRESS_IN_USE", "a")) == 69
    assert exit_code(ApiError("INVALID_CONFIG", "a")) == 78
    assert exit_code(ApiError("OUTPUT_EXISTS", "a")) == 73
