"""The Responses API with the official client: items, events in order, what is refused."""

import openai
import pytest

from daemon.errors import ApiError
from quantd.v1 import generate_pb2 as pb
from tests.gateway.deltas import full_answer

TOOLS = [{"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": True}]


@pytest.fixture
def ask(serve):
    with openai.OpenAI(base_url=f"{serve()}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_text(ask, backend):
    answer = ask.responses.create(
        model="demo",
        input="Hi",
        instructions="Be brief",
        max_output_tokens=7,
        temperature=0.5,
        metadata={"a": "b"},
    )
    assert answer.output_text == "Hello, wörld!"
    assert (answer.status, answer.error, answer.incomplete_details) == ("completed", None, None)
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (5, 4, 9)
    assert answer.usage.input_tokens_details.cached_tokens == 3
    assert answer.metadata == {"a": "b"}
    sent = backend.requests[0]
    assert [(m.role, m.content) for m in sent.messages] == [("system", "Be brief"), ("user", "Hi")]
    assert (sent.options.max_tokens, sent.options.sampling.temperature) == (7, 0.5)


def test_items_of_every_kind(ask, backend):
    backend.texts, backend.finish = full_answer(), pb.FINISH_REASON_TOOL_CALLS
    answer = ask.responses.create(model="demo", input="Hi", tools=TOOLS, tool_choice="required")
    assert [item.type for item in answer.output] == ["reasoning", "message", "function_call", "function_call"]
    assert (answer.output[2].call_id, answer.output[2].name, answer.output[2].arguments) == (
        "call_a",
        "add",
        '{"a": 1}',
    )
    assert backend.requests[0].tool_choice.mode == pb.ToolChoice.MODE_REQUIRED
    items = [item.model_dump(exclude_none=True) for item in answer.output]
    ask.responses.create(
        model="demo",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            *items,
            {"type": "function_call_output", "call_id": "call_a", "output": "1"},
        ],
    )
    messages = backend.requests[1].messages
    assert [m.role for m in messages] == ["user", "assistant", "tool"]
    assert (messages[1].reasoning, messages[1].content) == ("Hm, so.", "Let me see.")
    assert [call.name for call in messages[1].tool_calls] == ["add", "now"]


def test_events_come_in_order(ask, backend):
    backend.texts, backend.finish = full_answer(), pb.FINISH_REASON_TOOL_CALLS
    events = list(ask.responses.create(model="demo", input="Hi", tools=TOOLS, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type.removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["reasoning_text.delta"] * 2,
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * 2,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        *["function_call_arguments.delta"] * 2,
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.id for item in events[-1].response.output] == [item.id for item in done]
    assert events[-1].response.output_text == "Let me see."
    assert len({item.id for item in done}) == 4
    assert done[3].arguments == "{}"


def test_the_helper_of_the_client_follows_the_stream(ask):
    with ask.responses.stream(model="demo", input="Hi") as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert "".join(deltas) == "Hello, wörld!"
        assert stream.get_final_response().output_text == "Hello, wörld!"


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_was_cut_off(ask, backend, stream):
    backend.finish = pb.FINISH_REASON_LENGTH
    answer = ask.responses.create(model="demo", input="Hi", stream=stream)
    if stream:
        last = list(answer)[-1]
        assert last.type == "response.incomplete"
        answer = last.response
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"


def test_failures(ask, backend):
    backend.texts = ["Hello", ApiError("NON_FINITE_LOGITS", "Broken.")]
    last = list(ask.responses.create(model="demo", input="Hi", stream=True))[-1]
    assert (last.type, last.response.status, last.response.error.message) == (
        "response.failed",
        "failed",
        "Broken.",
    )
    backend.texts = [ApiError("QUEUE_FULL", "No.")]
    with pytest.raises(openai.RateLimitError):
        ask.responses.create(model="demo", input="Hi", stream=True)


def test_structured_output(ask, backend):
    form = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}
    answer = ask.responses.create(model="demo", input="Hi", text={"format": form})
    assert backend.requests[0].options.constraint.json_schema == '{"type": "object"}'
    assert answer.text.format.type == "json_schema"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [1]}, "input[0]"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "function_call", "name": "x", "arguments": "{}"}]}, "input[0].call_id"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "x"}, "conversation"),
        ({"background": True}, "background"),
        ({"store": True}, "store"),
        ({"prompt": {"id": "x"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.json_schema"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"reasoning": {"effort": 1}}, "reasoning.effort"),
        ({"max_output_tokens": "x"}, "max_output_tokens"),
        ({"service_tier": "flex"}, "service_tier"),
    ],
)
def test_what_is_refused(ask, backend, changes, param):
    body = {"model": "demo", "input": "Hi", **changes}
    with pytest.raises(openai.BadRequestError) as caught:
        ask.post("/responses", body=body, cast_to=object)
    assert caught.value.param == param
    assert not backend.requests


def test_tokens_are_counted(ask):
    assert ask.post("/responses/input_tokens", body={"model": "demo", "input": "Hi"}, cast_to=object) == {
        "object": "response.input_tokens",
        "input_tokens": 3,
    }


def test_what_is_not_there_says_so(ask):
    with pytest.raises(openai.NotFoundError, match="no moderation model"):
        ask.moderations.create(input="x")
    with pytest.raises(openai.NotFoundError):
        ask.responses.retrieve("resp_1")
