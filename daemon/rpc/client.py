"""One call of a command to a running daemon, with TLS and a key where the daemon wants them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc

from daemon.addresses import Address
from daemon.errors import ApiError, from_rpc_error
from daemon.tls import client_credentials
from quantd.v1 import model_service_pb2_grpc

Answer = TypeVar("Answer")

TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Remote:
    """Where a daemon is, and how a client shows itself."""

    address: Address
    api_key: str = ""
    tls: bool = False
    ca: Path | None = None  # of the daemon's certificate; None: the authorities that this system trusts
    certificate: Path | None = None  # of the client, where the daemon asks for one (mutual TLS), with its key
    key: Path | None = None


def ask_models(remote: Remote, call: Callable[[Any, dict[str, Any]], Answer]) -> Answer:
    """What `call(stub, options of a call)` gives of the ModelService there; its errors as the daemon raised them."""
    options: dict[str, Any] = {"timeout": TIMEOUT_S}
    if remote.api_key:
        options["metadata"] = (("authorization", f"Bearer {remote.api_key}"),)
    with _channel(remote) as channel:
        try:
            return call(model_service_pb2_grpc.ModelServiceStub(channel), options)
        except grpc.RpcError as failure:
            error = from_rpc_error(failure)
            if error.message == "The model server cannot be reached.":
                raise ApiError("UNAVAILABLE", _why(remote, failure)) from None
            raise error from None


def _channel(remote: Remote) -> grpc.Channel:
    quiet = (("grpc.enable_http_proxy", 0),)
    if not remote.tls:
        return grpc.insecure_channel(str(remote.address), options=quiet)
    credentials = client_credentials(remote.ca, remote.certificate, remote.key)
    return grpc.secure_channel(str(remote.address), credentials, options=quiet)


def _why(remote: Remote, failure: Any) -> str:
    """Why nobody answered, as far as gRPC tells it."""
    details = str(failure.details()).lower()
    where = f"no daemon answers at {remote.address}"
    if remote.tls and "certificate_verify_failed" in details:
        trusted = f"by {remote.ca}" if remote.ca else "by an authority that this system trusts"
        return f"{where} with a certificate that is signed {trusted} (--ca names another)"
    if remote.tls and ("hostname" in details or "host name" in details or "peer name" in details):
        return f"{where} under that name: its certificate is for another (use a name that stands in it)"
    if "connection refused" in details or "no such file" in details:
        return f"{where} (quantd serve starts one)"
    hint = (
        "it may ask for a client certificate (--client-cert)"
        if remote.tls
        else "it may use TLS (--tls, --ca)"
    )
    return f"{where}; {hint}"
