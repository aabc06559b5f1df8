"""AdamW and its learning rate, a pure function of the step."""

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeInt

from codeparrot.settings import Settings

if TYPE_CHECKING:
    import torch


class OptimizerSettings(Settings):
    """AdamW, warm-up and decay."""

    learning_rate: float = Field(gt=0)
    """The largest, reached at the end of the warm-up."""
    final_learning_rate_fraction: float = Field(default=0.1, ge=0, le=1)
    """Of `learning_rate`, reached at the last step."""
    warmup_steps: NonNegativeInt
    schedule: Literal["cosine", "wsd"] = "cosine"
    """cosine: falls from the warm-up to the last step. wsd: stays at its largest and falls only at the
    end."""
    decay_fraction: float = Field(default=0.2, gt=0, le=1)
    """Share of all steps in which wsd decays."""
    weight_decay: float = Field(default=0.1, ge=0)
    """On matrices; biases, norms and other vectors have none."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Gradients are scaled down to this global L2 norm; null: never."""


def learning_rate(step: int, max_steps: int, settings: OptimizerSettings) -> float:
    """The learning rate of step `step` (from 0): linear warm-up, then down to its last fraction.

    cosine: Loshchilov and Hutter, SGDR (2017), eq. 5, without restarts. wsd (warm-up, stable, decay): constant, then
    1 - sqrt, the best of the cool-downs in Haegele et al., "Scaling laws and compute-optimal training beyond fixed
    training durations" (2024), section 3.
    """
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    first = settings.warmup_steps
    if settings.schedule == "wsd":
        first = max(first, math.ceil(max_steps * (1 - settings.decay_fraction)) - 1)
    progress = min(1.0, max(0.0, (step - first) / max(1, max_steps - 1 - first)))
    shape = 1 - math.sqrt(progress) if settings.schedule == "wsd" else 0.5 * (1 + math.cos(math.pi * progress))
    floor = settings.final_learning_rate_fraction
    return settings.learning_rate * (floor + (1 - floor) * shape)


def build_optimizer(model: "torch.nn.Module", settings: OptimizerSettings) -> "torch.optim.AdamW":
    """Fused AdamW over the model's parameters, weight decay on those with two or more dimensions."""
    import torch

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=True,
    )
