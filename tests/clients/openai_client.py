"""openai-python: chat, streams, helpers, structured output, tools, completions, responses, errors."""

import json
import sys

import openai
import pydantic

print("openai", openai.__version__)
client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0)
MESSAGES = [{"role": "user", "content": "What is 12 plus 7?"}]


class Animal(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=12)
    legs: int = pydantic.Field(ge=0, le=8)


answer = client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0)
assert "19" in answer.choices[0].message.content
print("chat:", answer.choices[0].message.content, answer.usage.total_tokens, "tokens")

with client.chat.completions.stream(model="demo", messages=MESSAGES, temperature=0) as stream:
    deltas = [event.delta for event in stream if event.type == "content.delta"]
assert "19" in "".join(deltas)
print("stream helper:", len(deltas), "deltas")

parsed = client.chat.completions.parse(
    model="demo", messages=MESSAGES, response_format=Animal, max_tokens=200
)
assert isinstance(parsed.choices[0].message.parsed, Animal)
print("parse:", parsed.choices[0].message.parsed)

tool = openai.pydantic_function_tool(Animal, name="find_animal")
called = client.chat.completions.parse(
    model="demo",
    messages=MESSAGES,
    tools=[tool],
    tool_choice="required",
    parallel_tool_calls=False,
    max_tokens=200,
)
call = called.choices[0].message.tool_calls[0]
assert isinstance(call.function.parsed_arguments, Animal)
again = client.chat.completions.create(
    model="demo",
    messages=[
        *MESSAGES,
        called.choices[0].message.model_dump(exclude_none=True, include={"role", "tool_calls"}),
        {"role": "tool", "tool_call_id": call.id, "content": "ok"},
    ],
    max_tokens=10,
)
assert again.choices[0].finish_reason in ("stop", "length")
print("tools:", call.function.name, call.function.arguments)

text = client.completions.create(model="demo", prompt=["Once", "The"], n=2, max_tokens=5, logprobs=2)
assert len(text.choices) == 4
print("completions:", [choice.text for choice in text.choices])

answer = client.responses.create(model="demo", input="What is 12 plus 7?", temperature=0)
assert "19" in answer.output_text
with client.responses.stream(model="demo", input="What is 12 plus 7?", text_format=Animal) as stream:
    kinds = [event.type for event in stream]
    final = stream.get_final_response()
assert isinstance(final.output_parsed, Animal)
assert kinds[0] == "response.created"
assert kinds[-1] == "response.completed"
print("responses:", answer.output_text, "|", json.loads(final.output_text))

try:
    client.chat.completions.create(model="nobody", messages=MESSAGES)
except openai.NotFoundError as error:
    print("errors:", error.code)
