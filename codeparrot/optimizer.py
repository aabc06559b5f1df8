"""AdamW, or Muon with it, and their learning rates, a pure function of the step."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt

from codeparrot.settings import Settings

if TYPE_CHECKING:
    import torch

FUSED = "attn.c_attn.weight"
"""GPT-2's matrix of queries, keys and values, side by side."""
NUM_FUSED = 3


class OptimizerSettings(Settings):
    """AdamW or Muon, warm-up and decay."""

    LATER: ClassVar[frozenset[str]] = frozenset({"optimizer", "muon_learning_rate", "muon_momentum"})

    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the matrices of the layers, AdamW for embeddings, output matrix and vectors."""
    muon_learning_rate: float | None = Field(default=None, gt=0)
    """The largest for Muon's matrices, whose updates are of the size of AdamW's; null: `learning_rate`."""
    muon_momentum: float = Field(default=0.95, ge=0, lt=1)
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


def set_learning_rates(
    optimizer: "torch.optim.Optimizer", step: int, max_steps: int, settings: OptimizerSettings
) -> None:
    """Give every group of parameters the rate of this step."""
    rate = learning_rate(step, max_steps, settings)
    of_muon = rate * ((settings.muon_learning_rate or settings.learning_rate) / settings.learning_rate)
    for group in optimizer.param_groups:
        group["lr"] = of_muon if "parts" in group else rate


def build_optimizer(model: "torch.nn.Module", settings: OptimizerSettings) -> "torch.optim.AdamW":
    """Fused AdamW over the model's parameters, weight decay on those with two or more dimensions; or Muon with it."""
    import torch

    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    hidden = _hidden(model, parameters) if settings.optimizer == "muon" else {}
    others = [parameter for name, parameter in parameters.items() if name not in hidden]
    groups = [
        {"params": [p for p in others if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
    ]
    values: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": (settings.beta1, settings.beta2),
        "eps": settings.epsilon,
        "fused": True,
    }
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, **values)
    from codeparrot.muon import MuonAdamW

    for parts in sorted(set(hidden.values())):
        chosen = [parameters[name] for name in hidden if hidden[name] == parts]
        groups.append({"params": chosen, "weight_decay": settings.weight_decay, "parts": parts})
    return MuonAdamW(groups, momentum=settings.muon_momentum, **values)


def _hidden(model: "torch.nn.Module", parameters: "Mapping[str, torch.Tensor]") -> dict[str, int]:
    """The matrices of the layers by name, and how many of the same kind stand side by side in each."""
    import torch

    outer = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if isinstance(head, torch.nn.Module):
        outer |= {id(parameter) for parameter in head.parameters()}
    return {
        name: NUM_FUSED if name.endswith(FUSED) else 1
        for name, parameter in parameters.items()
        if parameter.dim() == 2 and id(parameter) not in outer
    }
