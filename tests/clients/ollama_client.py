"""ollama-python: chat, streams, format, tools, thinking off, generate, embed, and the models of the store."""

import importlib.metadata
import json
import sys
from pathlib import Path

import ollama

print("ollama", importlib.metadata.version("ollama"))
client = ollama.Client(host=sys.argv[1])
MESSAGES = [{"role": "user", "content": "What is 12 plus 7?"}]
OPTIONS = {"temperature": 0, "num_predict": 60}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["a"],
    "additionalProperties": False,
}

answer = client.chat("demo", MESSAGES, options=OPTIONS)
assert "19" in answer.message.content
print("chat:", answer.message.content, answer.prompt_eval_count, "+", answer.eval_count, "tokens")

parts = list(client.chat("demo", MESSAGES, options=OPTIONS, stream=True))
assert "".join(part.message.content for part in parts) == answer.message.content
assert parts[-1].done_reason == "stop"
print("stream:", len(parts), "lines")

held = client.chat("demo", MESSAGES, format=SCHEMA, options=OPTIONS)
assert list(json.loads(held.message.content)) == ["a"]
print("format:", held.message.content)


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
      a: the first
      b: the second
    """
    return a + b


called = client.chat("demo", MESSAGES, tools=[add], options=OPTIONS)
for call in called.message.tool_calls or ():
    MESSAGES += [called.message, {"role": "tool", "tool_name": call.function.name, "content": "19"}]
again = client.chat("demo", MESSAGES, tools=[add], options=OPTIONS)
print("tools:", called.message.tool_calls, "|", again.message.content)

text = client.generate("demo", "Once upon a time", raw=True, options={"num_predict": 5, "seed": 1})
assert text.done_reason == "length"
logprobs = client.generate(
    "demo", "What is 2 plus 2?", logprobs=True, top_logprobs=2, options=OPTIONS
).logprobs
print("generate:", text.response, "|", len(logprobs), "log-probabilities")

vectors = client.embed("mini", ["a fox ran home", "now"], dimensions=8).embeddings
assert [len(one) for one in vectors] == [8, 8]
assert len(client.embeddings("mini", "now").embedding) > 8
print("embed:", len(vectors), "vectors of", len(vectors[0]))

digest = client.create_blob(Path(sys.argv[3]) / "demo.gguf")
client.create("mine", files={"demo.gguf": digest}, parameters={"num_predict": 4}, system="Be brief")
assert client.chat("mine", MESSAGES[:1]).eval_count <= 4
client.copy("mine", "other")
shown = client.show("other")
assert shown.parameters == "num_predict 4"
listed = {one.model for one in client.list().models}
assert {"demo", "mine:latest", "other:latest"} <= listed
print("store:", sorted(listed), "| in memory:", sorted(one.model for one in client.ps().models))
assert client.generate("mine", keep_alive=0).done_reason == "unload"
client.delete("mine")
client.delete("other")

digest = client.create_blob(
    Path(sys.argv[3]) / "demo.gguf"
)  # it went with the last model that was made of it
steps = [
    step.status
    for step in client.create("small", files={"demo.gguf": digest}, quantize="q4_K_M", stream=True)
]
assert steps[-1] == "success"
level = client.show("small").details.quantization_level
assert level == "Q4_K_M", level
assert "19" in client.chat("small", MESSAGES[:1], options=OPTIONS).message.content
client.delete("small")
print("create with quantize:", level, "|", len(steps), "lines")

try:
    client.chat("nobody", MESSAGES[:1])
except ollama.ResponseError as error:
    assert error.status_code == 404
    print("errors:", error.error)
