"""The loss a few tokens at a time is the loss of all at once, and so are its gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from codeparrot import loss
from codeparrot.loss import NextTokenLoss, summed_nll
from codeparrot.model import ModelSettings, build_model, model_config

VOCAB_SIZE, WIDTH = 11, 5


def inputs(num_tokens: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    hidden = torch.randn(num_tokens, WIDTH, generator=generator) * scale
    weight = torch.randn(VOCAB_SIZE, WIDTH, generator=generator)
    targets = torch.randint(VOCAB_SIZE, (num_tokens,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def expected(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy((hidden @ weight.T).double(), targets, reduction="sum")


@given(st.integers(1, 40), st.integers(1, 50), st.sampled_from([1.0, 100.0]))
def test_it_is_the_cross_entropy_of_all_tokens_wherever_the_chunks_end(num: int, chunk: int, scale: float) -> None:
    ours, plain = inputs(num, scale), inputs(num, scale)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(loss.CHUNK_BYTES, "cpu", 4 * VOCAB_SIZE * chunk)
        total = summed_nll(*ours)
        (total * 3).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            assert summed_nll(*ours).item() == total.item()
    wanted = expected(*plain)
    (wanted * 3).backward()  # type: ignore[no-untyped-call]
    assert total.dtype == torch.float64
    assert total.item() == pytest.approx(wanted.item(), rel=1e-5, abs=1e-4)
    for mine, theirs in zip(ours[:2], plain[:2], strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_huge_logits_do_not_overflow() -> None:
    hidden, weight, targets = inputs(4, 1e6)
    total = summed_nll(hidden, weight, targets)
    total.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(total)
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


def test_under_autocast_products_are_of_half_precision_and_sums_are_not() -> None:
    ours, plain = inputs(30), inputs(30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = summed_nll(*ours)
    total.backward()  # type: ignore[no-untyped-call]
    expected(*plain).backward()  # type: ignore[no-untyped-call]
    assert total.dtype == torch.float64
    assert total.item() == pytest.approx(expected(*plain).item(), rel=1e-2)
    for mine, theirs in zip(ours[:2], plain[:2], strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert mine.grad.dtype == torch.float32
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0.1, atol=0.1)


def test_padding_changes_neither_loss_nor_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loss.CHUNK_BYTES, "cpu", 4 * 64 * 5)
    config = model_config(ModelSettings(n_layer=1, n_head=2, n_embd=16), vocab_size=64, max_seq_len=12, eos_token_id=0)
    ours, theirs = build_model(config, 3), build_model(config, 3)
    rows = torch.randint(64, (3, 12), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([12, 7, 1])
    total = NextTokenLoss(ours)(rows, lengths)
    total.backward()
    alone = [NextTokenLoss(theirs)(row[None, :length]) for row, length in zip(rows, lengths.tolist(), strict=True)]
    torch.stack(alone).sum().backward()  # type: ignore[no-untyped-call]
    assert total.item() == pytest.approx(sum(part.item() for part in alone), rel=1e-6)
    with torch.no_grad():
        assert NextTokenLoss(ours)(rows, lengths).item() == total.item()
        assert NextTokenLoss(ours)(rows, torch.full((3,), 12)).item() == NextTokenLoss(ours)(rows).item()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_around_a_model_it_is_the_loss_that_transformers_computes() -> None:
    config = model_config(ModelSettings(n_layer=2, n_head=2, n_embd=16), vocab_size=64, max_seq_len=12, eos_token_id=0)
    ours, theirs = build_model(config, 3), build_model(config, 3)
    rows = torch.randint(64, (3, 12), generator=torch.Generator().manual_seed(1))
    mean = theirs(input_ids=rows, labels=rows).loss
    mean.backward()
    total = NextTokenLoss(ours)(rows)
    (total / 33).backward()
    assert total.item() / 33 == pytest.approx(mean.item(), rel=1e-6)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)
