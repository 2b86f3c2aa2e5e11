"""The bridge: one wake-up a step, bounded queues, consumers that do not read."""

import asyncio

import pytest

from daemon import bridge as bridging
from daemon.bridge import Bridge
from daemon.errors import ApiError
from runtime.request import FinishEvent, FinishReason, Request, TokenEvent


class SilentEngine:
    def __init__(self):
        self.cancelled = []

    def submit(self, request):
        pass

    def cancel(self, request_id):
        self.cancelled.append(request_id)


def token(request_id="a"):
    return TokenEvent(request_id, 1, None, ())


def finish(request_id="a", reason=FinishReason.STOP):
    return FinishEvent(request_id, reason, 1, 1, 0.0, 0.0, 0.0, None)


def open_bridge(**options):
    engine = SilentEngine()
    bridge = Bridge(asyncio.get_running_loop(), **options)
    bridge.attach(engine)
    return engine, bridge


async def test_one_wake_up_a_step_whatever_the_batch(monkeypatch):
    _, bridge = open_bridge()
    streams = [bridge.submit(Request(str(n), [1], 1)) for n in range(8)]
    rings = []
    real = bridging.os.eventfd_write
    monkeypatch.setattr(bridging.os, "eventfd_write", lambda *args: rings.append(args) or real(*args))
    await asyncio.to_thread(bridge.sink, [token(str(n)) for n in range(8)])
    assert len(rings) == 1
    for stream in streams:
        assert isinstance(await stream.next(), TokenEvent)


async def test_what_was_handed_over_before_the_end_is_delivered_and_later_rings_are_harmless():
    _, bridge = open_bridge()
    stream = bridge.submit(Request("a", [1], 1))
    await asyncio.to_thread(bridge.sink, [token(), finish()])
    bell = bridge._bell
    bridge.detach()
    with pytest.raises(OSError):
        bridging.os.eventfd_write(bell, 1)
    assert isinstance(await stream.next(), TokenEvent)
    assert isinstance(await stream.next(), FinishEvent)
    bridge.sink([token("late")])
    bridge.detach()
    assert bridge.num_open == 0


async def test_a_consumer_that_does_not_read_loses_its_request():
    engine, bridge = open_bridge(stall_s=0.05)
    stream = bridge.submit(Request("a", [1], 1))
    stalled = []
    stream.on_stall = lambda: stalled.append(True)
    bridge.sink([token()])
    await asyncio.sleep(0.15)
    assert engine.cancelled == ["a"]
    assert stalled == [True]
    with pytest.raises(ApiError) as caught:
        await stream.next()
    assert caught.value.reason == "SLOW_CONSUMER"
    bridge.sink([finish(reason=FinishReason.CANCELLED)])
    await asyncio.sleep(0.01)
    assert bridge.num_open == 0


async def test_a_consumer_that_waits_is_not_slow():
    engine, bridge = open_bridge(stall_s=0.05)
    stream = bridge.submit(Request("a", [1], 1))
    waiting = asyncio.create_task(stream.next())
    await asyncio.sleep(0.15)
    bridge.sink([token()])
    assert isinstance(await waiting, TokenEvent)
    assert not engine.cancelled


async def test_the_queue_of_a_request_is_bounded(monkeypatch):
    monkeypatch.setattr(bridging, "MAX_PENDING", 10)
    engine, bridge = open_bridge()
    stream = bridge.submit(Request("a", [1], 100))
    bridge.sink([token() for _ in range(11)])
    await asyncio.sleep(0.01)
    assert engine.cancelled == ["a"]
    with pytest.raises(ApiError):
        await stream.next()
    stream.close()


async def test_closing_cancels_once_and_never_after_the_end():
    engine, bridge = open_bridge()
    stream = bridge.submit(Request("a", [1], 1))
    ended = []
    stream.on_finish = ended.append
    stream.close()
    assert engine.cancelled == ["a"]
    bridge.sink([finish()])
    await asyncio.sleep(0.01)
    assert len(ended) == 1
    stream.close()
    assert engine.cancelled == ["a"]


async def test_events_for_nobody_are_dropped():
    _, bridge = open_bridge()
    bridge.sink([token("unknown"), finish("unknown")])
    await asyncio.sleep(0.01)
    assert bridge.num_open == 0


async def test_without_an_engine_there_is_no_model():
    with pytest.raises(ApiError) as caught:
        Bridge(asyncio.get_running_loop()).submit(Request("a", [1], 1))
    assert caught.value.reason == "UNAVAILABLE"
