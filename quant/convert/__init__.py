"""Hugging Face folders as sources: safetensors, config.json and tokenizer, straight to the target types.

A family of models is one small module with a function from (config, weights, tokens) to metadata and tensors, and one
line here.  A family is offered where the runtime serves its architecture.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import cast

import numpy as np

from quant.convert.checkpoint import Checkpoint
from quant.convert.config import Config, read_json
from quant.convert.converted import Converted, OutputTensor
from quant.convert.lora import CONFIG, Adapter, add_adapters
from quant.convert.tokenizer import read_tokenizer
from quant.gguf_header import KeyValue
from quant.input_files import Bytes, InputFiles
from quant.policy import ModelFacts
from quant.source import ModelSource, SourceTensor
from runtime.errors import UnsupportedModelError
from runtime.models import architecture_names

# config.json's "architectures": (GGUF's architecture, module, function)
_FAMILIES: dict[str, tuple[str, str, str]] = {
    "LlamaForCausalLM": ("llama", "llama", "convert"),
    "LLaMAForCausalLM": ("llama", "llama", "convert"),
    "MistralForCausalLM": ("llama", "llama", "convert"),
    "MixtralForCausalLM": ("llama", "llama", "convert"),
    "GraniteForCausalLM": ("granite", "llama", "convert_granite"),
    "SmolLM3ForCausalLM": ("smollm3", "llama", "convert_smollm3"),
    "Qwen2ForCausalLM": ("qwen2", "qwen", "convert_qwen2"),
    "Qwen3ForCausalLM": ("qwen3", "qwen", "convert_qwen3"),
    "Qwen3MoeForCausalLM": ("qwen3moe", "qwen", "convert_qwen3moe"),
    "Gemma2ForCausalLM": ("gemma2", "gemma", "convert_gemma2"),
    "Gemma3ForCausalLM": ("gemma3", "gemma", "convert_gemma3"),
    "Gemma3ForConditionalGeneration": ("gemma3", "gemma", "convert_gemma3"),
    "Phi3ForCausalLM": ("phi3", "phi3", "convert"),
    "Olmo2ForCausalLM": ("olmo2", "olmo2", "convert"),
    "Olmo3ForCausalLM": ("olmo2", "olmo2", "convert"),
    "BertModel": ("bert", "bert", "convert"),
    "BertForMaskedLM": ("bert", "bert", "convert"),
    "NomicBertModel": ("nomic-bert", "nomic_bert", "convert"),
}

# Files beside the weights that a conversion reads.
SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "added_tokens.json",
    "vocab.txt",
    "chat_template.jinja",
    "chat_template.json",
)


def convertible() -> list[str]:
    """Return the names of config.json's "architectures" that are converted."""
    served = architecture_names()
    return [name for name, (architecture, _, _) in _FAMILIES.items() if architecture in served]


def is_folder_of_weights(path: Path) -> bool:
    """Say whether a path is a folder with a config.json."""
    return path.is_dir() and (path / "config.json").is_file()


def open_folder(folder: Path, adapters: Sequence[Adapter] = ()) -> ModelSource:
    """Open a folder as a source, with LoRA adapters to merge; only tables, configuration and tokenizer are read.

    Raises UnsupportedModelError (architecture, pre-tokenizer, tensors without use), ModelFormatError (missing shards,
    wrong shapes, malformed files), OSError.
    """
    config = Config(folder / "config.json", read_json(folder / "config.json"))
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else ""
    if name not in convertible():
        raise UnsupportedModelError(
            f"{folder}: architecture {str(name)[:64]!r} is not converted; quantd converts {', '.join(convertible())}"
        )
    weights = Checkpoint.open(folder)
    add_adapters(weights, adapters)
    vocabulary = read_tokenizer(folder)
    _, module, function = _FAMILIES[name]
    family = import_module(f"quant.convert.{module}")
    converted = cast(Converted, getattr(family, function)(config, weights, len(vocabulary.tokens)))
    weights.require_all_used()
    n_vocab = converted.tensors["token_embd.weight"].shape[1]
    return ModelSource(
        path=folder,
        files=tuple(file.path for file in weights.files),
        file_sizes=tuple(file.size_bytes for file in weights.files),
        metadata=[*_general(folder, config, converted), *converted.metadata, *vocabulary.metadata(n_vocab)],
        tensors={one.name: _source_tensor(one, folder) for one in converted.tensors.values()},
        facts=_facts(converted),
        side_files=(
            *(path for name in SIDE_FILES if (path := folder / name).is_file()),
            *(adapter.folder / CONFIG for adapter in adapters),
        ),
        is_converted=True,
    )


def _general(folder: Path, config: Config, converted: Converted) -> list[KeyValue]:
    name = config.string("_name_or_path", "").rstrip("/").rpartition("/")[2] or folder.resolve().name
    return [
        KeyValue("general.architecture", "string", converted.architecture),
        KeyValue("general.type", "string", "model"),
        KeyValue("general.name", "string", name),
    ]


def _facts(converted: Converted) -> ModelFacts:
    values = {entry.key.partition(".")[2]: entry.value for entry in converted.metadata}
    return ModelFacts(
        architecture=converted.architecture,
        n_layers=cast(int, values["block_count"]),
        n_heads=cast(int, values["attention.head_count"]),
        n_kv_heads=cast(int, values.get("attention.head_count_kv", values["attention.head_count"])),
        n_experts=cast(int, values.get("expert_count", 0)),
    )


def _source_tensor(output: OutputTensor, folder: Path) -> SourceTensor:
    view = output.view
    n_cols = view.n_cols

    def read(files: InputFiles, first: int, n: int) -> Bytes:
        rows = view.read(files, first // n_cols, n // n_cols)
        return np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data

    return SourceTensor(
        name=output.name,
        type_id=view.type_id,
        shape=output.shape,
        n_elements=view.n_rows * n_cols,
        unit_elements=view.unit_rows * n_cols,
        read=read,
        place=lambda element: (folder, 0 * element),
        origin=view.origin,
    )
