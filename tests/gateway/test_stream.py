"""The bytes of a stream, and clients that go away."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import time

import httpx2
import pytest

from daemon.errors import ApiError
from quantd.v1 import generate_pb2 as pb


def events(text):
    return [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]


async def test_frames(client, make_chat):
    answer = await client.post("/v1/chat/completions", json=make_chat(stream=True))
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-request-id"]
    frames = answer.text.split("\n\n")
    assert frames[-1] == ""
    assert frames[-2] == "data: [DONE]"
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames[:-1])
    first, *middle, last = (json.loads(event) for event in events(answer.text)[:-1])
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [m["choices"][0]["delta"] for m in middle] == [
        {"content": t} for t in ("Hello", ", ", "wörld", "!")
    ]
    assert last["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    assert "usage" not in last
    assert "wörld" in answer.text


async def test_empty_deltas_are_not_sent_and_their_logprobs_wait(client, backend, make_chat):
    backend.texts = ["", "ab", ""]
    answer = await client.post("/v1/chat/completions", json=make_chat(stream=True, logprobs=True))
    _, part, last = (json.loads(event)["choices"][0] for event in events(answer.text)[:-1])
    assert part["delta"] == {"content": "ab"}
    assert [item["token"] for item in part["logprobs"]["content"]] == ["", "ab"]
    assert [item["token"] for item in last["logprobs"]["content"]] == [""]


async def test_error_on_the_way(client, backend, make_chat):
    backend.texts = ["Hello", ApiError("NON_FINITE_LOGITS", "Broken.")]
    answer = await client.post("/v1/chat/completions", json=make_chat(stream=True))
    assert answer.status_code == 200
    last = events(answer.text)[-1]
    assert json.loads(last)["error"]["code"] == "non_finite_logits"
    assert "[DONE]" not in answer.text


def raw_request(url, body):
    data = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    port = int(url.rsplit(":", 1)[1])
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(head.encode() + data)
    return connection


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("texts", [[30.0], ["a", 30.0]])
def test_a_client_that_goes_away_ends_the_request(serve, backend, make_chat, stream, texts):
    backend.texts = texts
    connection = raw_request(serve(first_event_s=5.0), make_chat(stream=stream))
    wait_until(lambda: backend.num_open == 1)
    if stream and texts[0] == "a":
        assert b"200 OK" in connection.recv(4096)
    start = time.monotonic()
    connection.close()
    wait_until(lambda: backend.num_closed == 1)
    assert time.monotonic() - start < 2


def test_a_long_silence_is_filled_with_comments(serve, backend, make_chat):
    backend.texts = [0.5, "a"]
    url = serve(first_event_s=0.05, ping_s=0.1)
    answer = httpx2.post(f"{url}/v1/chat/completions", json=make_chat(stream=True), timeout=10)
    assert answer.text.count(": ping") >= 2
    assert events(answer.text)[-1] == "[DONE]"
    assert answer.text.index("assistant") < answer.text.index(": ping")


def test_a_client_that_goes_away_during_the_silence(serve, backend, make_chat):
    backend.texts = [30.0]
    connection = raw_request(serve(first_event_s=0.05, ping_s=0.1), make_chat(stream=True))
    wait_until(lambda: backend.num_open == 1)
    received = b""
    while b": ping" not in received:
        received += connection.recv(4096)
    connection.close()
    wait_until(lambda: backend.num_closed == 1)


def test_a_client_that_reads_nothing_loses_the_connection(serve, backend, make_chat):
    backend.texts = ["x" * 100_000] * 300
    connection = raw_request(serve(send_timeout_s=0.3), make_chat(stream=True))
    wait_until(lambda: backend.num_closed == 1)
    connection.close()


def wait_until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


async def test_no_task_is_left(client, backend, make_chat):
    before = len(asyncio.all_tasks())
    for stream in (False, True):
        await client.post("/v1/chat/completions", json=make_chat(stream=stream))
    backend.texts = [ApiError("QUEUE_FULL", "No.")]
    await client.post("/v1/chat/completions", json=make_chat(stream=True))
    await asyncio.sleep(0.05)
    assert len(asyncio.all_tasks()) == before
    assert backend.num_open == 0


def scored(*tokens):
    """Deltas of a prompt's tokens as a backend sends them, some steps apart."""
    items = [
        pb.TokenLogprob(
            token_id=n, token=token, logprob=-0.5 * n, top=[pb.TokenLogprob(token=b"t", logprob=-1)]
        )
        for n, token in enumerate(tokens)
    ]
    items[0] = pb.TokenLogprob(token=tokens[0], logprob=math.nan)
    return [pb.Delta(prompt_logprobs=items[:1]), pb.Delta(prompt_logprobs=items[1:])]


ECHO = {"model": "demo", "prompt": "Say it", "echo": True, "logprobs": 1, "max_tokens": 2}


@pytest.mark.parametrize(
    ("tokens", "offsets"),
    [
        ((b"Say", b" it"), [0, 3]),
        ((b"", b"Say", b" it"), [0, 0, 3]),  # a token that begins every text, and has none
        ((b" Say", b" it"), [0, 3]),  # a tokenizer that puts a space in front
    ],
)
async def test_log_probabilities_of_an_echoed_prompt(client, backend, tokens, offsets):
    backend.texts = [pb.Delta(text="Say it"), *scored(*tokens), " now", "!"]
    whole = (await client.post("/v1/completions", json=ECHO)).json()["choices"][0]
    assert backend.requests[0].prompt_logprobs == 1
    assert whole["text"] == "Say it now!"
    assert whole["logprobs"]["tokens"] == [*(token.decode() for token in tokens), " now", "!"]
    assert whole["logprobs"]["text_offset"] == [*offsets, 6, 10]
    assert whole["logprobs"]["token_logprobs"] == [
        None,
        *(-0.5 * n for n in range(1, len(tokens))),
        -0.5,
        -0.5,
    ]
    assert whole["logprobs"]["top_logprobs"][0] is None
    assert whole["logprobs"]["top_logprobs"][1] == {"t": -1}
    answer = await client.post("/v1/completions", json={**ECHO, "stream": True})
    parts = [
        json.loads(line[6:])["choices"][0] for line in answer.text.splitlines() if line.startswith("data: {")
    ]
    assert "".join(part["text"] for part in parts) == whole["text"]
    for field, values in whole["logprobs"].items():
        assert [one for part in parts if part["logprobs"] for one in part["logprobs"][field]] == values


async def test_a_prompt_alone(client, backend):
    backend.texts, backend.finish = (
        [pb.Delta(text="Say it"), *scored(b"Say", b" it")],
        pb.FINISH_REASON_LENGTH,
    )
    whole = (await client.post("/v1/completions", json={**ECHO, "max_tokens": 0})).json()["choices"][0]
    assert (whole["text"], whole["finish_reason"]) == ("Say it", "length")
    assert len(whole["logprobs"]["tokens"]) == 2
    assert backend.requests[0].options.HasField("max_tokens")
