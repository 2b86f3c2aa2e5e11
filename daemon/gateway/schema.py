"""The requests of OpenAI's API that are served, as pydantic models, and the fields that are refused by name.

Ranges are the services' business; here only what JSON must be to become a message.  Unknown fields are ignored, as
OpenAI's own additions would otherwise break clients; fields that are known and would change the answer are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from daemon.errors import ApiError
from daemon.gateway.fields import check_fields, refuse

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
                "required": ["role"],
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
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                {"type": "array", "items": {"type": "integer"}, "minItems": 1},
                {
                    "type": "array",
                    "items": {"type": "array", "items": {"type": "integer"}, "minItems": 1},
                    "minItems": 1,
                },
            ]
        }
    ),
]


LogitBias = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "object", "additionalProperties": {"type": "number"}},
                {"type": "array", "items": {"type": "array", "minItems": 2, "maxItems": 2}},
            ]
        }
    ),
]
Object = Annotated[Any, WithJsonSchema({"type": "object"})]
Objects = Annotated[Any, WithJsonSchema({"type": "array", "items": {"type": "object"}})]
Choice = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}]})]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Body(BaseModel):
    """The body of a request.  What reads it is built when the first one comes: most are never asked for."""

    model_config = ConfigDict(strict=True, extra="ignore", defer_build=True)


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class GenerationRequest(Body):
    """Fields that both ways of generating text share; what is left out takes the server's default."""

    model: str
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int32 | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    repetition_penalty: float | None = None  # vLLM's name for it
    repeat_last_n: Int32 | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: LogitBias = None
    seed: Uint64 | None = None
    n: Int32 | None = None
    stop: Stop = None
    max_tokens: Int32 | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: Object = None
    # The names that llama-server and vLLM have for the same.
    grammar: str | None = None
    json_schema: Object = None
    structured_outputs: Object = None
    guided_json: Object = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None


class ChatRequestFields(Body):
    """Fields that say what a conversation is: what is counted and rendered as well as answered."""

    model: str
    messages: Messages
    tools: Objects = None
    tool_choice: Choice = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    reasoning: Object = None
    chat_template_kwargs: Object = None
    continue_final_message: bool | None = None


class ChatCompletionRequest(GenerationRequest, ChatRequestFields):
    """POST /v1/chat/completions."""

    max_completion_tokens: Int32 | None = None
    logprobs: bool | None = None
    top_logprobs: Int32 | None = None
    include_reasoning: bool | None = None


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: Prompt
    suffix: str | None = None
    logprobs: Int32 | None = None
    echo: bool | None = None
    best_of: Int32 | None = None


class TokenizeRequest(Body):
    """POST /tokenize: a text under llama-server's name or vLLM's, or a conversation."""

    model: str = ""
    content: str | None = None
    prompt: str | None = None
    messages: Messages = None
    tools: Objects = None
    add_special: bool = False
    add_special_tokens: bool | None = None
    parse_special: bool = True
    with_pieces: bool = False
    return_token_strs: bool = False


class DetokenizeRequest(Body):
    """POST /detokenize."""

    model: str = ""
    tokens: list[Int32]


Model = TypeVar("Model", bound=BaseModel)


def read_chat(body: dict[str, Any]) -> ChatCompletionRequest:
    """A chat request from parsed JSON; ApiError INVALID_ARGUMENT names the first bad field."""
    return _generation(ChatCompletionRequest, body)


def read_completion(body: dict[str, Any]) -> CompletionRequest:
    """A completion request from parsed JSON; ApiError INVALID_ARGUMENT names the first bad field."""
    return _generation(CompletionRequest, body)


def read_fields(kind: type[Model], body: dict[str, Any]) -> Model:
    """A request of any kind from parsed JSON; ApiError INVALID_ARGUMENT names the first bad field."""
    try:
        return kind.model_validate(body)
    except ValidationError as failure:
        raise _first(failure) from None


Generation = TypeVar("Generation", bound=GenerationRequest)


def _generation(kind: type[Generation], body: dict[str, Any]) -> Generation:
    check_fields(body)
    request = read_fields(kind, body)
    if not request.model:
        raise refuse("model", "must name a model")
    if request.stream_options is not None and not request.stream:
        raise refuse("stream_options", "is only for stream: true")
    return request


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
