"""How well a model predicts text it has not seen.

Every token is predicted once and weighs the same, whatever the batch size or the number of workers; the original
averaged the means of batches, which gives the short last batch too much weight. What is predicted are packed rows, as
in training, or whole texts, which any model can take in by its own tokens: then bits per byte compare them.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import PositiveInt

from codeparrot.breakdown import Costs, by_position
from codeparrot.objectives import Masked, Spans
from codeparrot.settings import Resources, Settings
from codeparrot.tasks import TaskSettings
from codeparrot.vocabulary import Vocabulary

if TYPE_CHECKING:
    import torch
    import transformers
    from torch import nn


LOGIT_BYTES = 256 * 2**20
"""Of logits that are held at once, in fp32."""


class EvaluateSettings(Settings):
    """How the validation split is evaluated."""

    batch_size: PositiveInt = 16
    """Rows in one forward pass."""
    num_workers: PositiveInt = 2
    """Ray tasks that evaluate side by side."""
    max_rows: PositiveInt | None = None
    """Evaluate this many rows, evenly spread; null: all."""
    tasks: TaskSettings | None = TaskSettings()
    """Lines and bodies of functions to be written; null: none."""
    resources_per_worker: Resources = {"CPU": 1}


def token_nll(model: "nn.Module", rows: "torch.Tensor", positions: "torch.Tensor | None" = None) -> "torch.Tensor":
    """Negative log-likelihood of each row's tokens but the first, in nats: shape (B, T - 1), float32.

    `rows`: token ids of shape (B, T); `positions`: of a model of documents alone, as `loss.NextTokenLoss` takes them.
    """
    import torch
    import torch.nn.functional as F

    losses = []
    for row, logits in _rows_and_logits(model, rows, positions):
        losses.append(F.cross_entropy(logits[:-1].float(), row[1:], reduction="none"))
    return torch.stack(losses)


def asked_costs(
    model: "transformers.PreTrainedModel",
    objective: Masked | Spans,
    rows: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64] | None,
    seed: int,
    positions: Sequence[int],
    token_bytes: npt.NDArray[np.int64],
) -> Costs:
    """What is asked of these rows has cost, each at its place: arrays of shape (B, T).

    Not of all text, as a causal model's: the bytes are those of the tokens that are asked.
    """
    import torch

    from codeparrot.loss import loss_of

    placed = objective.placed(rows, lengths, seed, positions)
    batch = (torch.from_numpy(array).to(model.device) for array in placed.batch)
    nll = loss_of(model).token_nll(*batch).double().cpu().numpy().reshape(placed.places.shape)
    at = np.arange(len(rows))[:, None], placed.places
    costs = Costs(np.zeros(rows.shape), np.zeros(rows.shape, np.int64), np.zeros(rows.shape, np.int64))
    np.add.at(costs.nll, at, nll * placed.kept)
    np.add.at(costs.num_tokens, at, placed.kept)
    np.add.at(costs.num_bytes, at, token_bytes[placed.targets] * placed.kept)
    return costs


def _rows_and_logits(
    model: "nn.Module", rows: "torch.Tensor", positions: "torch.Tensor | None"
) -> "Iterator[tuple[torch.Tensor, torch.Tensor]]":
    """Each row, (T,), with its logits, (T, V); those of as many rows as have room are computed at once."""
    size = 1
    start = 0
    while start < len(rows):
        part = rows[start : start + size]
        where = {} if positions is None else {"position_ids": positions[start : start + size], "use_cache": False}
        logits = model(input_ids=part, **where).logits  # (B, T, V)
        yield from zip(part, logits, strict=True)
        start += len(part)
        size = max(1, LOGIT_BYTES // (4 * logits[0].numel()))


def sequence_nll(
    model: "nn.Module", sequences: Sequence[Sequence[int]], context: int, batch_size: int
) -> list[npt.NDArray[Any]]:
    """Negative log-likelihood of each sequence's tokens but the first, in nats, however long it is: float32.

    `context`: tokens that the model can see. Each token is predicted once (`windows`).
    """
    import torch

    device = next((parameter.device for parameter in model.parameters()), None)
    found = [np.zeros(max(0, len(sequence) - 1), np.float32) for sequence in sequences]
    jobs = [(index, *each) for index, sequence in enumerate(sequences) for each in windows(len(sequence), context)]
    jobs.sort(key=lambda job: job[3] - job[1], reverse=True)  # of one length side by side: little padding
    for first in range(0, len(jobs), batch_size):
        batch = jobs[first : first + batch_size]
        rows = torch.zeros((len(batch), batch[0][3] - batch[0][1]), dtype=torch.long)
        for row, (index, start, _, stop) in zip(rows, batch, strict=True):
            row[: stop - start] = torch.tensor(sequences[index][start:stop])
        losses = token_nll(model, rows.to(device)).cpu().numpy()  # what stands behind a token does not act on it
        for losses_of_row, (index, start, new, stop) in zip(losses, batch, strict=True):
            found[index][new - 1 : stop - 1] = losses_of_row[new - start - 1 : stop - start - 1]
    return found


def text_costs(
    model: "transformers.PreTrainedModel", vocabulary: Vocabulary, texts: Sequence[str], batch_size: int
) -> tuple[Costs, Costs]:
    """(by text, by position) of whole texts, in the model's own tokens.

    The first token of a text is predicted after the one with which documents begin; of a model that has no such token
    it counts as known. What a single token stands for is not known, so positions have no bytes.
    """
    begin = min(vocabulary.eos_ids, default=None) if vocabulary.tokenizer.bos_token_id is None else None
    sequences = [[*([] if begin is None else [begin]), *vocabulary.encode(text)] for text in texts]
    losses = sequence_nll(model, sequences, context_of(model), batch_size)
    one_by_one = np.concatenate([np.empty(0, np.float32), *losses]).astype(np.float64)
    places = np.concatenate([np.empty(0, np.int64), *(np.arange(1, len(each) + 1) for each in losses)])
    ones = np.ones(len(one_by_one), np.int64)
    costs = Costs(
        np.array([math.fsum(each.tolist()) for each in losses]),
        np.array([len(each) for each in losses], np.int64),
        np.array([len(text.encode()) for text in texts], np.int64),
    )
    return costs, by_position(Costs(one_by_one, ones, 0 * ones), places)


def context_of(model: "transformers.PreTrainedModel") -> int:
    """Tokens that a model can see."""
    return int(model.config.get_text_config().max_position_embeddings)


def windows(length: int, context: int) -> Iterator[tuple[int, int, int]]:
    """(start, first new token, stop) of the pieces of a sequence that a model reads at once.

    After the first window each one shows half a context of what was predicted before.
    """
    new = 1
    while new < length:
        start = max(0, new - context // 2) if new > 1 else 0
        stop = min(length, start + context)
        yield start, new, stop
        new = stop
