"""The README's table of architectures: one row each, with the model file that shows it.

`python ops/architectures.py` writes the table; the figures of llama.cpp stand in peer_figures.json, which
test_peer_architectures.py records where `xllamacpp` is installed and compares with ours everywhere.
"""

from __future__ import annotations

import fcntl
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.models.support import Tiny
from tests.models.test_architectures import GRANITE, LONGROPE, MODELS, WEIGHT_TYPES, YARN

FIGURES = Path(__file__).with_name("peer_figures.json")

N_VOCAB = 320
# Small, so that tied logits stay small.
EMBEDDING = (np.random.default_rng(3).standard_normal((N_VOCAB, 64)) * 0.03).astype(np.float32)

CASES = {
    "llama": MODELS["llama 3 with rope_freqs"],
    "llama, Mixtral": MODELS["mixtral"],
    "llama, yarn": Tiny(keys=YARN),
    "qwen2": Tiny(arch="qwen2"),
    "qwen3": Tiny(arch="qwen3", head_dim=32),
    "qwen3moe": Tiny(arch="qwen3moe", head_dim=32),
    "granite": Tiny(arch="granite", keys=GRANITE),
    "olmo2": Tiny(arch="olmo2"),
    "smollm3": Tiny(arch="smollm3", n_layers=4),
    "phi3": Tiny(arch="phi3"),
    "phi3, longrope": Tiny(
        arch="phi3", longrope=True, keys=LONGROPE | {"rope.scaling.original_context_length": 512}
    ),
    "gemma2": Tiny(
        arch="gemma2",
        tied=True,
        head_dim=32,
        keys={"attention.sliding_window": 10},
        tensors={"token_embd.weight": EMBEDDING},
    ),
    "gemma3": Tiny(
        arch="gemma3",
        n_layers=7,
        tied=True,
        head_dim=32,
        keys={"attention.sliding_window": 10, "rope.freq_base": 1e6},
        tensors={"token_embd.weight": EMBEDDING},
    ),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One architecture, or one form of it."""

    case: str  # in CASES; an encoder's general.architecture
    architecture: str
    models: str
    tokenizers: str
    templates: str  # those in tests/text; each file brings its own


_LLAMA, _QWEN3 = "Llama 3.1, Mistral Nemo, Hermes 3", "Qwen 3"
ROWS = (
    Row("llama", "llama", "Llama 2, 3.x, Mistral, SmolLM 1 and 2", "llama, gpt2", _LLAMA),
    Row("llama, Mixtral", "llama with experts", "Mixtral", "llama", _LLAMA),
    Row("llama, yarn", "llama with yarn", "long-context derivatives", "llama, gpt2", _LLAMA),
    Row("qwen2", "qwen2", "Qwen 2, 2.5, R1 distilled", "gpt2", "Qwen 2.5, DeepSeek R1"),
    Row("qwen3", "qwen3", "Qwen 3", "gpt2", _QWEN3),
    Row("qwen3moe", "qwen3moe", "Qwen 3 mixtures", "gpt2", _QWEN3),
    Row("granite", "granite", "Granite 3, dense", "gpt2", "Granite 3.3"),
    Row("olmo2", "olmo2", "OLMo 2, 3", "gpt2", "the file's"),
    Row("smollm3", "smollm3", "SmolLM 3", "gpt2", "SmolLM 3"),
    Row("phi3", "phi3", "Phi 3, 3.5, 4 mini", "llama, gpt2", "Phi 3.5"),
    Row("phi3, longrope", "phi3 with longrope", "the same, long contexts", "llama, gpt2", "Phi 3.5"),
    Row("gemma2", "gemma2", "Gemma 2", "llama", "Gemma 2"),
    Row("gemma3", "gemma3", "Gemma 3, text", "llama", "Gemma 2's form"),
    Row("bert", "bert", "MiniLM, BGE, E5", "bert, t5", "none: embeddings"),
    Row("nomic-bert", "nomic-bert", "Nomic Embed", "bert", "none: embeddings"),
)


def figures() -> dict[str, list[float]]:
    """Recorded figures by case: [ours, llama.cpp's]; of "minilm", the worst cosine to the model's own embeddings."""
    return json.loads(FIGURES.read_text(encoding="utf-8"))


def record(case: str, *values: float) -> None:
    """Writes figures down; tests of several processes may do so at once."""
    with FIGURES.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        known = json.loads(file.read() or "{}")
        known[case] = [round(value, 6) for value in values]
        file.truncate(0)
        file.write(json.dumps(dict(sorted(known.items())), indent=1) + "\n")


def table() -> str:
    """The table, as Markdown."""
    known = figures()
    every_type = " ".join(("F32", *WEIGHT_TYPES))
    lines = [
        "| general.architecture | models | tokenizer | template | types seen | perplexity, quantd | llama.cpp |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        if row.case in CASES:
            measured = " | ".join(
                f"{value:.4g}" if value < 100 else f"{value:.2f}" for value in known[row.case]
            )
        elif row.case == "bert":
            measured = f"cosine {known['minilm'][0]:.6f} to all-MiniLM-L6-v2's own |"
        else:
            measured = "embeddings as in NumPy |"
        cells = (row.architecture, row.models, row.tokenizers, row.templates, "all", measured)
        lines.append(f"| {' | '.join(cells)} |")
    lines.append(f"\nAll types: {every_type}.")
    return "\n".join(lines)
