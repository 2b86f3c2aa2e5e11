"""The requests of OpenAI's API that are served, as pydantic models, and the fields that are refused by name.

Ranges are the services' business; here only what JSON must be to become a message.  Unknown fields are ignored, as
OpenAI's own additions would otherwise break clients; fields that are known and would change the answer are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from daemon.errors import ApiError

Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
Uint64 = Annotated[int, Field(ge=0, le=2**64 - 1)]
Stop = Annotated[
    Any, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})
]
Messages = Annotated[
    Any,
    WithJsonSchema(
        {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["role", "content"],
                "properties": {
                    "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
                    "content": {
                        "anyOf": [
                            {"type": "string"},
                            {"type": "array", "items": {"type": "object", "required": ["type", "text"]}},
                        ]
                    },
                    "name": {"type": "string"},
                },
            },
        }
    ),
]
Prompt = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 1},
                {"type": "array", "items": {"type": "integer"}, "minItems": 1},
            ]
        }
    ),
]


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool | None = None


class GenerationRequest(BaseModel):
    """Fields that both ways of generating text share; what is left out takes the server's default."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int32 | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: Int32 | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: Uint64 | None = None
    stop: Stop = None
    max_tokens: Int32 | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class ChatCompletionRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: Int32 | None = None
    logprobs: bool | None = None
    top_logprobs: Int32 | None = None


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: Prompt
    logprobs: Int32 | None = None
    echo: bool | None = None


Model = TypeVar("Model", bound=GenerationRequest)

# Fields that would change the answer and that are not done, with the values that ask for nothing.
_NOT_DONE: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "function_call": ("none",),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "grammar": ("",),
    "json_schema": (),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
}


def read_chat(body: dict[str, Any]) -> ChatCompletionRequest:
    """A chat request from parsed JSON; ApiError INVALID_ARGUMENT names the first bad field."""
    return _read(ChatCompletionRequest, body)


def read_completion(body: dict[str, Any]) -> CompletionRequest:
    """A completion request from parsed JSON; ApiError INVALID_ARGUMENT names the first bad field."""
    return _read(CompletionRequest, body)


def refuse(field: str, message: str) -> ApiError:
    """A refusal that names the JSON field."""
    return ApiError("INVALID_ARGUMENT", f"{field}: {message}", field=field)


def _read(kind: type[Model], body: dict[str, Any]) -> Model:
    for field, harmless in _NOT_DONE.items():
        value = body.get(field)
        # 1 == True and 1 == 1.0 in Python, not in JSON
        if value is not None and not any(value == one and type(value) is type(one) for one in harmless):
            raise refuse(field, "is not supported by this server" if not harmless else _only(harmless[0]))
    try:
        request = kind.model_validate(body)
    except ValidationError as failure:
        raise _first(failure) from None
    if not request.model:
        raise refuse("model", "must name a model")
    if request.stream_options is not None and not request.stream:
        raise refuse("stream_options", "is only for stream: true")
    return request


def _only(value: Any) -> str:
    return f"only {value!r} is supported by this server"


def _first(failure: ValidationError) -> ApiError:
    """The first error alone, without the input: a body with ten thousand mistakes gets one line."""
    error = failure.errors(include_url=False, include_context=False, include_input=False)[0]
    path = ""
    for part in error["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part[:40]}" if path else part[:40]
    if error["type"] == "missing":
        return refuse(path, "is required")
    message = error["msg"].removeprefix("Input should be ")
    return refuse(path, f"must be {message}")
