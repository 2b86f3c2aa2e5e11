"""Structured output and tools against the real daemon with the real client: promises hold whatever the model would say."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from quantd.v1 import generate_pb2 as pb

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12, "pattern": "^[a-z]+$"},
        "age": {"type": "integer", "minimum": 1, "maximum": 120},
        "kind": {"enum": ["fox", "bear"]},
        "friends": {"type": "array", "items": {"type": "string", "maxLength": 6}, "maxItems": 2},
    },
    "required": ["name", "age", "kind", "friends"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds two numbers",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "integer", "minimum": 0, "maximum": 99},
                    "b": {"type": "integer", "minimum": 0, "maximum": 99},
                },
                "required": ["a", "b"],
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "tell_story", "parameters": {"type": "object", "properties": {}}},
    },
]
QUESTION = [{"role": "user", "content": "What is 12 plus 7?"}]


@pytest.fixture(scope="module")
def client(served):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def ask(client, **options):
    return client.chat.completions.create(
        **{"model": "demo", "messages": QUESTION, "temperature": 1.0, "max_tokens": 200, **options}
    )


def check(text):
    value = json.loads(text)
    assert list(value) == ["name", "age", "kind", "friends"]
    assert re.fullmatch("[a-z]{1,12}", value["name"])
    assert 1 <= value["age"] <= 120
    assert value["kind"] in ("fox", "bear")
    assert len(value["friends"]) <= 2


FORMAT = {"type": "json_schema", "json_schema": {"name": "animal", "strict": True, "schema": SCHEMA}}


def test_a_schema_holds_for_every_choice_whole_and_streamed(client):
    answer = ask(client, response_format=FORMAT, n=3, seed=1)
    texts = [choice.message.content for choice in answer.choices]
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        check(choice.message.content)
    again = ask(client, response_format=FORMAT, n=3, seed=1)
    assert [choice.message.content for choice in again.choices] == texts
    streamed = ["", "", ""]
    for chunk in ask(client, response_format=FORMAT, n=3, seed=1, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_a_batch_of_constrained_and_free_requests(client):
    def one(seed):
        options = {"seed": seed, "max_tokens": 60}
        if seed % 2:
            options.update(response_format=FORMAT, max_tokens=200)
        return ask(client, **options).choices[0].message.content

    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(one, range(6)))
    for seed, text in enumerate(together):
        if seed % 2:
            check(text)
    assert together[:2] == [one(0), one(1)]


def test_log_probabilities_of_constrained_tokens(client):
    answer = ask(client, response_format=FORMAT, logprobs=True, top_logprobs=2, seed=3)
    content = answer.choices[0].logprobs.content
    assert "".join(item.token for item in content) == answer.choices[0].message.content
    assert all(item.logprob <= 0 for item in content)
    check(answer.choices[0].message.content)


@pytest.mark.parametrize(
    ("extra", "pattern"),
    [
        ({"response_format": {"type": "json_object"}, "max_tokens": 60}, None),
        ({"response_format": {"type": "regex", "regex": r"\d{3}-[a-f]{2}"}}, r"\d{3}-[a-f]{2}"),
        ({"response_format": {"type": "choice", "choice": ["yes", "no way"]}}, r"yes|no way"),
        ({"grammar": 'root ::= "v" [0-9] "." [0-9]'}, r"v\d\.\d"),
        ({"grammar": 'start: "<" /[xyz]{2}/ ">"'}, r"<[xyz]{2}>"),
        ({"guided_regex": "[ab]{5}"}, r"[ab]{5}"),
        ({"guided_choice": ["left", "right"]}, "left|right"),
        ({"guided_json": {"const": 5}}, "5"),
        ({"structured_outputs": {"regex": "[01]{8}"}}, "[01]{8}"),
        ({"structured_outputs": {"json": {"enum": ["a", "b"]}}}, '"[ab]"'),
    ],
)
def test_every_name_for_a_form(client, extra, pattern):
    choice = ask(client, extra_body=extra, seed=2).choices[0]
    text = choice.message.content
    if pattern is not None:
        assert choice.finish_reason == "stop"
        assert re.fullmatch(pattern, text), text
    else:
        assert text.startswith("{")


def test_completions_are_constrained_too(client):
    answer = client.completions.create(
        model="demo", prompt=["Once", "Twice"], max_tokens=20, n=2, extra_body={"guided_regex": "[a-c]{4}"}
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert all(re.fullmatch("[a-c]{4}", choice.text) for choice in answer.choices)


def test_over_grpc(stubs):
    options = pb.GenerationOptions(constraint=pb.Constraint(json_schema=json.dumps(SCHEMA)))
    message = pb.ChatMessage(role="user", content="Tell me of an animal.")
    events = list(stubs.generate.Chat(pb.ChatRequest(messages=[message], options=options), timeout=60))
    check("".join(event.delta.text for event in events if event.HasField("delta")))


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"type": "strong"}, "strong"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(client, schema, words):
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        ask(client, response_format=bad)
    assert caught.value.param == "response_format"


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "add"}}], ids=["required", "named"]
)
def test_a_required_call_is_made_by_any_model(client, choice):
    answer = ask(client, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, seed=5).choices[0]
    assert answer.finish_reason == "tool_calls"
    (call,) = answer.message.tool_calls
    assert answer.message.content is None
    assert call.type == "function"
    assert call.id.startswith("call_")
    if choice != "required":
        assert call.function.name == "add"
    arguments = json.loads(call.function.arguments)
    assert set(arguments) == ({"a", "b"} if call.function.name == "add" else set())


def test_calls_are_streamed_in_deltas_and_the_loop_goes_on(client):
    named = {"type": "function", "function": {"name": "add"}}
    calls, reason = {}, None
    stream = ask(client, tools=TOOLS, tool_choice=named, parallel_tool_calls=False, seed=5, stream=True)
    for chunk in stream:
        choice = chunk.choices[0]
        reason = choice.finish_reason or reason
        for part in choice.delta.tool_calls or ():
            call = calls.setdefault(part.index, {"id": "", "name": "", "arguments": ""})
            assert (part.id is None) == (part.function.name is None)
            call["id"] += part.id or ""
            call["name"] += part.function.name or ""
            call["arguments"] += part.function.arguments
    assert reason == "tool_calls"
    call = calls[0]
    arguments = json.loads(call["arguments"])
    messages = [
        *QUESTION,
        {
            "role": "assistant",
            "tool_calls": [
                {
                    "id": call["id"],
                    "type": "function",
                    "function": {"name": call["name"], "arguments": call["arguments"]},
                }
            ],
        },
        {"role": "tool", "tool_call_id": call["id"], "content": str(arguments["a"] + arguments["b"])},
    ]
    answer = ask(client, messages=messages, tools=TOOLS, tool_choice="none", max_tokens=20).choices[0]
    assert answer.finish_reason in ("stop", "length")
    assert answer.message.tool_calls is None


def test_tools_that_need_not_be_called_leave_the_answer_free(client):
    answer = ask(client, tools=TOOLS, temperature=0, max_tokens=40).choices[0]
    assert answer.message.content or answer.message.tool_calls


def test_tokens_are_counted_as_they_are_used(served, client):
    import httpx2

    body = {"model": "demo", "messages": QUESTION, "tools": TOOLS}
    counted = httpx2.post(f"{served.url}/v1/chat/completions/input_tokens", json=body).json()["input_tokens"]
    assert ask(client, tools=TOOLS, max_tokens=1).usage.prompt_tokens == counted
    prompt = httpx2.post(f"{served.url}/apply-template", json=body).json()["prompt"]
    assert "Adds two numbers" in prompt
    cut = httpx2.post(f"{served.url}/tokenize", json={"content": prompt, "with_pieces": True}).json()
    assert cut["count"] == counted
    ids = [token["id"] for token in cut["tokens"]]
    joined = httpx2.post(f"{served.url}/detokenize", json={"tokens": ids}).json()["content"]
    assert "Adds two numbers" in joined
