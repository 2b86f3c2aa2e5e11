"""litellm: completion, stream, structured output, tools through its own translation."""

import importlib.metadata
import json
import sys

import litellm

print("litellm", importlib.metadata.version("litellm"))
OPTIONS = {
    "model": "openai/demo",
    "api_base": f"{sys.argv[1]}/v1",
    "api_key": "none",
    "messages": [{"role": "user", "content": "What is 12 plus 7?"}],
}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "maximum": 9, "minimum": 0}},
    "required": ["a"],
    "additionalProperties": False,
}
answer = litellm.completion(**OPTIONS, temperature=0)
assert "19" in answer.choices[0].message.content
print("completion:", answer.choices[0].message.content)
pieces = [
    chunk.choices[0].delta.content or ""
    for chunk in litellm.completion(**OPTIONS, temperature=0, stream=True)
]
assert "19" in "".join(pieces)
print("stream:", len(pieces), "chunks")
form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}
answer = litellm.completion(**OPTIONS, response_format=form, max_tokens=50)
assert set(json.loads(answer.choices[0].message.content)) == {"a"}
print("structured output:", answer.choices[0].message.content)
tool = {"type": "function", "function": {"name": "pick", "parameters": SCHEMA}}
answer = litellm.completion(**OPTIONS, tools=[tool], tool_choice="required", max_tokens=100)
call = answer.choices[0].message.tool_calls[0]
assert set(json.loads(call.function.arguments)) == {"a"}
print("tools:", call.function.name, call.function.arguments)
