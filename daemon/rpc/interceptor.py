"""Around every call of ours: an id, a deadline, and an error that is a rich status and never Python's text."""

from __future__ import annotations

import asyncio
import contextvars
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from daemon.access.credential import credential_of
from daemon.access.gate import Gate
from daemon.errors import ApiError, to_api_error, to_rpc_status
from daemon.log import get_logger
from daemon.services.call import Call, new_request_id

log = get_logger("quantd.rpc")

PREFIXES = ("/quantd.v1.", "/inference.GRPCInferenceService/")
# What tells no more than health does, and to whom health does: probes have no key.
OPEN = tuple(f"{PREFIXES[1]}{name}" for name in ("ServerLive", "ServerReady", "ServerMetadata"))
REQUEST_ID_KEY = "x-request-id"
_CODES = {code.value[0]: code for code in grpc.StatusCode}

# An id that a caller brings (a gateway does) is kept if it can do no harm in a log.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)

current_call: contextvars.ContextVar[Call] = contextvars.ContextVar("quantd_call")


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of our services; health and reflection stay as they are, and need no key."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or not method.startswith(PREFIXES):
            return handler
        gate = None if method in OPEN else self._gate
        # Requests arrive as bytes: gRPC's own decoding answers a broken message with UNKNOWN and Python's text.
        decode = handler.request_deserializer
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                _conversing(handler.stream_stream, decode, gate), None, handler.response_serializer
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _streaming(handler.unary_stream, decode, gate), None, handler.response_serializer
            )
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(
                _uploading(handler.stream_unary, decode, gate), None, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            _unary(handler.unary_unary, decode, gate), None, handler.response_serializer
        )


def _streaming(
    method: Callable[[Any, Any], AsyncGenerator[Any, None]], decode: Callable[[bytes], Any], gate: Gate | None
) -> Any:
    async def handle(data: bytes, context: Any) -> None:
        call = await _begin(context)
        try:
            _admit(context, call, gate)
            # Writing here and not yielding: when the call ends early, the iterator is closed before we leave.
            async with aclosing(method(_decoded(decode, data), context)) as events:
                async for event in events:
                    await context.write(event)
        except Exception as failure:  # noqa: BLE001  the border: everything becomes a status
            await _abort(context, failure, call)

    return handle


def _unary(
    method: Callable[[Any, Any], Awaitable[Any]], decode: Callable[[bytes], Any], gate: Gate | None
) -> Any:
    async def handle(data: bytes, context: Any) -> Any:
        call = await _begin(context)
        try:
            _admit(context, call, gate)
            return await method(_decoded(decode, data), context)
        except Exception as failure:  # noqa: BLE001  the border: everything becomes a status
            await _abort(context, failure, call)

    return handle


def _uploading(
    method: Callable[[Any, Any], Awaitable[Any]], decode: Callable[[bytes], Any], gate: Gate | None
) -> Any:
    async def handle(parts: AsyncIterator[bytes], context: Any) -> Any:
        call = await _begin(context)
        try:
            _admit(context, call, gate)
            return await method(_messages(parts, decode), context)
        except Exception as failure:  # noqa: BLE001  the border: everything becomes a status
            await _abort(context, failure, call)

    return handle


def _conversing(
    method: Callable[[Any, Any], AsyncGenerator[Any, None]], decode: Callable[[bytes], Any], gate: Gate | None
) -> Any:
    async def handle(parts: AsyncIterator[bytes], context: Any) -> None:
        call = await _begin(context)
        try:
            _admit(context, call, gate)
            async with aclosing(method(_messages(parts, decode), context)) as events:
                async for event in events:
                    await context.write(event)
        except Exception as failure:  # noqa: BLE001  the border: everything becomes a status
            await _abort(context, failure, call)

    return handle


async def _messages(parts: AsyncIterator[bytes], decode: Callable[[bytes], Any]) -> AsyncIterator[Any]:
    async for part in parts:
        yield _decoded(decode, part)


def _decoded(decode: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return decode(data)
    except DecodeError:
        raise ApiError("INVALID_ARGUMENT", "The message cannot be decoded.") from None


async def _begin(context: Any) -> Call:
    """Makes the Call of this context; its id goes back at once as metadata."""
    task = asyncio.current_task()
    assert task is not None
    given = next((value for key, value in context.invocation_metadata() or () if key == REQUEST_ID_KEY), "")
    request_id = given if _REQUEST_ID.fullmatch(given) else new_request_id()
    within = Call.within(context.time_remaining(), request_id)
    call = Call(within.request_id, within.deadline, on_stall=task.cancel)
    await context.send_initial_metadata(((REQUEST_ID_KEY, call.request_id),))
    return call


def _admit(context: Any, call: Call, gate: Gate | None) -> None:
    """Finds out whose call this is; raises ApiError UNAUTHENTICATED before the message is looked at.  No gate: nobody's."""
    if gate is None:
        current_call.set(call)
        return
    texts = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    current_call.set(replace(call, caller=gate.caller(credential_of(texts))))


async def _abort(context: Any, failure: Exception, call: Call) -> None:
    error = to_api_error(failure, call.request_id)
    if not isinstance(failure, ApiError) and error.reason == "INTERNAL":
        log.error("internal_error", request_id=call.request_id, exc_info=failure)
    status = to_rpc_status(error)
    await context.abort(
        _CODES[status.code], status.message, (("grpc-status-details-bin", status.SerializeToString()),)
    )
