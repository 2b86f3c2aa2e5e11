"""What Ollama's API says of models: lists, running ones, and one in full."""

from __future__ import annotations

import json
from typing import Any

from daemon.gateway.ollama_answer import time_text
from daemon.quantization_name import quantization_name
from daemon.store.modelfile import modelfile_text
from daemon.store.parameters import number_text, parameter_values
from quantd.v1 import model_pb2
from quantd.v1 import model_service_pb2 as rpc

_FOREVER_MS = 4_102_444_800_000  # 2100-01-01: a model that never goes


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
    parameters = "\n".join(f"{name} {_value(value)}" for name, value in parameter_values(answer.parameters))
    facts: dict[str, Any] = {
        "modelfile": modelfile_text(answer),
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
    if answer.messages:
        facts["messages"] = [{"role": one.role, "content": one.content} for one in answer.messages]
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
        "quantization_level": quantization_name(model),
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


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else number_text(value)
