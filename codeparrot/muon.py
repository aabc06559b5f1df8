"""Muon for the matrices inside a model, AdamW for all else, as one optimizer.

Muon (Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024) moves a matrix not along its
momentum M = U S V' but along U V': every direction of the update is of the same length. U V' is found by five steps of
a Newton-Schulz iteration X <- a X + (b X X' + c (X X')^2) X, whose coefficients make small singular values grow fast;
they end between 0.7 and 1.2, which does as well as 1. The update is then of the size that AdamW's has (Liu et al.,
"Muon is scalable for LLM training", 2025, eq. 4: 0.2 sqrt(max(rows, columns))), so weight decay means the same.

Unlike `torch.optim.Muon` this one can be turned off on the device by `found_inf`, as the fused AdamW can, takes apart
the matrix in which GPT-2 keeps those of queries, keys and values side by side, iterates over all matrices of one shape
at once, and in fp32 where the device has no fast bf16.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c."""
NUM_ITERATIONS = 5
SMALLEST_NORM = 1e-7
ADAMW_RMS = 0.2
"""Root of the mean square of AdamW's updates, as it is usually found."""


class MuonAdamW(torch.optim.AdamW):
    """Groups with `parts` have Muon's matrices, each so many side by side; the others are AdamW's."""

    def __init__(self, groups: Iterable[dict[str, Any]], *, momentum: float, **adamw: Any) -> None:
        super().__init__(groups, **adamw)
        self._momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One update. The gradients of Muon's matrices are given up."""
        for group in self.param_groups:
            if "parts" in group:
                self._step_matrices(group)
        return super().step(closure)  # what has no gradient is passed over

    def _step_matrices(self, group: dict[str, Any]) -> None:
        by_shape = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape[parameter.shape].append(parameter)
        for parameters in by_shape.values():
            moved = [self._moved(parameter) for parameter in parameters]
            updates = orthogonalised(torch.stack(moved), group["parts"])
            for parameter, update in zip(parameters, updates, strict=True):
                self._apply(parameter, update, group["lr"], group["weight_decay"])
                parameter.grad = None

    def _moved(self, parameter: torch.Tensor) -> torch.Tensor:
        """Nesterov's momentum of a gradient."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradient)
        state["momentum"].lerp_(gradient, 1 - self._momentum)
        return gradient.lerp(state["momentum"], self._momentum)

    def _apply(self, parameter: torch.Tensor, update: torch.Tensor, rate: float, weight_decay: float) -> None:
        new = parameter * (1 - rate * weight_decay) - rate * update
        stops: torch.Tensor | None = getattr(self, "found_inf", None)
        parameter.copy_(new if stops is None else torch.where(stops.bool(), parameter, new))


def orthogonalised(matrices: torch.Tensor, parts: int = 1) -> torch.Tensor:
    """U V' of every matrix, nearly, times the size of its update: shape (n, rows, columns), as `matrices`.

    `parts`: equal ranges of columns, each a matrix of its own.
    """
    num, rows, columns = matrices.shape
    split = matrices.reshape(num, rows, parts, columns // parts).transpose(1, 2)  # (n, parts, rows, columns / parts)
    flat = split.reshape(num * parts, rows, columns // parts)
    done = _newton_schulz(flat) * (ADAMW_RMS * math.sqrt(max(flat.shape[1:])))
    return done.view(num, parts, rows, columns // parts).transpose(1, 2).reshape(num, rows, columns)


def _newton_schulz(matrices: torch.Tensor) -> torch.Tensor:
    a, b, c = COEFFICIENTS
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)
