"""One call of a command to a running daemon."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import grpc

from daemon.addresses import Address
from daemon.errors import ApiError, from_rpc_error
from quantd.v1 import model_service_pb2_grpc

Answer = TypeVar("Answer")

TIMEOUT_S = 10.0


def ask_models(address: Address, call: Callable[[Any, dict[str, Any]], Answer]) -> Answer:
    """What `call(stub, options of a call)` gives of the ModelService at `address`; its errors as the daemon raised them.

    QUANTD_API_KEY goes along where it is set.
    """
    key = os.environ.get("QUANTD_API_KEY", "")
    options: dict[str, Any] = {"timeout": TIMEOUT_S}
    if key:
        options["metadata"] = (("authorization", f"Bearer {key}"),)
    with grpc.insecure_channel(str(address), options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            return call(model_service_pb2_grpc.ModelServiceStub(channel), options)
        except grpc.RpcError as failure:
            error = from_rpc_error(failure)
            if error.message == "The model server cannot be reached.":
                raise ApiError(
                    "UNAVAILABLE", f"no daemon answers at {address} (quantd serve starts one)"
                ) from None
            raise error from None
