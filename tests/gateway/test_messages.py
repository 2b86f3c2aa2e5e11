"""Anthropic's Messages API: blocks, events in order, its own words for failures."""

import json

import pytest

from daemon.errors import ApiError
from quantd.v1 import generate_pb2 as pb
from tests.gateway.deltas import full_answer

URL = "/v1/messages"
TOOLS = [{"name": "add", "description": "Adds", "input_schema": {"type": "object"}}]


def body(**changes):
    return {"model": "demo", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}], **changes}


async def events_of(client, **changes):
    answer = await client.post(URL, json=body(stream=True, **changes))
    assert answer.status_code == 200
    frames = [frame for frame in answer.text.split("\n\n") if frame.startswith("event:")]
    events = []
    for frame in frames:
        name, data = frame.split("\n", 1)
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


async def test_a_text(client, backend):
    answer = (
        await client.post(URL, json=body(system="Be brief", stop_sequences=["x"], temperature=0.5, top_k=3))
    ).json()
    assert answer["content"] == [{"type": "text", "text": "Hello, wörld!"}]
    assert (answer["type"], answer["role"], answer["stop_reason"], answer["stop_sequence"]) == (
        "message",
        "assistant",
        "end_turn",
        None,
    )
    assert answer["usage"] == {
        "input_tokens": 2,
        "cache_read_input_tokens": 3,
        "cache_creation_input_tokens": 0,
        "output_tokens": 4,
    }
    sent = backend.requests[0]
    assert [(m.role, m.content) for m in sent.messages] == [("system", "Be brief"), ("user", "Hi")]
    assert (sent.options.max_tokens, list(sent.options.stop), sent.options.sampling.top_k) == (9, ["x"], 3)
    backend.stop_text = "x"
    answer = (await client.post(URL, json=body())).json()
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "x")
    backend.stop_text, backend.finish = "", pb.FINISH_REASON_LENGTH
    assert (await client.post(URL, json=body())).json()["stop_reason"] == "max_tokens"


async def test_blocks_of_every_kind(client, backend):
    backend.texts, backend.finish = full_answer(), pb.FINISH_REASON_TOOL_CALLS
    answer = (
        await client.post(URL, json=body(tools=TOOLS, tool_choice={"type": "tool", "name": "add"}))
    ).json()
    assert [block["type"] for block in answer["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert answer["content"][2] == {"type": "tool_use", "id": "call_a", "name": "add", "input": {"a": 1}}
    assert answer["stop_reason"] == "tool_use"
    assert list(backend.requests[0].tool_choice.names) == ["add"]
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": answer["content"]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_a", "content": [{"type": "text", "text": "1"}]},
                {"type": "text", "text": "Go on"},
            ],
        },
    ]
    await client.post(URL, json=body(messages=messages, thinking={"type": "disabled"}))
    sent = backend.requests[1]
    assert [m.role for m in sent.messages] == ["user", "assistant", "tool", "user"]
    assert (sent.messages[1].reasoning, sent.messages[1].tool_calls[0].arguments) == ("Hm, so.", '{"a": 1}')
    assert (sent.messages[2].tool_call_id, sent.messages[2].content) == ("call_a", "1")
    assert sent.reasoning_effort == "none"


async def test_events_come_in_order(client, backend):
    backend.texts, backend.finish = full_answer(), pb.FINISH_REASON_TOOL_CALLS
    events = await events_of(client, tools=TOOLS)
    assert [event["type"] for event in events] == [
        "message_start",
        "ping",
        "content_block_start",
        *["content_block_delta"] * 2,
        "content_block_stop",
        "content_block_start",
        *["content_block_delta"] * 2,
        "content_block_stop",
        "content_block_start",
        *["content_block_delta"] * 2,
        "content_block_stop",
        "content_block_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert [event["index"] for event in events if event["type"] == "content_block_start"] == [0, 1, 2, 3]
    joined = "".join(e["delta"].get("partial_json", "") for e in events if e["type"] == "content_block_delta")
    assert joined == '{"a": 1}'
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}


@pytest.mark.parametrize(("deltas", "kinds"), [(slice(4, 7), ["tool_use"]), (slice(0, 0), ["text"])])
async def test_the_only_block(client, backend, deltas, kinds):
    backend.texts = [0.0, *full_answer()[deltas]]
    events = await events_of(client, tools=TOOLS)
    blocks = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert blocks == kinds
    answer = (await client.post(URL, json=body(tools=TOOLS))).json()
    assert [block["type"] for block in answer["content"]] == kinds


async def test_an_assistant_message_at_the_end_is_gone_on_with(client, backend):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}]
    await client.post(URL, json=body(messages=messages))
    assert backend.requests[0].continue_final_message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id"),
        ({"system": 1}, "system"),
        ({"tools": [{"type": "web_search_20250305", "name": "x"}]}, "tools[0].type"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tool_choice": {"type": "every"}}, "tool_choice.type"),
        ({"thinking": {"type": "maybe"}}, "thinking.type"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"container": "x"}, "container"),
    ],
)
async def test_what_is_refused(client, backend, changes, words):
    answer = await client.post(URL, json=body(**changes))
    assert answer.status_code == 400
    error = answer.json()
    assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
    assert words in error["error"]["message"]
    assert not backend.requests


async def test_failures_in_its_words(client, backend):
    backend.texts = [ApiError("QUEUE_FULL", "No.")]
    answer = await client.post(URL, json=body(stream=True))
    assert (answer.status_code, answer.json()["error"]) == (
        429,
        {"type": "rate_limit_error", "message": "No."},
    )
    assert answer.headers["retry-after"] == "1"
    backend.texts = ["Hello", ApiError("NON_FINITE_LOGITS", "Broken.")]
    events = await events_of(client)
    assert events[-1]["error"] == {"type": "api_error", "message": "Broken."}
    answer = await client.post(URL, json=body(model="nope"))
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")


async def test_tokens_are_counted(client, backend):
    request = body(tools=TOOLS)
    del request["max_tokens"]
    answer = await client.post(f"{URL}/count_tokens", json=request)
    assert answer.json() == {"input_tokens": 3}
    assert backend.requests[0].tools[0].name == "add"
