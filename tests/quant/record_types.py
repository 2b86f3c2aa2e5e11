"""Records which types llama-quantize chooses: `python -m tests.quant.record_types LLAMA_QUANTIZE [OUT.json]`.

The models are files of holes with real names and shapes; llama-quantize's --dry-run says the types without reading a
weight.  The answers are stored by kind of tensor, as runs over the layers ("Q6_K*4 Q4_K*2").
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

from quant.policy import ModelFacts, TensorShape, layer_of
from quant.recipes import F16
from tests.quant.model_shapes import MODELS

RECIPES = (
    "Q8_0 Q6_K Q5_K_M Q5_K_S Q5_1 Q5_0 Q4_K_M Q4_K_S Q4_1 Q4_0 IQ4_NL IQ4_XS Q3_K_L Q3_K_M Q3_K_S Q2_K Q2_K_S "
    "MXFP4_MOE F16 BF16"
).split()
CALIBRATED = ("Q4_0", "Q5_0", "IQ4_NL", "IQ4_XS", "Q4_K_M")
_LINE = re.compile(r"\]\s+(?P<name>\S+)\s+- \[.*type =\s*(?P<before>\w+), size.*?(\((?P<after>\w+)\))?$")


def write_holes(path: Path, facts: ModelFacts, tensors: list[TensorShape]) -> None:
    writer = gguf.GGUFWriter(path, facts.architecture)
    n_embd = next(t.shape[0] for t in tensors if t.name == "token_embd.weight")
    writer.add_block_count(facts.n_layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(n_embd)
    writer.add_feed_forward_length(next(t.shape[0] for t in tensors if "ffn_down" in t.name))
    writer.add_head_count(facts.n_heads)
    writer.add_head_count_kv(facts.n_kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(next(t.shape[1] for t in tensors if t.name == "token_embd.weight"))
    if facts.n_experts:
        writer.add_expert_count(facts.n_experts)
        writer.add_expert_used_count(2)
    end = 0
    for tensor in tensors:
        dtype = np.dtype(np.float16 if tensor.type_id == F16 else np.float32)
        n_bytes = int(np.prod(tensor.shape)) * dtype.itemsize
        writer.add_tensor_info(tensor.name, tuple(reversed(tensor.shape)), dtype, n_bytes)
        end += (n_bytes + 31) // 32 * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + end + 64)


def write_importance(path: Path) -> None:
    """An importance file that holds something; a dry run asks no more of it."""
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["none"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_tensor("blk.0.attn_q.weight.in_sum2", np.ones((1, 256), np.float32))
    writer.add_tensor("blk.0.attn_q.weight.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ask(command: str, model: Path, recipe: str, *options: str) -> dict[str, str]:
    done = subprocess.run(
        [command, "--dry-run", *options, str(model), recipe], capture_output=True, text=True, check=False
    )
    found = {}
    for line in (done.stdout + done.stderr).splitlines():
        match = _LINE.search(line)
        if match:
            found[match["name"]] = (match["after"] or match["before"]).upper()
    if done.returncode != 0 or not found:
        raise SystemExit(f"{command}: {(done.stdout + done.stderr)[-2000:]}")
    return found


def compact(types: dict[str, str]) -> dict[str, str]:
    """Runs of equal types over the layers, by kind of tensor; what stays F32 is left out."""
    kinds: dict[str, list[str]] = {}
    for name in sorted(types, key=layer_of):
        if types[name] != "F32":
            kinds.setdefault(re.sub(r"^blk\.\d+\.", "", name), []).append(types[name])
    return {
        kind: " ".join(f"{name}*{len(list(run))}" for name, run in itertools.groupby(found))
        for kind, found in sorted(kinds.items())
    }


def main() -> None:
    command, out = sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "llama_quantize_types.json")
    table: dict[str, dict[str, dict[str, str]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        importance = Path(folder) / "importance.gguf"
        write_importance(importance)
        for name, (facts, tensors) in MODELS.items():
            path = Path(folder) / f"{name}.gguf"
            write_holes(path, facts, tensors)
            table[name] = {recipe: compact(ask(command, path, recipe)) for recipe in RECIPES}
            for recipe in CALIBRATED:
                options = ("--imatrix", str(importance))
                table[name][f"{recipe} calibrated"] = compact(ask(command, path, recipe, *options))
            path.unlink()
    lines = [
        f'"{name}": {{\n' + ",\n".join(f'"{row}": {json.dumps(one)}' for row, one in rows.items()) + "\n}"
        for name, rows in table.items()
    ]
    out.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
