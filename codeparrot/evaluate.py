"""How well a model predicts rows it has not seen.

Every row counts once and every predicted token weighs the same, whatever the batch size or the number of workers;
the original averaged the means of batches, which gives the short last batch too much weight.
"""

from typing import TYPE_CHECKING

from pydantic import PositiveInt

from codeparrot.settings import Resources, Settings

if TYPE_CHECKING:
    import torch
    from torch import nn


class EvaluateSettings(Settings):
    """How the validation split is evaluated."""

    batch_size: PositiveInt = 16
    """Rows in one forward pass."""
    num_workers: PositiveInt = 2
    """Ray tasks that evaluate side by side."""
    max_rows: PositiveInt | None = None
    """Evaluate this many rows, evenly spread; null: all."""
    resources_per_worker: Resources = {"CPU": 1}


def row_nll(model: "nn.Module", rows: "torch.Tensor", lengths: "torch.Tensor | None" = None) -> "torch.Tensor":
    """Summed negative log-likelihood of each row's tokens but the first, in nats: shape (B,), float64.

    `rows`: token ids of shape (B, T); `lengths`: how many of each are no padding, which is not predicted, (B,).
    """
    import torch.nn.functional as F

    from codeparrot.loss import predicted

    logits = model(input_ids=rows).logits  # (B, T, V)
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), rows[:, 1:].flatten(), reduction="none")
    by_row = losses.view(rows.shape[0], -1).double()
    return (by_row if lengths is None else by_row * predicted(rows, lengths)).sum(dim=1)


def spread(num_rows: int, wanted: int | None) -> list[int]:
    """At most `wanted` row numbers, evenly spread over `num_rows` and without repetition."""
    if wanted is None or wanted >= num_rows:
        return list(range(num_rows))
    return [index * num_rows // wanted for index in range(wanted)]
