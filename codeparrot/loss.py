"""The training loss, without the logits of all tokens at once.

The logits are the largest tensor of a small model: V numbers for each token, written, read and kept several times over.
Here a few tokens at a time go through the output matrix, and their gradients are taken while their logits are still in
the cache, since the derivative of a sum of negative log-likelihoods is known in closed form: softmax minus one-hot.
What is kept for the backward pass are the gradients of hidden states and output matrix. The arithmetic is that of
`cross_entropy` over all logits, in another order of summation.
"""

from typing import Any, NamedTuple

import torch
from torch import nn

CHUNK_BYTES = {"cpu": 4 * 2**20, "cuda": 512 * 2**20}
"""Of logits, in fp32: what fits into a core's cache; what fills a GPU."""


class Asked(NamedTuple):
    """What a model says where it is asked."""

    hidden: torch.Tensor
    """Before the output matrix: shape (N, C)."""
    targets: torch.Tensor
    """Token ids: shape (N,)."""
    kept: torch.Tensor | None
    """Which of them count, shape (N,); None: all."""


class Loss(nn.Module):
    """A model of `transformers`, to be called with what an objective asks (`codeparrot.objectives`) and for its loss.

    The loss is the summed negative log-likelihood of the tokens that are asked, in nats: a scalar, float64.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *batch: torch.Tensor) -> torch.Tensor:
        asked = self.asked(*batch)
        return summed_nll(asked.hidden, self.model.get_output_embeddings().weight, asked.targets, asked.kept)

    def token_nll(self, *batch: torch.Tensor) -> torch.Tensor:
        """The same for each token, those that do not count included: shape (N,), float32."""
        hidden, targets, _ = self.asked(*batch)
        weight = self.model.get_output_embeddings().weight
        size = max(1, CHUNK_BYTES["cuda"] // (4 * weight.shape[0]))
        parts = [
            nn.functional.cross_entropy((states @ weight.T).float(), wanted, reduction="none")
            for states, wanted in zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
        ]
        return torch.cat(parts)

    def asked(self, *batch: torch.Tensor) -> Asked:
        """The forward pass, up to the output matrix."""
        raise NotImplementedError


class NextTokenLoss(Loss):
    """Of a decoder, and all tokens but the first of each row."""

    def asked(  # type: ignore[override]
        self, rows: torch.Tensor, lengths: torch.Tensor | None = None, positions: torch.Tensor | None = None
    ) -> Asked:
        """`rows`: token ids of shape (B, T); `lengths`: how many of each are no padding, which is not predicted, (B,);
        `positions`: of tokens in their documents, (B, T). Where they do not rise by one, a sequence begins for
        `transformers`, which sees none before.
        """
        where = {} if positions is None else {"position_ids": positions}
        hidden = self.model.base_model(input_ids=rows, use_cache=False, **where).last_hidden_state  # (B, T, C)
        kept = None if lengths is None else _before(rows, lengths)[:, 1:].flatten()
        return Asked(hidden[:, :-1].flatten(0, 1), rows[:, 1:].flatten(), kept)


class MaskedTokenLoss(Loss):
    """Of an encoder, and the tokens at some places of each row, which alone go through the output layer."""

    def asked(  # type: ignore[override]
        self,
        rows: torch.Tensor,
        places: torch.Tensor,
        targets: torch.Tensor,
        kept: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
    ) -> Asked:
        """`rows`: as they are shown, (B, T); `places`: offsets in them, (B, K), with `targets`, and which count."""
        visible = {"full_attention": None if lengths is None else _visible(rows, lengths)}
        hidden = self.model.base_model(input_ids=rows, attention_mask=visible).last_hidden_state  # (B, T, C)
        states = hidden.gather(1, places.unsqueeze(2).expand(-1, -1, hidden.shape[2]))  # (B, K, C)
        kept = None if kept is None else kept.flatten()
        return Asked(self.model.head(states).flatten(0, 1), targets.flatten(), kept)


class SpanLoss(Loss):
    """Of an encoder that reads rows with holes and a decoder that writes what was in them."""

    def asked(  # type: ignore[override]
        self,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        num_inputs: torch.Tensor | None = None,
        num_targets: torch.Tensor | None = None,
    ) -> Asked:
        """`inputs`: (B, I); `targets`: (B, O); how many of each are no padding, (B,)."""
        model = self.model
        visible = None if num_inputs is None else _before(inputs, num_inputs)
        read = model.encoder(input_ids=inputs, attention_mask=visible).last_hidden_state  # (B, I, C)
        before = targets.roll(1, 1)
        before[:, 0] = model.config.decoder_start_token_id
        hidden = model.decoder(
            input_ids=before, encoder_hidden_states=read, encoder_attention_mask=visible, use_cache=False
        ).last_hidden_state  # (B, O, C)
        if model.config.scale_decoder_outputs:
            hidden = hidden * model.model_dim**-0.5
        kept = None if num_targets is None else _before(targets, num_targets).flatten()
        return Asked(hidden.flatten(0, 1), targets.flatten(), kept)


LOSSES: dict[str, type[Loss]] = {"modernbert": MaskedTokenLoss, "t5": SpanLoss}
"""By the type of the model; of all others, the next token's."""


def loss_of(model: Any) -> Loss:
    """What to call for the loss of this model."""
    return LOSSES.get(model.config.model_type, NextTokenLoss)(model)


def _visible(rows: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """What every token may see: all that is no padding. Shape (B, 1, T, T), bool."""
    visible = _before(rows, lengths)
    return visible[:, None, None, :].expand(-1, 1, rows.shape[1], -1)


def _before(rows: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Which tokens of each row are no padding: the shape of `rows`, bool."""
    return torch.arange(rows.shape[1], device=rows.device) < lengths.unsqueeze(1)


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
