"""What every view calls the quantization of a model: lists, `show`, /v1/models and Ollama's quantization_level."""

from __future__ import annotations

from quantd.v1 import model_pb2


def quantization_name(model: model_pb2.Model) -> str:
    """The recipe, such as "Q4_K_M", which is what such files are named after and what clients of Ollama and LM Studio show;
    of a file that names none the type of most of its weights, such as "Q4_K".
    """
    return model.recipe or model.quantization
