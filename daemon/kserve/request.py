"""From tensors and parameters to quantd.v1 messages.

A parameter has the name that OpenAI's completions have for it and goes the same way: what is refused there is refused here.
It may come as a parameter of the request, as a tensor of one value, or in the JSON of a tensor "sampling_parameters"; coming
twice, or under a name that is not known, it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from daemon.gateway.schema import CompletionRequest, read_completion
from daemon.gateway.translate import completion_requests
from daemon.kserve.tensors import Tensor, Value, read_inputs, refuse
from quantd.kserve import inference_pb2 as pb
from quantd.v1 import embed_pb2, generate_pb2
from quantd.v1 import embedding_service_pb2 as embedding

TEXT = "text_input"
IDS = "input_ids"
PARAMETERS = "sampling_parameters"
OUTPUTS = ("text_output", "finish_reason")
VECTORS = "embedding"
VERSION = "1"

_OPTIONS = frozenset(CompletionRequest.model_fields) - {"model", "prompt", "stream", "stream_options"}
_TEXT_OPTIONS = frozenset(("stop", "suffix", "grammar", "guided_regex", "guided_grammar"))
_LISTS = frozenset(("stop", "guided_choice"))  # a tensor of several values is a list
_EMBED_OPTIONS = frozenset(("dimensions", "truncate"))
# Not an option of the model: what Triton's clients and its backend for vLLM say of the call.
_CALL_OPTIONS = frozenset(("timeout", "exclude_input_in_output", "triton_enable_empty_final_response"))


@dataclass(frozen=True, slots=True)
class Generation:
    """Prompts to continue, as messages."""

    messages: list[generate_pb2.GenerateRequest]
    num_choices: int
    shape: tuple[int, ...]  # of each output
    outputs: tuple[str, ...]
    streams: bool


@dataclass(frozen=True, slots=True)
class Asked:
    """A request whose tensors were read."""

    model: str
    inputs: dict[str, Tensor]
    options: dict[str, Any]  # everything that is neither text nor tokens
    outputs: tuple[str, ...]

    @property
    def timeout_s(self) -> float | None:
        """Seconds that the answer may take."""
        timeout_us = self.options.get("timeout")
        if timeout_us is None or timeout_us == 0:
            return None
        if type(timeout_us) is not int or timeout_us < 0:
            raise refuse("timeout", "must be a whole number of microseconds")
        return timeout_us / 1e6


def read(request: pb.ModelInferRequest) -> Asked:
    """The request with its tensors and options taken apart; ApiError INVALID_ARGUMENT names what is wrong."""
    check_version(request.model_version)
    inputs = read_inputs(request)
    options: dict[str, Any] = {}
    for name, parameter in sorted(request.parameters.items()):
        _add(options, name, _parameter(name, parameter), "parameters")
    data = {name: inputs.pop(name) for name in (TEXT, IDS) if name in inputs}
    together = inputs.pop(PARAMETERS, None)
    for name, tensor in sorted(inputs.items()):
        _add(options, name, _of_tensor(tensor), "inputs")
    if together is not None:
        for name, value in _json_object(together).items():
            _add(options, name, _json_value(name, value), PARAMETERS)
    if len(data) != 1:
        raise refuse("inputs", f"exactly one of {TEXT} and {IDS} must be given")
    for output in request.outputs:
        if output.parameters:
            raise refuse("outputs", f"the parameter {min(output.parameters)[:64]!r} is not known")
    return Asked(request.model_name, data, options, tuple(output.name for output in request.outputs))


def check_version(version: str) -> None:
    """Refuses a version that no model has."""
    if version not in ("", VERSION):
        raise refuse("model_version", f"models have the one version {VERSION!r}, not {version[:40]!r}")


def generation(asked: Asked, *, may_stream: bool) -> Generation:
    """The prompts of a request as messages."""
    options = {name: value for name, value in asked.options.items() if name not in _CALL_OPTIONS}
    streams = options.pop("stream", may_stream)
    if type(streams) is not bool or (streams and not may_stream):
        raise refuse(
            "stream", "must be false: ModelStreamInfer streams" if streams is True else "must be BOOL"
        )
    _check_names(options, _OPTIONS)
    prompts, shape = _prompts(asked.inputs)
    body = {**options, "model": asked.model or "default", "prompt": prompts}
    excludes = asked.options.get("exclude_input_in_output")
    if excludes is not None:
        if type(excludes) is not bool:
            raise refuse("exclude_input_in_output", "must be BOOL")
        body.setdefault("echo", not excludes)
    completion = read_completion(body)
    if streams and completion.best_of is not None and completion.best_of != (completion.n or 1):
        raise refuse("best_of", "cannot be streamed: the best is known at the end")
    if completion.logprobs is not None:
        raise refuse("logprobs", "no tensor has them; quantd.v1.GenerateService does")
    messages = completion_requests(completion)
    for message in messages:
        message.model = asked.model
        if completion.max_tokens is None:
            message.options.ClearField("max_tokens")  # what the context has room for, as of all gRPC calls
    num_choices = completion.n or 1
    return Generation(
        messages,
        num_choices,
        shape if num_choices == 1 else (*shape, num_choices),
        _outputs(asked.outputs, OUTPUTS),
        streams,
    )


def embedding_message(asked: Asked) -> tuple[embedding.EmbedRequest, tuple[int, ...]]:
    """The texts of a request as a message, and the shape of the texts."""
    options = {name: value for name, value in asked.options.items() if name not in _CALL_OPTIONS}
    if options.pop("stream", False) is not False:
        raise refuse("stream", "an encoder has nothing to stream")
    _check_names(options, _EMBED_OPTIONS)
    _outputs(asked.outputs, (VECTORS,))
    prompts, shape = _prompts(asked.inputs)
    message = embedding.EmbedRequest(model=asked.model)
    for prompt in prompts:
        if isinstance(prompt, str):
            message.input.append(embed_pb2.EmbedInput(text=prompt))
        else:
            message.input.append(embed_pb2.EmbedInput(tokens=generate_pb2.TokenIds(ids=prompt)))
    dimensions, truncate = options.get("dimensions"), options.get("truncate", False)
    if dimensions is not None:
        if type(dimensions) is not int or not 0 <= dimensions < 2**31:
            raise refuse("dimensions", "must be a whole number")
        message.dimensions = dimensions
    if type(truncate) is not bool:
        raise refuse("truncate", "must be BOOL")
    message.truncate = truncate
    return message, shape


def _prompts(inputs: Mapping[str, Tensor]) -> tuple[list[str] | list[list[int]], tuple[int, ...]]:
    """Texts, one for each element; or token ids, one text for each row."""
    if TEXT in inputs:
        tensor = inputs[TEXT]
        texts = tensor.texts()
        if not texts:
            raise refuse(tensor.field, "must not be empty")
        return texts, tensor.shape
    tensor = inputs[IDS]
    if not tensor.datatype.removeprefix("U").startswith("INT") or len(tensor.shape) not in (1, 2):
        raise refuse(tensor.field, "must be whole numbers (n) or (texts, n)")
    if not tensor.values:
        raise refuse(tensor.field, "must not be empty")
    ids = [int(value) for value in tensor.values]
    if not all(0 <= one < 2**31 for one in ids):
        raise refuse(tensor.field, "token ids are not negative, and below 2^31")
    num_ids = tensor.shape[-1]
    return [ids[at : at + num_ids] for at in range(0, len(ids), num_ids)], (len(ids) // num_ids,)


def _outputs(names: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in known:
            raise refuse("outputs", f"{name[:64]!r} is no output of this model; it has {', '.join(known)}")
    return names or known


def _check_names(options: Mapping[str, Any], known: frozenset[str]) -> None:
    for name in sorted(options):
        if name not in known:
            raise refuse(f"parameters[{name[:64]!r}]", "is not known for this model")


def _add(options: dict[str, Any], name: str, value: Any, where: str) -> None:
    if name not in _OPTIONS | _EMBED_OPTIONS | _CALL_OPTIONS | {"stream"}:
        raise refuse(f"{where}[{name[:64]!r}]", "is not known")
    if name in options:
        raise refuse(f"{where}[{name[:64]!r}]", "is there twice")
    options[name] = value


def _parameter(name: str, parameter: pb.InferParameter) -> Any:
    kind = parameter.WhichOneof("parameter_choice")
    if kind is None:
        raise refuse(f"parameters[{name[:64]!r}]", "has no value")
    return _json_value(name, getattr(parameter, kind))


def _of_tensor(tensor: Tensor) -> Any:
    """The one value of a tensor, or the list that it is."""
    values: list[Value | str] = [*(tensor.texts() if tensor.datatype == "BYTES" else tensor.values)]
    if tensor.name in _LISTS and tensor.datatype == "BYTES" and len(values) != 1:
        return values
    if len(values) != 1:
        raise refuse(tensor.field, f"must have one value, not {len(values)}")
    return _json_value(tensor.name, values[0])


def _json_value(name: str, value: Any) -> Any:
    """A value; the text of what is no text is its JSON: a number, an object, true."""
    if not isinstance(value, str) or name in _TEXT_OPTIONS:
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise refuse(name[:64], "must be JSON as text") from None


def _json_object(tensor: Tensor) -> dict[str, Any]:
    texts = tensor.texts()
    try:
        found = json.loads(texts[0]) if len(texts) == 1 else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise refuse(tensor.field, "must be one JSON object as text")
    return found
