"""From the rotation that an architecture declares to the angles that the native core turns by.

Sources: RoPE arXiv:2104.09864, YaRN arXiv:2309.00071, LongRoPE arXiv:2402.13753; Llama 3's scaling comes as factors.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np

from runtime.models.config import RopeScaling
from runtime.models.graph import Rope

Frequencies: TypeAlias = np.ndarray[tuple[int], np.dtype[np.float64]]


def rope_table(rope: Rope, factors: Frequencies | None = None) -> tuple[Frequencies, float]:
    """Return the (dim / 2,) frequencies in radians per position, and the magnitude by which q and k are multiplied."""
    scaling = rope.scaling
    exponents = np.arange(rope.dim // 2, dtype=np.float64) * 2.0 / rope.dim
    frequencies = rope.freq_base**-exponents
    if factors is not None:
        frequencies = frequencies / factors
    if scaling.kind != "yarn":
        return frequencies / scaling.factor, scaling.magnitude
    kept = _kept(rope) * scaling.extrapolation
    stretched = frequencies / scaling.factor
    return stretched * (1 - kept) + frequencies * kept, scaling.magnitude * _yarn_magnitude(scaling)


def _kept(rope: Rope) -> Frequencies:
    """How much of each frequency yarn leaves as it is: 1 for fast ones, 0 for slow ones, a ramp between."""
    scaling = rope.scaling

    def pair_with(turns: float) -> float:
        """The pair that turns so often within the original context."""
        ratio = scaling.original_context / (turns * 2 * math.pi)
        return rope.dim * math.log(ratio) / (2 * math.log(rope.freq_base))

    low = max(0, math.floor(pair_with(scaling.beta_fast)))
    high = min(rope.dim - 1, math.ceil(pair_with(scaling.beta_slow)))
    ramp = (np.arange(rope.dim // 2, dtype=np.float64) - low) / max(0.001, high - low)
    return 1.0 - np.clip(ramp, 0.0, 1.0)


def _yarn_magnitude(scaling: RopeScaling) -> float:
    logarithm = 0.1 * math.log(scaling.factor)
    magnitude = 1.0 + logarithm
    return magnitude / (1.0 + scaling.log_multiplier * logarithm) if scaling.log_multiplier else magnitude
