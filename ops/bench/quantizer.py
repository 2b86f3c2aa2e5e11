"""Quantize the same file with quantd and with llama-quantize, in turns, and print times, memory, error and divergence.

    make bench-quantizer BENCH="--llama-cpp DIR"                         time and memory at 1.24 B, seven recipes
    make bench-quantizer BENCH="--llama-cpp DIR --shape llama2-7b --recipes Q4_K_M --rounds 1"
    make bench-quantizer BENCH="--llama-cpp DIR --quality --text heldout.txt --calibration other.txt"

DIR holds llama-quantize and, for --quality, llama-imatrix, built as README.md says.  Speed depends on shapes only, so the
model of the first two is random; --quality uses the demo model, or --model.  Both programs use all cores, read the same
file from the page cache, and write to the same disk.  Peak memory is the most anonymous memory that was seen in
/proc, every 20 ms, of the program and its threads: mapped files do not count.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import synthetic
from others import Others
from tables import spread

from quant.importance import read_imatrix
from quant.sensitivity import tensor_losses
from runtime.gguf import ModelFile

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "out/bench"
DEMO = ROOT / "ops/demo/quantd-demo-f16.gguf"
QUANTD = Path(sys.executable).with_name("quantd")
RECIPES = "Q4_K_M,Q5_K_M,Q6_K,Q3_K_M,Q2_K,Q8_0,Q4_0"
_POLL_S = 0.02


@dataclass(frozen=True)
class Run:
    """What one run of a program took."""

    seconds: float
    cpu_seconds: float
    anonymous_bytes: int
    others_cores: float  # that others kept busy meanwhile, the system's writing to the disk with them


def timed(command: list[str]) -> Run:
    """Run a command to its end; subprocess.CalledProcessError with what it said where it fails."""
    with (OUT / "quantizer.log").open("w+", encoding="utf-8") as log:
        others = Others()
        before = os.times()
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=log, stderr=log)
        peak = 0
        while process.poll() is None:
            peak = max(peak, _anonymous_bytes(process.pid))
            time.sleep(_POLL_S)
        seconds = time.monotonic() - started
        after = os.times()
        others_cores = others.cores()
        if process.returncode:
            log.seek(0)
            raise subprocess.CalledProcessError(process.returncode, command, log.read()[-2000:])
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return Run(seconds, used, peak, others_cores)


def _anonymous_bytes(pid: int) -> int:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) << 10
    return 0


@contextlib.contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A file to write that is not there before and not after."""
    path = OUT / name
    for one in (path, path.with_name(f"{path.name}.manifest.json")):
        one.unlink(missing_ok=True)
    os.sync()
    yield path
    for one in (path, path.with_name(f"{path.name}.manifest.json")):
        one.unlink(missing_ok=True)


def speed(model: Path, recipes: list[str], arguments: argparse.Namespace) -> None:
    """Every recipe by both programs, in turns."""
    with model.open("rb", buffering=0) as file:  # into the page cache, for both
        while file.read(64 << 20):
            pass
    llama_quantize = str(arguments.llama_cpp / "llama-quantize")
    rows = []
    for recipe in recipes:
        ours: list[Run] = []
        theirs: list[Run] = []
        for turn in range(arguments.rounds):
            print(f"{recipe}, round {turn + 1}/{arguments.rounds}", file=sys.stderr, flush=True)
            with scratch("ours.gguf") as output:
                command = [str(QUANTD), "quantize", str(model), str(output), "--recipe", recipe]
                ours.append(timed([*command, "--threads", str(arguments.threads)]))
            with scratch("theirs.gguf") as output:
                command = [llama_quantize, str(model), str(output), recipe, str(arguments.threads)]
                theirs.append(timed(command))
        ratios = [b.seconds / a.seconds for a, b in zip(ours, theirs, strict=True)]
        cpu = statistics.median(b.cpu_seconds / a.cpu_seconds for a, b in zip(ours, theirs, strict=True))
        rows.append(
            [
                recipe,
                spread((one.seconds for one in ours), "s"),
                spread((one.seconds for one in theirs), "s"),
                f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})",
                f"{cpu:.1f}",
                f"{max(one.anonymous_bytes for one in ours) / 1e6:.0f} MB",
                f"{max(one.anonymous_bytes for one in theirs) / 1e6:.0f} MB",
                " and ".join(f"{max(one.others_cores for one in runs):.2f}" for runs in (ours, theirs)),
            ]
        )
        header = ["recipe", "quantd", "llama-quantize", "ratio", "ratio of CPU time", "our memory", "theirs"]
        show([*header, "others' cores, at most"], rows)


def quality(model: Path, recipes: list[str], arguments: argparse.Namespace) -> None:
    """Error, perplexity and divergence of each recipe: both programs without importance, with that of the calibration text,
    ours with error feedback too, and the recipe best-NAME.
    """
    llama, text = arguments.llama_cpp, str(arguments.calibration)
    imatrix = OUT / "theirs-imatrix.gguf"
    calibrate = [str(llama / "llama-imatrix"), "-m", str(model), "-f", text, "-o", str(imatrix), "-c", "512"]
    timed([*calibrate, "--parse-special", "-t", str(arguments.threads)])
    quantize = [str(QUANTD), "quantize", str(model)]
    rows = []
    for recipe in recipes:
        variants = {
            "llama-quantize": [str(llama / "llama-quantize"), str(model), "OUTPUT", recipe],
            "llama-quantize, imatrix": [
                *(str(llama / "llama-quantize"), "--imatrix", str(imatrix)),
                *(str(model), "OUTPUT", recipe),
            ],
            "quantd": [*quantize, "OUTPUT", "--recipe", recipe],
            "quantd, the same imatrix": [*quantize, "OUTPUT", "--recipe", recipe, f"--imatrix={imatrix}"],
            "quantd, --calibrate": [*quantize, "OUTPUT", "--recipe", recipe, f"--calibrate={text}"],
            f"quantd, best-{recipe}": [
                *(*quantize, "OUTPUT", "--recipe", f"best-{recipe}", f"--calibrate={text}")
            ],
        }
        for name, command in variants.items():
            print(f"{recipe}: {name}", file=sys.stderr, flush=True)
            with scratch("quality.gguf") as output:
                timed([str(output) if word == "OUTPUT" else word for word in command])
                rows.append([recipe, name, *_quality_of(model, output, imatrix, arguments)])
    show(["recipe", "by", "bytes", "RMSE, weighted", "KL divergence", "perplexity"], rows)


def _quality_of(model: Path, output: Path, imatrix: Path, arguments: argparse.Namespace) -> list[str]:
    command = [str(QUANTD), "compare", str(model), str(output), "--file", str(arguments.text), "--json"]
    command += ["--parse-special", *(["--chunks", str(arguments.chunks)] if arguments.chunks else [])]
    facts = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    losses = tensor_losses(ModelFile.open(model), ModelFile.open(output), read_imatrix(imatrix))
    n_elements = sum(one.n_elements for one in losses)
    error = sum(one.error**2 * one.n_elements for one in losses) / n_elements
    return [
        f"{output.stat().st_size:,}",
        f"{100 * error**0.5:.3f} %",
        f"{facts['kl_mean']:.6f} +/- {facts['kl_mean_stderr']:.6f}",
        f"{facts['increase_percent']:+.3f} % +/- {100 * facts['ratio_stderr']:.3f}",
    ]


def show(header: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    sys.stdout.flush()


def main() -> int:
    """Exit status 0 with the tables printed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama-cpp", type=Path, required=True, metavar="DIR")
    parser.add_argument("--shape", choices=synthetic.SHAPES, default="llama32-1b")
    parser.add_argument("--model", type=Path, help="an F16 file instead of a shape")
    parser.add_argument("--recipes", default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--text", type=Path, default=DEMO.parent / "heldout.txt")
    parser.add_argument("--chunks", type=int, help="of --text; all of them otherwise")
    parser.add_argument("--calibration", type=Path, help="a text of the same kind, none of it in --text")
    arguments = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    if arguments.quality:
        if arguments.calibration is None:
            parser.error("--quality needs --calibration")
        quality(arguments.model or DEMO, (arguments.recipes or "Q4_K_M,Q5_K_S").split(","), arguments)
        return 0
    model = arguments.model or OUT / f"{arguments.shape}-f16.gguf"
    if not model.exists():
        synthetic.write(model, synthetic.SHAPES[arguments.shape])
    speed(model, (arguments.recipes or RECIPES).split(","), arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
