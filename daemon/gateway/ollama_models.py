"""What Ollama's API says of models: lists, running ones, and one in full."""

from __future__ import annotations

import json
from typing import Any

from daemon.gateway.ollama_answer import time_text
from quantd.v1 import generate_pb2, model_pb2
from quantd.v1 import model_service_pb2 as rpc

_FOREVER_MS = 4_102_444_800_000  # 2100-01-01: a model that never goes
_OPTION_NAMES = {"max_tokens": "num_predict", "context_tokens": "num_ctx"}


def listed(model: model_pb2.Model) -> dict[str, Any]:
    """A model of /api/tags."""
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": time_text(model.modified_unix_ms),
        "size": model.size_bytes,
        "digest": model.digest.removeprefix("sha256:"),
        "details": _details(model),
    }


def running(one: rpc.RunningModel) -> dict[str, Any]:
    """A model of /api/ps."""
    return {
        "name": one.model.name,
        "model": one.model.name,
        "size": one.memory_bytes,
        "digest": one.model.digest.removeprefix("sha256:"),
        "details": _details(one.model),
        "expires_at": time_text(one.expires_unix_ms or _FOREVER_MS),
        "size_vram": 0,
        "context_length": one.model.session_context_tokens,
    }


def shown(answer: rpc.ShowModelResponse) -> dict[str, Any]:
    """Everything about one model, for /api/show."""
    parameters = "\n".join(_parameter_lines(answer.parameters))
    facts: dict[str, Any] = {
        "modelfile": _modelfile(answer),
        "parameters": parameters,
        "template": answer.go_template or answer.template,
        "details": _details(answer.model),
        "model_info": {key: json.loads(value) for key, value in sorted(answer.metadata_json.items())},
        "capabilities": _capabilities(answer),
        "modified_at": time_text(answer.model.modified_unix_ms),
    }
    if answer.system:
        facts["system"] = answer.system
    if answer.licenses:
        facts["license"] = "\n".join(answer.licenses)
    if answer.tensors:
        facts["tensors"] = [
            {"name": tensor.name, "type": tensor.type, "shape": list(tensor.shape)}
            for tensor in answer.tensors
        ]
    return facts


def _details(model: model_pb2.Model) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": model.architecture,
        "families": [model.architecture],
        "parameter_size": _parameter_size(model.num_parameters),
        "quantization_level": model.quantization,
    }


def _parameter_size(count: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def _capabilities(answer: rpc.ShowModelResponse) -> list[str]:
    """What a client may ask of it, told by its template and its tokens."""
    if answer.model.gives_embeddings:
        return ["embedding"]
    found = ["completion"]
    if "tools" in answer.template:
        found.append("tools")
    if any(
        f"tokenizer.ggml.{name}_token_id" in answer.metadata_json for name in ("fim_pre", "prefix", "middle")
    ):
        found.append("insert")
    if "<think>" in answer.template or "enable_thinking" in answer.template:
        found.append("thinking")
    return found


def _parameter_lines(options: generate_pb2.GenerationOptions) -> list[str]:
    values: list[tuple[str, Any]] = []
    for message in (options.sampling, options):
        for field, value in message.ListFields():
            if field.message_type is not None:
                continue
            name = _OPTION_NAMES.get(field.name, field.name)
            values += [(name, one) for one in value] if field.name == "stop" else [(name, value)]
    return [f"{name} {_value(value)}" for name, value in values]


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value, ensure_ascii=False)


def _modelfile(answer: rpc.ShowModelResponse) -> str:
    lines = [f"FROM {answer.model.name}"]
    if answer.template_is_override:
        lines.append(f'TEMPLATE """{answer.template}"""')
    if answer.system:
        lines.append(f'SYSTEM """{answer.system}"""')
    lines += [f"PARAMETER {line}" for line in _parameter_lines(answer.parameters)]
    lines += [f'LICENSE """{text}"""' for text in answer.licenses]
    return "\n".join(lines) + "\n"
