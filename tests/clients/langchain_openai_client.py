"""langchain-openai: invoke, stream, structured output, tools and the loop."""

import importlib.metadata
import sys
from typing import Annotated

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

print("langchain-openai", importlib.metadata.version("langchain-openai"))
model = ChatOpenAI(model="demo", base_url=f"{sys.argv[1]}/v1", api_key="none", temperature=0, max_retries=0)
QUESTION = "What is 12 plus 7?"


class Animal(BaseModel):
    """An animal."""

    name: str = Field(max_length=12)
    legs: int = Field(ge=0, le=8)


@tool
def add(a: Annotated[int, Field(ge=0, le=99)], b: Annotated[int, Field(ge=0, le=99)]) -> int:
    """Add two numbers."""
    return a + b


answer = model.invoke(QUESTION)
assert "19" in answer.content
print("invoke:", answer.content, answer.usage_metadata["total_tokens"], "tokens")
pieces = [chunk.content for chunk in model.stream(QUESTION)]
assert "19" in "".join(pieces)
print("stream:", len(pieces), "chunks")
for method in ("json_schema", "function_calling"):
    animal = model.bind(max_tokens=200).with_structured_output(Animal, method=method).invoke(QUESTION)
    assert isinstance(animal, Animal)
    print(f"structured output by {method}:", animal)
bound = model.bind_tools([add], tool_choice="add", parallel_tool_calls=False)
called = bound.invoke(QUESTION, max_tokens=100)
(call,) = called.tool_calls
assert set(call["args"]) == {"a", "b"}
result = ToolMessage(str(add.invoke(call["args"])), tool_call_id=call["id"])
answer = model.invoke([HumanMessage(QUESTION), called, result], max_tokens=10)
print("tools:", call["name"], call["args"], "->", answer.content)
