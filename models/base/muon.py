"""Muon: momentum whose update is made orthogonal, for the weight matrices between embedding and head.

Every direction of a matrix then moves by the same amount, the rare ones too, which helps a small model memorise thousands of
facts. On this corpus it reaches a loss in a fraction of AdamW's tokens (docs/experiments.md).

Sources: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; J. Liu et al., arXiv 2502.16982,
for the scale and the weight decay. torch.optim.Muon works in bfloat16, which many CPUs only emulate; this one works in float32.
"""

from __future__ import annotations

import math

import torch

# Coefficients of x -> a x + b x^3 + c x^5, which takes singular values of (0, 1] to about 1 in five rounds (Jordan et al.).
QUINTIC = (3.4445, -4.7750, 2.0315)
ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum; the update of a matrix (rows, columns) is orthogonalised and scaled to the size of AdamW's."""

    def __init__(self, parameters, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for matrix in group["params"]:
                average = self.state[matrix].setdefault("average", torch.zeros_like(matrix))
                average.lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonal(matrix.grad.lerp(average, group["momentum"]))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(matrix.shape)))


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Nearly U V^T of the matrix's singular value decomposition U S V^T, by Newton-Schulz iterations; same shape."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    first, third, fifth = QUINTIC
    for _ in range(ROUNDS):
        square = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(square, square, square, beta=third, alpha=fifth), wide, beta=first)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
