"""uvicorn as we run it: heads that trickle, heads that are broken, a stop that is quick, no signals taken."""

import asyncio
import json
import signal
import time

import pytest
import pytest_asyncio

from daemon import http_protocol
from daemon.addresses import Address, listen
from daemon.http_server import HttpServer


async def hello(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


@pytest_asyncio.fixture
async def port(monkeypatch):
    monkeypatch.setattr(http_protocol, "HEAD_S", 0.3)
    listener = listen(Address("127.0.0.1", 0), "HTTP")
    port = listener.getsockname()[1]
    server = HttpServer(hello, listener)
    await server.start()
    yield port
    started = time.monotonic()
    await server.stop()
    assert time.monotonic() - started < 2


async def exchange(port, *parts, pause=0.0):
    """What comes back for bytes that are sent in parts, until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(pause)
    answer = await asyncio.wait_for(reader.read(), 3)
    writer.close()
    return answer


def error_of(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head
    return int(head.split()[1]), json.loads(body)["error"]["code"]


GET = b"GET / HTTP/1.1\r\nHost: x\r\n"


async def test_a_request_is_answered(port):
    assert (await exchange(port, GET + b"Connection: close\r\n\r\n")).endswith(b"hi")


async def test_a_head_that_trickles_is_ended(port):
    assert error_of(await exchange(port, *[b"G", b"E", b"T"], pause=0.05)) == (408, "request_timeout")


async def test_the_second_head_of_a_connection_must_come_in_time_too(port):
    answer = await exchange(port, GET + b"\r\n", b"GET /", pause=0.1)
    first, second = answer.split(b"hi", 1)
    assert first.startswith(b"HTTP/1.1 200")
    assert error_of(second) == (408, "request_timeout")


async def test_a_connection_that_asks_nothing_is_closed(port):
    assert await exchange(port) == b""


async def test_a_quiet_connection_after_an_answer_is_kept(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(2):
        writer.write(GET + b"\r\n")
        assert (await reader.readuntil(b"hi")).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(0.5)
    writer.close()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (GET + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (GET + b"Content-Length: -1\r\n\r\n", 400),
        (GET + b"X: " + b"x" * 40_000, 431),
        (b"GET /" + b"x" * 40_000, 431),
    ],
)
async def test_broken_heads_get_our_error_body(port, data, status):
    assert error_of(await exchange(port, data))[0] == status


async def test_signals_stay_ours(port):
    for number in (signal.SIGINT, signal.SIGTERM):
        assert "HttpServer" not in repr(signal.getsignal(number))
