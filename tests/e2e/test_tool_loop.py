"""The demo model calls tools: the whole loop of a real model behind every API, nothing forced unless a test says so."""

import json

import openai
import pytest

from quantd.v1 import generate_pb2 as pb
from quantd.v1 import generate_service_pb2 as rpc

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
NUMBERS = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
}
DEFINITIONS = (("get_weather", "Get the weather of a city", CITY), ("add", "Add two numbers", NUMBERS))
TOOLS = [
    {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}
    for name, about, parameters in DEFINITIONS
]
# Cities that no training text has: the model copies them from the question.
WEATHER = [{"role": "user", "content": "What is the weather in Quebrada?"}]
NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(client, messages, **options):
    options = {"model": "demo", "temperature": 0, "max_tokens": 120, "tools": TOOLS, **options}
    return client.chat.completions.create(messages=messages, **options)


def made(calls):
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls]


def test_the_loop(client):
    choice = ask(client, WEATHER).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert made(choice.message.tool_calls) == [("get_weather", {"city": "Quebrada"})]
    result = {
        "role": "tool",
        "tool_call_id": choice.message.tool_calls[0].id,
        "content": "17 degrees and foggy",
    }
    turns = [*WEATHER, choice.message.model_dump(exclude_none=True), result]
    choice = ask(client, turns).choices[0]
    assert choice.finish_reason == "stop"
    assert choice.message.tool_calls is None
    assert "Quebrada" in choice.message.content
    assert "17 degrees and foggy" in choice.message.content
    # The conversation goes on: another call, then a question that needs none.
    turns += [{"role": "assistant", "content": choice.message.content}]
    turns += [{"role": "user", "content": "What is 4821 plus 367?"}]
    choice = ask(client, turns).choices[0]
    assert made(choice.message.tool_calls) == [("add", {"a": 4821, "b": 367})]
    turns += [choice.message.model_dump(exclude_none=True)]
    turns += [{"role": "tool", "tool_call_id": choice.message.tool_calls[0].id, "content": "5188"}]
    choice = ask(client, turns).choices[0]
    assert "5188" in choice.message.content
    turns += [
        {"role": "assistant", "content": choice.message.content},
        {"role": "user", "content": "Who are you?"},
    ]
    assert "quantd" in ask(client, turns).choices[0].message.content


def test_the_loop_streamed(client):
    calls, reason = {}, None
    num_parts = 0
    for chunk in ask(client, WEATHER, stream=True):
        choice = chunk.choices[0]
        assert not choice.delta.content
        reason = choice.finish_reason or reason
        for part in choice.delta.tool_calls or ():
            num_parts += 1
            call = calls.setdefault(part.index, {"id": part.id, "name": part.function.name, "arguments": ""})
            call["arguments"] += part.function.arguments
    assert reason == "tool_calls"
    assert num_parts > 3
    assert [(call["name"], json.loads(call["arguments"])) for call in calls.values()] == [
        ("get_weather", {"city": "Quebrada"})
    ]
    function = {key: calls[0][key] for key in ("name", "arguments")}
    turns = [
        *WEATHER,
        {
            "role": "assistant",
            "tool_calls": [{"id": calls[0]["id"], "type": "function", "function": function}],
        },
        {
            "role": "tool",
            "tool_call_id": calls[0]["id"],
            "content": '{"temperature": 31, "condition": "windy"}',
        },
    ]
    said, ends = "", []
    for chunk in ask(client, turns, stream=True):
        said += chunk.choices[0].delta.content or ""
        ends.append(chunk.choices[0].finish_reason)
    assert ends[-1] == "stop"
    assert "31" in said
    assert "windy" in said


def test_parallel_calls(client):
    turns = [{"role": "user", "content": "What is the weather in Paris and Quebrada?"}]
    choice = ask(client, turns).choices[0]
    assert made(choice.message.tool_calls) == [
        ("get_weather", {"city": "Paris"}),
        ("get_weather", {"city": "Quebrada"}),
    ]
    turns.append(choice.message.model_dump(exclude_none=True))
    for call, sky in zip(choice.message.tool_calls, ("sunny", "stormy"), strict=True):
        turns.append({"role": "tool", "tool_call_id": call.id, "content": sky})
    said = ask(client, turns).choices[0].message.content
    assert "Paris: sunny" in said
    assert "Quebrada: stormy" in said
    one = ask(client, turns[:1], parallel_tool_calls=False).choices[0]
    assert made(one.message.tool_calls) == [("get_weather", {"city": "Paris"})]


@pytest.mark.parametrize(
    ("question", "word"),
    [("Hello!", "Hello"), ("Who are you?", "quantd"), ("What is the capital of France?", "Paris")],
)
def test_no_call_where_none_is_needed(client, question, word):
    choice = ask(client, [{"role": "user", "content": question}]).choices[0]
    assert choice.finish_reason == "stop"
    assert choice.message.tool_calls is None
    assert word in choice.message.content


@pytest.mark.parametrize("choice", ["auto", "required", NAMED], ids=["auto", "required", "named"])
def test_choices_that_let_it_call(client, choice):
    answer = ask(client, WEATHER, tool_choice=choice).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert made(answer.message.tool_calls) == [("get_weather", {"city": "Quebrada"})]


def test_the_choice_of_none(client):
    answer = ask(client, WEATHER, tool_choice="none").choices[0]
    assert answer.finish_reason == "stop"
    assert answer.message.tool_calls is None
    assert "do not know" in answer.message.content


def test_a_named_tool_is_called_for_any_question(client):
    answer = ask(client, [{"role": "user", "content": "Hello!"}], tool_choice=NAMED).choices[0]
    assert [name for name, _ in made(answer.message.tool_calls)] == ["get_weather"]


def test_the_model_finds_its_tools_in_the_prompt(served):
    import httpx2

    body = {"model": "demo", "messages": WEATHER, "tools": TOOLS}
    prompt = httpx2.post(f"{served.url}/apply-template", json=body).json()["prompt"]
    assert 'get_weather {"city": string}: Get the weather of a city\n' in prompt
    assert 'add {"a": integer, "b": integer}: Add two numbers' in prompt


def grpc_chat(*messages):
    tools = [
        pb.ToolDefinition(name=name, description=about, parameters=json.dumps(parameters))
        for name, about, parameters in DEFINITIONS
    ]
    options = pb.GenerationOptions(max_tokens=120, sampling=pb.SamplingParams(temperature=0))
    return pb.ChatRequest(model="demo", messages=messages, tools=tools, options=options)


def test_the_loop_over_grpc(stubs):
    user = pb.ChatMessage(role="user", content=WEATHER[0]["content"])
    events = list(stubs.generate.Chat(grpc_chat(user), timeout=60))
    assert events[-1].done.finish_reason == pb.FINISH_REASON_TOOL_CALLS
    deltas = [event.delta for event in events if event.HasField("delta")]
    assert not any(delta.text for delta in deltas)
    parts = [part for delta in deltas for part in delta.tool_calls]
    arguments = "".join(part.arguments for part in parts)
    assert (parts[0].name, json.loads(arguments)) == ("get_weather", {"city": "Quebrada"})
    call = pb.ToolCall(id=parts[0].id, name=parts[0].name, arguments=arguments)
    turns = (
        user,
        pb.ChatMessage(role="assistant", tool_calls=[call]),
        pb.ChatMessage(role="tool", tool_call_id=call.id, content="cold, -7 degrees"),
    )
    answer = stubs.generate.ChatUnary(rpc.ChatUnaryRequest(request=grpc_chat(*turns)), timeout=60)
    assert answer.done.finish_reason == pb.FINISH_REASON_STOP
    assert "cold, -7 degrees" in answer.answer.text


def test_the_loop_of_the_ollama_client(served):
    ollama = pytest.importorskip("ollama", reason="needs the ollama client (the dev extra)")
    with ollama.Client(host=served.url) as client:
        turns = list(WEATHER)
        message = client.chat("demo", turns, tools=TOOLS, options={"temperature": 0}).message
        assert [(call.function.name, call.function.arguments) for call in message.tool_calls] == [
            ("get_weather", {"city": "Quebrada"})
        ]
        turns += [message, {"role": "tool", "tool_name": "get_weather", "content": "light rain"}]
        assert (
            "light rain"
            in client.chat("demo", turns, tools=TOOLS, options={"temperature": 0}).message.content
        )


def test_the_loop_of_anthropics_messages(served):
    import httpx2

    tools = [
        {"name": name, "description": about, "input_schema": shape} for name, about, shape in DEFINITIONS
    ]
    body = {"model": "demo", "max_tokens": 120, "temperature": 0, "tools": tools, "messages": list(WEATHER)}
    answer = httpx2.post(f"{served.url}/v1/messages", json=body).json()
    assert answer["stop_reason"] == "tool_use"
    (call,) = answer["content"]
    assert (call["name"], call["input"]) == ("get_weather", {"city": "Quebrada"})
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "dry"}
    body["messages"] += [{"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    answer = httpx2.post(f"{served.url}/v1/messages", json=body).json()
    assert answer["stop_reason"] == "end_turn"
    assert "dry" in answer["content"][0]["text"]
