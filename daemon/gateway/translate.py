"""From OpenAI's JSON to quantd.v1 messages: options, prompts and what an answer must look like."""

from __future__ import annotations

import json
import re
from typing import Any

from daemon.gateway.fields import refuse
from daemon.gateway.schema import (
    ChatCompletionRequest,
    ChatRequestFields,
    CompletionRequest,
    GenerationRequest,
)
from daemon.gateway.translate_chat import messages, tool_choice, tools
from quantd.v1 import generate_pb2 as pb

# What OpenAI documents for completions that do not say how long they may get.
DEFAULT_COMPLETION_TOKENS = 16
MAX_LOGIT_BIAS = 1024
MAX_STOPS = 16
MAX_PROMPTS = 64

_NUMBER = re.compile(r"-?[0-9]+")
_TOKEN_ID = re.compile(r"[0-9]{1,9}")
_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repeat_penalty",
    "repeat_last_n",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)
_BANNED = -100.0  # for a bias of false


def chat_request(request: ChatCompletionRequest) -> pb.ChatRequest:
    """The message of a chat completion; ApiError INVALID_ARGUMENT names the first bad field."""
    options = _options(request)
    wanted, older = request.max_completion_tokens, request.max_tokens
    if wanted is not None and older is not None and wanted != older:
        raise refuse("max_tokens", "contradicts max_completion_tokens; give one of them")
    if wanted is not None or older is not None:
        options.max_tokens = wanted if wanted is not None else older or 0
    if request.top_logprobs is not None and not request.logprobs:
        raise refuse("top_logprobs", "needs logprobs: true")
    if request.logprobs:
        options.top_logprobs = request.top_logprobs or 0
    message = conversation(request)
    message.options.CopyFrom(options)
    return message


def conversation(request: ChatRequestFields) -> pb.ChatRequest:
    """The message of a conversation, without options."""
    message = pb.ChatRequest(
        model=request.model,
        messages=messages(request.messages),
        tools=tools(request.tools),
        reasoning_effort=_effort(request),
        continue_final_message=bool(request.continue_final_message),
    )
    choice = tool_choice(request.tool_choice)
    if choice is not None:
        if choice.mode == pb.ToolChoice.MODE_REQUIRED and not message.tools:
            raise refuse("tool_choice", "a call is required, but there are no tools")
        message.tool_choice.CopyFrom(choice)
    if request.parallel_tool_calls is not None:
        message.parallel_tool_calls = request.parallel_tool_calls
    if request.chat_template_kwargs:
        if not isinstance(request.chat_template_kwargs, dict):
            raise refuse("chat_template_kwargs", "must be an object")
        message.template_arguments = json.dumps(request.chat_template_kwargs)
    return message


def completion_requests(request: CompletionRequest) -> list[pb.GenerateRequest]:
    """The messages of a completion, one for each prompt; ApiError INVALID_ARGUMENT names the first bad field."""
    options = _options(request)
    options.max_tokens = DEFAULT_COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
    if request.logprobs is not None:
        options.top_logprobs = request.logprobs
    if request.best_of is not None:
        if request.stream and request.best_of != (request.n or 1):
            raise refuse("best_of", "cannot be streamed: the best is known at the end")
        options.best_of = request.best_of
    sent = []
    for prompt in _prompts(request.prompt):
        message = pb.GenerateRequest(model=request.model, options=options, echo=bool(request.echo))
        if request.echo and request.logprobs is not None:
            message.prompt_logprobs = request.logprobs
        if isinstance(prompt, str):
            message.text = prompt
        else:
            message.tokens.ids.extend(prompt)
        if request.suffix:
            message.suffix = request.suffix
        sent.append(message)
    return sent


def _effort(request: ChatRequestFields) -> str:
    effort: Any = request.reasoning_effort
    if request.reasoning is not None:
        if not isinstance(request.reasoning, dict):
            raise refuse("reasoning", "must be an object")
        inner = request.reasoning.get("effort")
        if inner is not None and effort is not None and inner != effort:
            raise refuse("reasoning.effort", "contradicts reasoning_effort; give one of them")
        effort = inner if effort is None else effort
    if effort is not None and not isinstance(effort, str):
        raise refuse("reasoning.effort", "must be a string")
    return effort or ""


def _options(request: GenerationRequest) -> pb.GenerationOptions:
    """Options that are set where the request sets them: the services know the defaults."""
    sampling = pb.SamplingParams()
    for name in _SAMPLING:
        value = getattr(request, name)
        if value is not None:
            setattr(sampling, name, value)
    if request.repetition_penalty is not None:
        if request.repeat_penalty not in (None, request.repetition_penalty):
            raise refuse("repetition_penalty", "contradicts repeat_penalty; give one of them")
        sampling.repeat_penalty = request.repetition_penalty
    _set_logit_bias(sampling, request.logit_bias)
    options = pb.GenerationOptions(
        sampling=sampling,
        stop=_stops(request.stop),
        ignore_eos=bool(request.ignore_eos),
        report_queue_position=bool(request.stream),
    )
    if request.n is not None:
        options.num_choices = request.n
    constraint = _constraint(request)
    if constraint is not None:
        options.constraint.CopyFrom(constraint)
    return options


def _set_logit_bias(sampling: pb.SamplingParams, value: Any) -> None:
    """By token id or by text; a list of pairs is llama-server's form, false its ban."""
    if value is None:
        return
    pairs: Any = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list) or len(pairs) > MAX_LOGIT_BIAS:
        raise refuse("logit_bias", f"must be an object of at most {MAX_LOGIT_BIAS} tokens")
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise refuse("logit_bias", "must be an object, or a list of pairs")
        key, bias = pair
        bias = _BANNED if bias is False else bias
        if isinstance(bias, bool) or not isinstance(bias, int | float) or abs(bias) > 1e9:
            raise refuse("logit_bias", "biases must be numbers from -100 to 100")
        if type(key) is int and 0 <= key < 2**31:
            sampling.logit_bias[key] = bias
        elif isinstance(key, str) and isinstance(value, dict) and _TOKEN_ID.fullmatch(key):
            sampling.logit_bias[int(key)] = bias
        elif isinstance(key, str) and key and not _NUMBER.fullmatch(key):
            sampling.text_bias[key] = bias
        else:
            raise refuse("logit_bias", "keys must be token ids or texts")


def _constraint(request: GenerationRequest) -> pb.Constraint | None:
    """What the answer must look like, under whichever of its names the request says it."""
    found: dict[str, pb.Constraint] = {}
    for field, read in _CONSTRAINTS.items():
        value = getattr(request, field)
        if value not in (None, "", {}):
            constraint = read(field, value)
            if constraint is not None:
                found[field] = constraint
    if len(found) > 1:
        raise refuse(min(found), f"only one of {', '.join(sorted(found))} can be given")
    return next(iter(found.values()), None)


def response_format(field: str, value: Any) -> pb.Constraint | None:
    """What the answer must look like; None: anything.

    The schema stands in an object of its own (chat) or beside its type (responses).
    """
    if not isinstance(value, dict):
        raise refuse(field, "must be an object")
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        schema = value.get("schema")
        return pb.Constraint(json_object=True) if schema is None else _schema(f"{field}.schema", schema)
    if kind == "json_schema":
        inner = value.get("json_schema", {"schema": value["schema"]} if "schema" in value else None)
        if not isinstance(inner, dict):
            raise refuse(f"{field}.json_schema", "must be an object")
        if inner.get("schema") is None:
            raise refuse(f"{field}.json_schema.schema", "is required")
        return _schema(f"{field}.json_schema.schema", inner["schema"])
    if kind == "grammar":
        return _grammar(f"{field}.grammar", value.get("grammar"), value.get("syntax"))
    if kind == "regex":
        return pb.Constraint(regex=_text(f"{field}.regex", value.get("regex", value.get("pattern"))))
    if kind == "choice":
        return _choice(f"{field}.choice", value.get("choice"))
    raise refuse(f"{field}.type", "must be text, json_object, json_schema, grammar, regex or choice")


def _schema(field: str, value: Any) -> pb.Constraint:
    if isinstance(value, str):
        return pb.Constraint(json_schema=value)
    if not isinstance(value, dict | bool):
        raise refuse(field, "must be a JSON Schema")
    return pb.Constraint(json_schema=json.dumps(value, ensure_ascii=False))


def _grammar(field: str, value: Any, syntax: Any = None) -> pb.Constraint:
    """GBNF or Lark; which one, the text itself shows where it is not said."""
    text = _text(field, value)
    if syntax not in (None, "lark", "gbnf"):
        raise refuse(field.replace(".grammar", ".syntax"), "must be lark or gbnf")
    is_gbnf = "::=" in text if syntax is None else syntax == "gbnf"
    return pb.Constraint(gbnf=text) if is_gbnf else pb.Constraint(lark=text)


def _regex(field: str, value: Any) -> pb.Constraint:
    return pb.Constraint(regex=_text(field, value))


def _choice(field: str, value: Any) -> pb.Constraint:
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise refuse(field, "must be a list of texts")
    return pb.Constraint(choice=pb.ChoiceList(texts=value))


def _structured(field: str, value: Any) -> pb.Constraint | None:
    """vLLM's structured_outputs: one of its kinds."""
    if not isinstance(value, dict):
        raise refuse(field, "must be an object")
    kinds = {"json": _schema, "regex": _regex, "choice": _choice, "grammar": _grammar}
    given = [kind for kind in value if value[kind] not in (None, False)]
    if given == ["json_object"]:
        return pb.Constraint(json_object=True)
    if len(given) != 1 or given[0] not in kinds:
        raise refuse(field, f"must have exactly one of {', '.join(kinds)}, json_object")
    return kinds[given[0]](f"{field}.{given[0]}", value[given[0]])


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise refuse(field, "must be a text" if value is not None else "is required")
    return value


_CONSTRAINTS: dict[str, Any] = {
    "response_format": response_format,
    "grammar": _grammar,
    "json_schema": _schema,
    "structured_outputs": _structured,
    "guided_json": _schema,
    "guided_regex": _regex,
    "guided_choice": _choice,
    "guided_grammar": _grammar,
}


def _stops(value: Any) -> list[str]:
    if value is None:
        return []
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops[: MAX_STOPS + 1]):
        raise refuse("stop", "must be a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise refuse("stop", f"at most {MAX_STOPS} texts")
    return stops


def _prompts(value: Any) -> list[str | list[int]]:
    """A string, token ids, or a list of several of either."""
    several = value if isinstance(value, list) and value and isinstance(value[0], str | list) else [value]
    if len(several) > MAX_PROMPTS:
        raise refuse("prompt", f"at most {MAX_PROMPTS} prompts in a request, not {len(several)}")
    return [_prompt(one) for one in several]


def _prompt(value: Any) -> str | list[int]:
    if not isinstance(value, str | list):
        raise refuse("prompt", "must be a string, token ids, or a list of these")
    if not value:
        raise refuse("prompt", "must not be empty")
    if isinstance(value, str):
        return value
    if not all(type(item) is int and 0 <= item < 2**31 for item in value):
        raise refuse("prompt", "must be a string, token ids, or a list of these")
    return value
