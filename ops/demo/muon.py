"""Muon: momentum whose steps are made orthogonal, in float32 (bfloat16 is emulated on most CPUs).

K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the step size is matched to AdamW's as
in "Muon is Scalable for LLM Training", arXiv:2502.16982.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5


def orthogonal(x: Tensor) -> Tensor:
    """Return about the nearest matrix with orthogonal rows (or columns) to x (rows, columns), by Newton-Schulz."""
    turned = x.shape[0] > x.shape[1]
    x = x.T if turned else x
    x = x / (x.norm() + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ROUNDS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if turned else x


class Muon:
    """Steps for matrices; others need another optimizer."""

    def __init__(
        self, matrices: Sequence[nn.Parameter], momentum: float = 0.95, weight_decay: float = 0.05
    ) -> None:
        self.matrices = list(matrices)
        self.momentum, self.weight_decay = momentum, weight_decay
        self.means = [torch.zeros_like(p) for p in self.matrices]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move every matrix by its gradient's orthogonal direction, at a step size like AdamW's."""
        for p, mean in zip(self.matrices, self.means, strict=True):
            if p.grad is None:
                continue
            mean.lerp_(p.grad, 1 - self.momentum)
            direction = orthogonal(p.grad.lerp(mean, self.momentum))
            p.mul_(1 - rate * self.weight_decay)
            p.add_(direction, alpha=-rate * 0.2 * math.sqrt(max(p.shape)))
