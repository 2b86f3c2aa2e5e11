"""The gRPC border against clients that misbehave: raw bytes, huge metadata, nobody reading, too many calls."""

import asyncio
import time

import grpc
import pytest

from daemon import bridge as bridging
from daemon.addresses import Address
from daemon.errors import ApiError
from daemon.rpc.server import RpcServer
from quantd.v1 import generate_pb2 as pb
from quantd.v1 import generate_service_pb2_grpc
from tests.daemon.test_generate import collect, text_of, until

GENERATE = "/quantd.v1.GenerateService/Generate"
UNARY = "/quantd.v1.GenerateService/GenerateUnary"


async def code_of(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "__aiter__"):
            await collect(call)
        else:
            await call
    return caught.value.code()


async def test_still_answers(world):
    assert text_of(await collect(world.generate.Generate(pb.GenerateRequest(text="hi")))) == "hello"


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        b"\x0a\xff\xff\xff\xff\x0f",  # a string of 4 GB that is not there
        b"\x12\x02\xc3\x28",  # text that is no UTF-8
        b"\x0b" * 200,  # groups in groups
        bytes(range(256)),
    ],
)
async def test_bytes_that_are_no_message(world, data):
    for make, path in ((world.channel.unary_stream, GENERATE), (world.channel.unary_unary, UNARY)):
        assert await code_of(make(path)(data)) is grpc.StatusCode.INVALID_ARGUMENT
    await test_still_answers(world)


async def test_an_unknown_method_is_unimplemented(world):
    call = world.channel.unary_unary("/quantd.v1.GenerateService/Nothing")(b"")
    assert await code_of(call) is grpc.StatusCode.UNIMPLEMENTED


async def test_huge_metadata_is_refused(world):
    call = world.generate.Generate(pb.GenerateRequest(text="hi"), metadata=(("x-big", "x" * 64_000),))
    assert await code_of(call) in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
    await test_still_answers(world)


async def test_unknown_fields_and_enum_values_are_ignored(world):
    request = pb.GenerateRequest(text="hi").SerializeToString() + b"\xa0\x3f\x01"  # field 1012
    call = world.channel.unary_stream(GENERATE)(request)
    assert len([event async for event in call]) == 7


async def test_a_client_that_never_reads_loses_its_call_and_its_session(world, monkeypatch):
    monkeypatch.setattr(world.host.served.bridge, "_stall_s", 0.3)
    monkeypatch.setattr(bridging, "MAX_PENDING", 10**9)
    world.host.served.model.context_tokens = 10**6
    world.engine.script = [104]
    world.engine.step_s = 0.00001
    # A client that takes little ahead of what it reads; by default gRPC's would buffer megabytes by itself.
    options = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024))
    channel = grpc.aio.insecure_channel(str(world.address), options)
    stub = generate_service_pb2_grpc.GenerateServiceStub(channel)
    call = stub.Generate(pb.GenerateRequest(text="hi"))
    await call.read()
    await until(lambda: world.engine.running)
    # From here nobody reads: the windows of HTTP/2 fill, the server's writes stand still, the request is given up.
    await until(lambda: not world.engine.running, seconds=20)
    await until(lambda: world.host.num_requests == 0)
    await channel.close()


async def test_many_calls_at_once_are_refused_and_not_queued_for_ever(world):
    world.engine.prefill_s = 0.3
    calls = [world.generate.Generate(pb.GenerateRequest(text="hi")) for _ in range(60)]

    async def end(call):
        try:
            await collect(call)
        except grpc.aio.AioRpcError as failure:
            return failure.code()
        return grpc.StatusCode.OK

    codes = await asyncio.gather(*(end(call) for call in calls))
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert codes.count(grpc.StatusCode.OK) >= 4
    assert world.host.num_requests == 0


async def test_stop_ends_calls_within_its_grace(world):
    world.engine.prefill_s = 60
    calls = [world.generate.Generate(pb.GenerateRequest(text="hi")) for _ in range(4)]
    for call in calls:
        await call.read()
    calls[0].cancel()
    started = time.monotonic()
    await world.server.stop(0.1)
    assert time.monotonic() - started < 3
    await until(lambda: world.host.num_requests == 0)


async def test_two_servers_never_share_a_port(world):
    with pytest.raises(ApiError) as caught:
        RpcServer(world.services, max_concurrent=1).bind(Address("127.0.0.1", world.address.port))
    assert caught.value.reason == "ADDRESS_IN_USE"
