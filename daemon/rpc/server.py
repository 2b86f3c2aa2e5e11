"""The gRPC server: options, services, health and reflection."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from daemon.addresses import Address, require_free
from daemon.errors import ApiError
from daemon.kserve.servicer import InferenceServicer
from daemon.rpc.interceptor import CallInterceptor
from daemon.rpc.servicers import (
    EmbeddingServicer,
    GenerateServicer,
    ModelServicer,
    QuantizeServicer,
    TokenizerServicer,
)
from daemon.services import Services
from daemon.tls import TlsFiles
from quantd.kserve import inference_pb2, inference_pb2_grpc
from quantd.v1 import (
    embedding_service_pb2,
    embedding_service_pb2_grpc,
    generate_service_pb2,
    generate_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    quantize_service_pb2,
    quantize_service_pb2_grpc,
    tokenizer_service_pb2,
    tokenizer_service_pb2_grpc,
)

MAX_MESSAGE_BYTES = 4 * 2**20
SPARE_RPCS = 32  # beside sessions and queue: health, tokenizing, model calls must not starve

OPTIONS = [
    ("grpc.so_reuseport", 0),  # a second daemon on the port must fail, not share it
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 8 * 1024),
    ("grpc.max_concurrent_streams", 64),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.max_connection_idle_ms", 600_000),
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.max_connection_age_grace_ms", 300_000),
]

# Services that answer only while a model is served; the others work without one.
_NEED_MODEL = [
    generate_service_pb2.DESCRIPTOR.services_by_name["GenerateService"].full_name,
    tokenizer_service_pb2.DESCRIPTOR.services_by_name["TokenizerService"].full_name,
    embedding_service_pb2.DESCRIPTOR.services_by_name["EmbeddingService"].full_name,
    inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
]
_ALWAYS = [
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
    quantize_service_pb2.DESCRIPTOR.services_by_name["QuantizeService"].full_name,
]
OVERALL = ""


class RpcServer:
    """One gRPC server on one address."""

    def __init__(self, services: Services, *, max_concurrent: int) -> None:
        self._server = grpc.aio.server(
            interceptors=[CallInterceptor(services.gate)],
            options=OPTIONS,
            maximum_concurrent_rpcs=max_concurrent + SPARE_RPCS,
        )
        self._health: Any = health_aio.HealthServicer()
        self._address: Address | None = None
        generate_service_pb2_grpc.add_GenerateServiceServicer_to_server(
            GenerateServicer(services), self._server
        )
        tokenizer_service_pb2_grpc.add_TokenizerServiceServicer_to_server(
            TokenizerServicer(services), self._server
        )
        embedding_service_pb2_grpc.add_EmbeddingServiceServicer_to_server(
            EmbeddingServicer(services), self._server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(services), self._server)
        quantize_service_pb2_grpc.add_QuantizeServiceServicer_to_server(
            QuantizeServicer(services), self._server
        )
        inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            InferenceServicer(services), self._server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [*_NEED_MODEL, *_ALWAYS, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]
        reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], self._server)

    def bind(self, address: Address, tls: TlsFiles | None = None) -> Address:
        """Takes the address (ADDRESS_IN_USE if it is taken); returns it with the port that was chosen for port 0.

        A unix socket stays plain: its file mode says who may use it.
        """
        require_free(address, "gRPC")
        try:
            # Not world-writable for the moment between bind and chmod: the umask covers it.
            old_mask = os.umask(0o117 if address.is_unix else 0o077)
            try:
                if tls is None or address.is_unix:
                    port = self._server.add_insecure_port(str(address))
                else:
                    port = self._server.add_secure_port(str(address), tls.grpc_credentials())
            finally:
                os.umask(old_mask)
        except RuntimeError as failure:
            raise ApiError("ADDRESS_IN_USE", f"gRPC address {address} cannot be used") from failure
        self._address = address if address.is_unix else address.with_port(port)
        return self._address

    async def start(self) -> None:
        """Answers from now on; health says NOT_SERVING until `set_serving`."""
        await self.set_serving(False)
        for name in _ALWAYS:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()

    async def set_serving(self, serving: bool) -> None:
        """The overall health and that of the services that need a model."""
        status = (
            health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in (OVERALL, *_NEED_MODEL):
            await self._health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        """No new calls; running ones get `grace_s`, then UNAVAILABLE."""
        await self._health.enter_graceful_shutdown()
        # grpc.aio can wait for ever for calls that were aborted at that moment (grpc issue 37239).
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._server.stop(grace_s), grace_s + 2.0)
        if self._address is not None and self._address.is_unix:
            _remove(Path(self._address.path))


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
