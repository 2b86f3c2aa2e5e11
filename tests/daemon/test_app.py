"""What the process does when engines fail."""

from daemon.app import Daemon
from daemon.config import Settings
from daemon.services.host import State
from quantd.v1 import generate_pb2 as pb
from quantd.v1 import model_service_pb2 as rpc
from tests.daemon.fakes import write_gguf


async def answered(world, model):
    events = [event async for event in world.generate.Generate(pb.GenerateRequest(model=model, text="hi"))]
    return events[-1].HasField("done")


async def test_it_goes_on_while_any_model_serves(world):
    write_gguf(world.folder / "other.gguf")
    await world.model.LoadModel(rpc.LoadModelRequest(name="other"))
    daemon = Daemon(Settings(), world.services)
    first, second = world.fake.engines
    first.failed = True
    daemon._require_healthy()
    assert not daemon._stop.is_set()
    assert await answered(world, "other")
    assert [one.model.name for one in (await world.model.ListRunning(rpc.ListRunningRequest())).models] == [
        "other"
    ]
    assert await answered(world, "tiny"), "it is loaded anew"
    world.fake.engines[-1].failed = second.failed = True
    daemon._require_healthy()
    assert daemon._stop.is_set()
    assert world.host.state is State.FAILED
    assert not world.host.healthy()
