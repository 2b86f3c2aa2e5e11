"""Measure the matmul kernels of one thread, every weight type and number of rows, and print GMAC/s and GB/s.

    python ops/bench/kernels.py                                    the types of Q4_K_M, at every level of this CPU
    python ops/bench/kernels.py --types Q8_0,Q4_0 --rows 1,2,3,4   around the crossover from few rows to panels
    python ops/bench/kernels.py --in 8192 --out 2048 --repeats 30

Levels take turns; the figure of each is its fastest repeat, which is what the kernel costs when nothing disturbs it.
Weights of 512 rows stay in the cache: the figures are the kernels', not the memory's.  The binding quantizes the
activations in each call, so a figure for few weight rows is a little low.
"""

from __future__ import annotations

import argparse
import sys
import time

import gguf
import numpy as np

from runtime import _native


def random_weight(type_name: str, n_out: int, n_in: int) -> np.ndarray:
    """Random bytes (n_out * row bytes): what the quants say does not matter to the speed."""
    elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]]
    rng = np.random.default_rng(1)
    # Below 0x40 in both bytes of a float16 no scale is infinite or NaN.
    return rng.integers(0, 0x40, n_out * n_in // elements * size, dtype=np.uint8)


def main() -> int:
    """Exit status 0 with the table printed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    wide = [level for level in _native.kernel_levels() if level != "scalar"] or ["scalar"]
    parser.add_argument("--types", default="Q4_K,Q6_K")
    parser.add_argument("--rows", default="1,2,3,4,5,8,16,64,256", help="activation rows")
    parser.add_argument("--levels", default=",".join(wide))
    parser.add_argument("--in", dest="n_in", type=int, default=2048)
    parser.add_argument("--out", dest="n_out", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    levels = arguments.levels.split(",")
    n_in, n_out = arguments.n_in, arguments.n_out
    print("| type | rows | " + " | ".join(f"{level} GMAC/s | {level} GB/s" for level in levels) + " |")
    print("|---|---|" + "---|---|" * len(levels))
    for type_name in arguments.types.split(","):
        weight = random_weight(type_name, n_out, n_in)
        for n_rows in (int(word) for word in arguments.rows.split(",")):
            x = np.random.default_rng(2).standard_normal((n_rows, n_in)).astype(np.float32)
            best = dict.fromkeys(levels, float("inf"))
            for _ in range(arguments.repeats):
                for level in levels:
                    start = time.perf_counter()
                    _native.matmul(level, type_name, weight, n_out, n_in, x)
                    best[level] = min(best[level], time.perf_counter() - start)
            cells = [
                f"{n_rows * n_in * n_out / best[level] / 1e9:.1f} | {weight.size / best[level] / 1e9:.2f}"
                for level in levels
            ]
            print(f"| {type_name} | {n_rows} | " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
