"""Several models in memory: loaded when first asked for, kept while used, gone when idle or in the way."""

import asyncio
import time
from contextlib import AsyncExitStack

import pytest

from daemon.errors import ApiError
from daemon.keep_alive import FOREVER
from daemon.services.failures import MAX_FAILURES
from daemon.services.folder import ModelFolder
from daemon.services.host import HostLimits, ModelHost, State
from runtime.errors import MemoryPlanError, UnsupportedModelError
from runtime.memory import RuntimeSettings
from runtime.request import FinishEvent, Request
from runtime.sampling import SamplingParams
from tests.daemon import fakes

NAMES = ("a", "b", "c", "d")


@pytest.fixture
async def make(tmp_path):
    """Hosts over fake models a, b, c and d of 40 bytes each, in 100 bytes of room."""
    made = []

    def make(room_bytes=100, sizes=None, **limits):
        for name in NAMES:
            (tmp_path / f"{name}.gguf").write_bytes(b"GGUF")
        fake = fakes.FakeWorld()
        fake.room_bytes = room_bytes
        fake.sizes = dict.fromkeys(NAMES, 40) | (sizes or {})
        host = ModelHost(
            ModelFolder(tmp_path), RuntimeSettings(sessions=2), fake.parts(), HostLimits(**limits)
        )
        host.fake = fake
        host.open()
        made.append(host)
        return host

    yield make
    for host in made:
        await host.stop(0)
        await host.close_model()


async def touch(host, name, **options):
    async with host.admit(name, **options) as served:
        return served


def in_memory(host):
    return {slot.entry.name for slot in host.slots if slot.served is not None}


async def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.005)


async def generate(served):
    request = Request(id="r", prompt_ids=(1,), max_tokens=3, sampling=SamplingParams())
    stream = served.bridge.submit(request)
    while not isinstance(await stream.next(), FinishEvent):
        pass


async def test_the_first_request_loads_and_the_next_one_finds_it(make):
    host = make()
    assert host.ready()
    assert (await touch(host, "a")).name == "a"
    await touch(host, "a")
    assert host.fake.loads == [("a", [])]
    assert await touch(host, "b") is not None
    assert host.fake.loads[1] == ("b", [40])
    assert in_memory(host) == {"a", "b"}


async def test_concurrent_first_requests_load_once(make):
    host = make()
    host.fake.load_s = 0.05
    served = await asyncio.gather(*(touch(host, "a") for _ in range(20)))
    assert len(host.fake.loads) == 1
    assert len({id(one.engine) for one in served}) == 1


async def test_the_idle_model_used_least_recently_makes_room(make):
    host = make()
    for name in ("a", "b", "a", "c"):
        await touch(host, name)
    assert in_memory(host) == {"a", "c"}
    assert [model.closed for model in host.fake.models] == [False, True, False]


async def test_no_more_models_than_configured(make):
    host = make(room_bytes=1000, max_models=2)
    for name in NAMES:
        await touch(host, name)
    assert in_memory(host) == {"c", "d"}


async def test_a_model_in_use_is_never_unloaded(make):
    host = make()
    async with host.admit("a") as served, host.admit("b"):
        with pytest.raises(ApiError) as caught:
            await touch(host, "c", deadline=time.monotonic() + 0.1)
        assert caught.value.reason == "DEADLINE_EXCEEDED"
        assert in_memory(host) == {"a", "b"}
        assert not any(model.closed for model in host.fake.models)
        await generate(served)
    await until(lambda: not host.loading)
    assert {slot.entry.name for slot in host.slots} == {"a", "b"}, "nobody waits for c any more"


async def test_a_running_generation_holds_its_model(make):
    host = make(room_bytes=50)
    async with host.admit("a") as served:
        host.fake.engines[0].prefill_s = 0.2
        request = Request(id="long", prompt_ids=(1,), max_tokens=2, sampling=SamplingParams())
        stream = served.bridge.submit(request)
    begin = time.monotonic()
    await touch(host, "b")
    assert time.monotonic() - begin >= 0.15
    assert in_memory(host) == {"b"}
    assert len(host.fake.engines[0].requests) == 1
    seen = []
    while not seen or not isinstance(seen[-1], FinishEvent):
        seen.append(await stream.next())
    assert seen[-1].reason.value in ("stop", "length")


async def test_a_load_waits_until_a_busy_model_is_idle(make):
    host = make()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(host.admit("a"))
        await stack.enter_async_context(host.admit("b"))
        waiting = asyncio.create_task(touch(host, "c"))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await touch(host, "a")  # a model in memory answers meanwhile
    assert (await asyncio.wait_for(waiting, 5)).name == "c"
    assert "c" in in_memory(host)


async def test_an_idle_model_that_does_not_help_stays(make):
    host = make(sizes={"a": 10, "b": 80, "c": 95})
    await touch(host, "a")
    async with host.admit("b"):
        with pytest.raises(ApiError):
            await touch(host, "c", deadline=time.monotonic() + 0.05)
        assert in_memory(host) == {"a", "b"}


async def test_what_could_never_fit_is_refused_and_nobody_leaves(make):
    host = make(sizes={"d": 101})
    await touch(host, "a")
    with pytest.raises(MemoryPlanError):
        await touch(host, "d")
    assert in_memory(host) == {"a"}
    async with host.admit("a"):
        begin = time.monotonic()
        with pytest.raises(MemoryPlanError):
            await touch(host, "d")
        assert time.monotonic() - begin < 2, "it was refused and did not wait"


async def test_a_model_leaves_when_its_keep_alive_is_over(make):
    host = make(keep_alive_s=0.1)
    await touch(host, "a")
    assert in_memory(host) == {"a"}
    await until(lambda: not in_memory(host) and host.fake.models[0].closed)
    assert not host.slots
    await touch(host, "a")
    assert len(host.fake.loads) == 2


async def test_use_puts_the_end_off(make):
    host = make(keep_alive_s=0.2)
    for _ in range(6):
        await touch(host, "a")
        await asyncio.sleep(0.08)
    assert len(host.fake.loads) == 1


async def test_keep_alive_of_a_request(make):
    host = make(keep_alive_s=0.05)
    await touch(host, "a", keep_alive_s=FOREVER)
    await touch(host, "b", keep_alive_s=0.0)
    await until(lambda: in_memory(host) == {"a"})
    await asyncio.sleep(0.15)
    await touch(host, "a")
    assert in_memory(host) == {"a"}, "it holds for later requests too"
    async with host.admit("a", keep_alive_s=0.0) as served:
        await asyncio.sleep(0.05)
        await generate(served)
        assert in_memory(host) == {"a"}, "not while it is in use"
    await until(lambda: not in_memory(host))


async def test_what_the_operator_loads_stays_and_is_the_default(make):
    host = make(keep_alive_s=0.02)
    with pytest.raises(ApiError, match="Name a model"):
        await touch(host, "")
    await host.load(host.find("b"))
    assert (await touch(host, "")).name == "b"
    await asyncio.sleep(0.1)
    assert in_memory(host) == {"b"}
    await host.load(host.find("a"))
    assert (await touch(host, "")).name == "b"
    await host.unload(host.find("b"))
    assert in_memory(host) == {"a"}
    assert (await touch(host, "")).name == "b", "the default comes back when it is asked for"


async def test_a_failed_load_tells_everybody_and_the_next_request_tries_again(make):
    host = make()
    host.fake.load_s = 0.05
    host.fake.load_error = UnsupportedModelError("unknown architecture")
    results = await asyncio.gather(*(touch(host, "a") for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [UnsupportedModelError] * 3
    assert len(host.fake.loads) == 1
    assert not host.slots
    assert host.state is State.READY
    host.fake.load_error = None
    assert (await touch(host, "a")).name == "a"


async def test_a_load_goes_on_without_its_caller(make):
    host = make()
    host.fake.load_s = 0.2
    waiting = asyncio.create_task(touch(host, "a"))
    await until(lambda: host.loading)
    waiting.cancel()
    await until(lambda: in_memory(host) == {"a"})
    assert host.num_requests == 0


async def test_requests_for_a_loading_model_are_bounded(make):
    host = make(max_waiting=3)
    host.fake.load_s = 0.2
    results = await asyncio.gather(*(touch(host, "a") for _ in range(8)), return_exceptions=True)
    refused = [one for one in results if isinstance(one, ApiError)]
    assert [one.reason for one in refused] == ["QUEUE_FULL"] * 3


async def test_a_request_without_a_deadline_waits_for_the_load_timeout(make):
    host = make(load_timeout_s=0.1)
    async with host.admit("a"), host.admit("b"):
        with pytest.raises(ApiError) as caught:
            await touch(host, "c")
    assert caught.value.reason == "UNAVAILABLE"


async def test_unloading_waits_for_requests_if_asked(make):
    host = make()
    entry = host.find("a")
    with pytest.raises(ApiError) as caught:
        await host.unload(entry)
    assert caught.value.reason == "MODEL_NOT_FOUND"
    async with host.admit("a"):
        with pytest.raises(ApiError) as caught:
            await host.unload(entry)
        assert caught.value.reason == "MODEL_BUSY"
        assert await host.unload(entry, when_idle=True) is False
        assert in_memory(host) == {"a"}
    await until(lambda: not in_memory(host))
    await touch(host, "a")
    assert await host.unload(entry) is True
    assert not in_memory(host)


async def test_a_file_that_was_replaced_is_loaded_anew(make, tmp_path):
    host = make()
    await touch(host, "a", keep_alive_s=FOREVER)
    (tmp_path / "a.gguf").write_bytes(b"GGUF, but another")
    await touch(host, "a")
    assert len(host.fake.loads) == 2
    await until(lambda: host.fake.models[0].closed)
    assert in_memory(host) == {"a"}


async def test_draining_ends_loads_that_wait(make):
    host = make()
    async with host.admit("a"), host.admit("b"):
        waiting = asyncio.create_task(touch(host, "c"))
        await asyncio.sleep(0.05)
        host.drain()
        with pytest.raises(ApiError) as caught:
            await waiting
        assert caught.value.reason == "UNAVAILABLE"


async def test_metrics_of_several_models(make):
    host = make()
    for name in ("a", "b", "c"):
        await touch(host, name)
    text = host.metrics.render().decode()
    assert 'vllm:num_requests_running{engine="0",model_name="b"}' in text
    assert 'vllm:num_requests_running{engine="0",model_name="a"}' not in text
    assert "quantd_models_loaded 2.0" in text
    assert 'quantd_model_loads_total{result="loaded"} 3.0' in text
    assert "quantd_model_evictions_total 1.0" in text
    assert 'quantd_model_memory_bytes{model_name="c"} 40.0' in text


async def test_many_requests_for_many_models_all_end(make):
    host = make(room_bytes=80, max_waiting=100)

    async def ask(index):
        async with host.admit(NAMES[index % 4]) as served:
            assert served.name == NAMES[index % 4]
            assert not served.model.closed
            await asyncio.sleep(0.001 * (index % 3))
            assert not served.model.closed

    await asyncio.wait_for(asyncio.gather(*(ask(index) for index in range(60))), 20)
    assert len(in_memory(host)) <= 2


async def test_a_failed_engine_takes_its_model_along_and_no_other(make):
    host = make(room_bytes=200)
    await touch(host, "a")
    await touch(host, "b")
    broken, sound = host.fake.engines
    async with host.admit("a") as served:
        broken.failed = True
        assert host.healthy(), "another model serves"
        assert host.ready()
        assert host.drop_failed() is None
        assert in_memory(host) == {"b"}
        assert not served.model.closed, "somebody still prepares a request with it"
    await until(lambda: served.model.closed)
    assert not host.fake.models[1].closed
    assert b'quantd_engine_failures_total{model_name="a"} 1.0' in host.metrics.render()
    # It comes back, until it has failed too often; by hand it comes back always.
    for _ in range(MAX_FAILURES - 1):
        await touch(host, "a")
        host.fake.engines[-1].failed = True
        assert host.drop_failed() is None
    with pytest.raises(ApiError, match="failed 3 times") as caught:
        await touch(host, "a")
    assert (caught.value.reason, caught.value.retry_after_s) == ("UNAVAILABLE", 60.0)
    await touch(host, "b")
    await host.load(host.find("a"))
    assert in_memory(host) == {"a", "b"}
    assert sound.healthy()


@pytest.mark.parametrize(("names", "options"), [(("a",), {}), (("a", "b"), {"exit_on_failure": True})])
async def test_a_failure_that_is_the_whole_daemons(make, names, options):
    host = make(room_bytes=200, **options)
    for name in names:
        await touch(host, name)
    host.fake.engines[0].failed = True
    assert not host.healthy()
    assert host.drop_failed().name == "a"
    assert in_memory(host) == set(names)
    host.fail()
    with pytest.raises(ApiError, match="engine failed"):
        await touch(host, "a")
