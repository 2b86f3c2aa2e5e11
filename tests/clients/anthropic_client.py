"""anthropic: messages, the stream helper, tools and the loop, token counting, errors."""

import sys

import anthropic

print("anthropic", anthropic.__version__)
client = anthropic.Anthropic(base_url=sys.argv[1], api_key="none", max_retries=0)
MESSAGES = [{"role": "user", "content": "What is 12 plus 7?"}]
TOOL = {
    "name": "add",
    "description": "Adds",
    "input_schema": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["a"],
    },
}
answer = client.messages.create(model="demo", max_tokens=50, messages=MESSAGES)
assert answer.content[0].type == "text"
print("messages:", answer.content[0].text, answer.stop_reason, answer.usage.output_tokens)
with client.messages.stream(model="demo", max_tokens=50, messages=MESSAGES) as stream:
    text = "".join(stream.text_stream)
    final = stream.get_final_message()
assert final.content[0].text == text
print("stream helper:", text)
with client.messages.stream(
    model="demo", max_tokens=100, messages=MESSAGES, tools=[TOOL], tool_choice={"type": "tool", "name": "add"}
) as stream:
    final = stream.get_final_message()
assert final.stop_reason == "tool_use"
call = final.content[-1]
assert set(call.input) == {"a"}
result = {"type": "tool_result", "tool_use_id": call.id, "content": "19"}
answer = client.messages.create(
    model="demo",
    max_tokens=10,
    tools=[TOOL],
    messages=[
        *MESSAGES,
        {"role": "assistant", "content": [call.model_dump(include={"type", "id", "name", "input"})]},
        {"role": "user", "content": [result]},
    ],
)
print("tools:", call.name, call.input, "->", answer.content[0].type)
print("count_tokens:", client.messages.count_tokens(model="demo", messages=MESSAGES).input_tokens)
try:
    client.messages.create(model="nobody", max_tokens=5, messages=MESSAGES)
except anthropic.NotFoundError as error:
    print("errors:", error.body["error"]["type"])
