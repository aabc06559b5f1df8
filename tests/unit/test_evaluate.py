from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.evaluate import sequence_nll, token_nll, windows

VOCAB_SIZE = 7


class Bigrams(torch.nn.Module):
    """A model whose prediction depends on the last token alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.randn(VOCAB_SIZE, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])


def rows(num_rows: int, length: int) -> torch.Tensor:
    return torch.randint(VOCAB_SIZE, (num_rows, length), generator=torch.Generator().manual_seed(num_rows))


def plain_nll(row: list[int]) -> float:
    log_probabilities = Bigrams().table.double().log_softmax(dim=1)
    return -sum(float(log_probabilities[before, after]) for before, after in pairwise(row))


@given(st.integers(1, 5), st.integers(2, 9))
def test_the_loss_of_a_row_is_that_of_its_tokens_but_the_first(num_rows: int, length: int) -> None:
    batch = rows(num_rows, length)
    losses = token_nll(Bigrams(), batch)
    assert losses.shape == (num_rows, length - 1)
    assert losses.sum(dim=1).tolist() == pytest.approx([plain_nll(row) for row in batch.tolist()], rel=1e-5)


@given(st.integers(1, 12))
def test_the_batch_size_does_not_matter(batch_size: int) -> None:
    """The original averaged the means of batches, so that the short last batch weighed too much."""
    batch = rows(10, 6)
    parts = torch.cat([token_nll(Bigrams(), part) for part in torch.split(batch, batch_size)])
    assert parts.flatten().tolist() == pytest.approx(token_nll(Bigrams(), batch).flatten().tolist(), rel=1e-6)


def test_of_half_precision_logits_the_loss_is_taken_in_full_precision() -> None:
    model = Bigrams()
    model.table = model.table.bfloat16()
    exact = Bigrams()
    exact.table = model.table.double()
    batch = rows(4, 200)
    found, true = token_nll(model, batch), token_nll(exact, batch)
    assert found.dtype == torch.float32
    assert found.flatten().tolist() == pytest.approx(true.flatten().tolist(), rel=1e-5, abs=1e-6)


class Counting(torch.nn.Module):
    """A model that knows how many tokens it sees: the loss tells what stood before a token."""

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        before = torch.arange(1, input_ids.shape[1] + 1, dtype=torch.float32)
        logits = torch.zeros(*input_ids.shape, VOCAB_SIZE)
        logits[:, :, 0] = -before  # the others are equally likely
        return SimpleNamespace(logits=logits)


@given(st.lists(st.integers(0, 40), max_size=6), st.integers(2, 9), st.integers(1, 5))
def test_every_token_of_a_long_text_is_predicted_once_with_half_a_context_before_it(
    lengths: list[int], context: int, batch_size: int
) -> None:
    found = sequence_nll(Counting(), [[0] * length for length in lengths], context, batch_size)
    for length, losses in zip(lengths, found, strict=True):
        assert len(losses) == max(0, length - 1)
        # -log softmax of the first class grows with the tokens before, so it tells their number.
        seen = [next(n for n in range(1, context + 1) if abs(loss - cost(n)) < 1e-3) for loss in losses.tolist()]
        for index, number in enumerate(seen):
            assert number == index + 1 if index < context - 1 else context // 2 <= number < context


def cost(before: int) -> float:
    logits = torch.zeros(VOCAB_SIZE)
    logits[0] = -float(before)
    return -float(logits.log_softmax(0)[0])


@given(st.integers(0, 60), st.integers(2, 16))
def test_windows_cover_a_sequence_and_are_no_longer_than_the_context(length: int, context: int) -> None:
    found = list(windows(length, context))
    assert [token for start, new, stop in found for token in range(new, stop)] == list(range(1, length))
    assert all(0 <= start < new < stop and stop - start <= context for start, new, stop in found)
