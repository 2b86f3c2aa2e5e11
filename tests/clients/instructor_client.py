"""instructor: its modes, each of which must give a valid object from any model."""

import importlib.metadata
import sys

import instructor
import openai
from pydantic import BaseModel, ConfigDict, Field

print("instructor", importlib.metadata.version("instructor"))


class Animal(BaseModel):
    """An animal."""

    model_config = ConfigDict(extra="forbid")  # a small model would go on with properties of its own
    name: str = Field(max_length=12)
    legs: int = Field(ge=0, le=8)


for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(
        openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0), mode=mode
    )
    animal = client.chat.completions.create(
        model="demo",
        response_model=Animal,
        messages=[{"role": "user", "content": "Which animal?"}],
        max_retries=0,
        max_tokens=200,
    )
    assert isinstance(animal, Animal)
    print(f"{mode}:", animal)
