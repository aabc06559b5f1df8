"""The training loss, without the logits of all tokens at once.

The logits are the largest tensor of a small model: V numbers for each token, written, read and kept several times over.
Here a few tokens at a time go through the output matrix, and their gradients are taken while their logits are still in
the cache, since the derivative of a sum of negative log-likelihoods is known in closed form: softmax minus one-hot.
What is kept for the backward pass are the gradients of hidden states and output matrix. The arithmetic is that of
`cross_entropy` over all logits, in another order of summation.
"""

from typing import Any

import torch
from torch import nn

CHUNK_BYTES = {"cpu": 4 * 2**20, "cuda": 512 * 2**20}
"""Of logits, in fp32: what fits into a core's cache; what fills a GPU."""


class NextTokenLoss(nn.Module):
    """A causal language model of `transformers`, to be called with rows and for their loss."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, rows: torch.Tensor, lengths: torch.Tensor | None = None, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Summed negative log-likelihood of all tokens but the first of each row, in nats: a scalar, float64.

        `rows`: token ids of shape (B, T); `lengths`: how many of each are no padding, which is not predicted, (B,);
        `positions`: of tokens in their documents, (B, T). Where they do not rise by one, a sequence begins for
        `transformers`, which sees none before.
        """
        where = {} if positions is None else {"position_ids": positions}
        hidden = self.model.base_model(input_ids=rows, use_cache=False, **where).last_hidden_state  # (B, T, C)
        weight = self.model.get_output_embeddings().weight  # (V, C)
        kept = None if lengths is None else predicted(rows, lengths).flatten()
        return summed_nll(hidden[:, :-1].flatten(0, 1), weight, rows[:, 1:].flatten(), kept)


def predicted(rows: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Which of the tokens but the first of each row are no padding: shape (B, T - 1), bool."""
    return torch.arange(1, rows.shape[1], device=rows.device) < lengths.unsqueeze(1)


def summed_nll(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, kept: torch.Tensor | None = None
) -> torch.Tensor:
    """-sum(log softmax(hidden @ weight.T)[n, targets[n]]) over n, in nats: a scalar, float64.

    `hidden`: (N, C); `weight`: (V, C); `targets`: (N,) ids below V; `kept`: which n count, shape (N,), None: all.
    """
    if torch.is_grad_enabled():
        total: torch.Tensor = _SummedNLL.apply(hidden, weight, targets, kept)
        return total
    return _go_through(hidden, weight, targets, kept, None)


class _SummedNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, kept: torch.Tensor | None
    ) -> torch.Tensor:
        gradients = torch.empty_like(hidden), torch.zeros_like(weight)
        total = _go_through(hidden, weight, targets, kept, gradients)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        by_hidden, by_weight = ctx.saved_tensors
        return by_hidden * outer[0].to(by_hidden.dtype), by_weight * outer[0].to(by_weight.dtype), None, None


def _go_through(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    kept: torch.Tensor | None,
    gradients: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    """The sum; tensors for the gradients by `hidden` and by `weight`, the latter of zeros, are filled."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    matrix = weight.to(dtype)
    size = max(1, CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // (4 * weight.shape[0]))
    total = torch.zeros((), dtype=torch.float64, device=hidden.device)
    with torch.autocast(device, enabled=False):
        for start in range(0, len(targets), size):
            part = slice(start, start + size)
            states, wanted = hidden[part].to(dtype), targets[part].unsqueeze(1)  # (n, C), (n, 1)
            logits = (states @ matrix.T).float()  # (n, V)
            logits -= logits.amax(1, keepdim=True)
            said = logits.gather(1, wanted)
            normalizer = logits.exp_().sum(1, keepdim=True)
            nll = normalizer.log() - said  # (n, 1)
            counts = None if kept is None else kept[part].unsqueeze(1)
            total += (nll if counts is None else nll * counts).sum(dtype=torch.float64)
            if gradients is None:
                continue
            by_hidden, by_weight = gradients
            slopes = logits.div_(normalizer)
            slopes.scatter_add_(1, wanted, slopes.new_full(wanted.shape, -1.0))
            if counts is not None:
                slopes.mul_(counts)
            slopes = slopes.to(dtype)
            by_hidden[part] = slopes @ matrix
            if by_weight.dtype == dtype:
                by_weight.addmm_(slopes.T, states)
            else:
                by_weight += slopes.T @ states
    return total
