from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.evaluate import row_nll, spread

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
    losses = row_nll(Bigrams(), batch)
    assert losses.dtype == torch.float64
    assert losses.tolist() == pytest.approx([plain_nll(row) for row in batch.tolist()], rel=1e-5)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_padding_is_not_predicted(lengths: list[int]) -> None:
    batch = rows(len(lengths), 6)
    losses = row_nll(Bigrams(), batch, torch.tensor(lengths))
    expected = [plain_nll(row[:length]) for row, length in zip(batch.tolist(), lengths, strict=True)]
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)


@given(st.integers(1, 12))
def test_the_batch_size_does_not_matter(batch_size: int) -> None:
    """The original averaged the means of batches, so that the short last batch weighed too much."""
    batch = rows(10, 6)
    parts = torch.cat([row_nll(Bigrams(), part) for part in torch.split(batch, batch_size)])
    assert parts.tolist() == pytest.approx(row_nll(Bigrams(), batch).tolist(), rel=1e-6)


def test_half_precision_logits_are_summed_in_full_precision() -> None:
    model = Bigrams()
    model.table = model.table.bfloat16()
    exact = Bigrams()
    exact.table = model.table.double()
    batch = rows(4, 200)
    assert row_nll(model, batch).tolist() == pytest.approx(row_nll(exact, batch).tolist(), rel=1e-5)


@given(st.integers(0, 200), st.none() | st.integers(1, 300))
def test_rows_are_spread_evenly_without_repetition(num_rows: int, wanted: int | None) -> None:
    chosen = spread(num_rows, wanted)
    assert len(chosen) == min(num_rows, wanted if wanted is not None else num_rows)
    assert chosen == sorted({*chosen})
    assert all(0 <= row < num_rows for row in chosen)
    gaps = {after - before for before, after in pairwise(chosen)}
    assert max(gaps, default=1) - min(gaps, default=1) <= 1
    if chosen:
        assert chosen[0] == 0
        assert num_rows - chosen[-1] in (num_rows // len(chosen), -(-num_rows // len(chosen)))
