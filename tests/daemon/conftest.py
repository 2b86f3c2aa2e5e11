"""A daemon's services over a fake engine, behind a real gRPC server on a free port."""

from types import SimpleNamespace

import grpc
import grpc.aio
import pytest_asyncio

from daemon.access.gate import Gate
from daemon.addresses import Address
from daemon.rpc.server import RpcServer
from daemon.services import Services
from daemon.services.catalog import Catalog
from daemon.services.embed import EmbeddingService
from daemon.services.folder import ModelFolder
from daemon.services.generate import GenerateService
from daemon.services.host import HostLimits, ModelHost
from daemon.services.library import LibraryService
from daemon.services.model import ModelService
from daemon.services.quantize import QuantizeService
from daemon.services.tokenizer import TokenizerService
from daemon.store.models import ModelStore
from quantd.v1 import (
    embedding_service_pb2_grpc,
    generate_service_pb2_grpc,
    model_service_pb2_grpc,
    quantize_service_pb2_grpc,
    tokenizer_service_pb2_grpc,
)
from runtime.memory import RuntimeSettings
from tests.daemon import fakes


@pytest_asyncio.fixture
async def world(tmp_path):
    """Services and gRPC stubs over one fake model named "tiny" that is loaded."""
    fake = fakes.FakeWorld()
    folder = Catalog(ModelFolder(tmp_path), ModelStore(tmp_path / "store"))
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    host = ModelHost(folder, RuntimeSettings(sessions=2), fake.parts(), HostLimits(max_waiting=2))
    model = ModelService(host)
    quantize = QuantizeService(folder)
    services = Services(
        gate=Gate(None),
        host=host,
        generate=GenerateService(host),
        tokenizer=TokenizerService(host),
        embedding=EmbeddingService(host),
        model=model,
        library=LibraryService(host, model, quantize=quantize),
        quantize=quantize,
    )
    server = RpcServer(services, max_concurrent=8)
    address = server.bind(Address("127.0.0.1", 0))
    await server.start()
    await host.load_path(tmp_path / "tiny.gguf")
    await server.set_serving(True)
    channel = grpc.aio.insecure_channel(str(address))
    yield SimpleNamespace(
        fake=fake,
        host=host,
        services=services,
        server=server,
        address=address,
        folder=tmp_path,
        channel=channel,
        engine=fake.engines[-1],
        generate=generate_service_pb2_grpc.GenerateServiceStub(channel),
        tokenizer=tokenizer_service_pb2_grpc.TokenizerServiceStub(channel),
        embedding=embedding_service_pb2_grpc.EmbeddingServiceStub(channel),
        model=model_service_pb2_grpc.ModelServiceStub(channel),
        quantize=quantize_service_pb2_grpc.QuantizeServiceStub(channel),
    )
    await channel.close()
    await server.stop(0)
    await host.stop(0)
    await host.close_model()
