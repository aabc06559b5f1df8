"""The next token: the right distribution, from numbers that depend on nothing but their key."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.sampling import MARGIN, NUM_CANDIDATES, Draw, choose, clocks, penalised

PROBABILITIES = torch.tensor([0.4, 0.3, 0.2, 0.06, 0.04])
NUM_DRAWS = 40_000


def shares(top_p: float, temperature: float = 1.0) -> torch.Tensor:
    """How often each of the five tokens is chosen."""
    draws = [Draw(seed, seed % 7, temperature, top_p) for seed in range(NUM_DRAWS)]
    tokens = choose(PROBABILITIES.log().expand(NUM_DRAWS, 5), draws).tokens
    return torch.bincount(tokens, minlength=5) / NUM_DRAWS


def close_to(expected: torch.Tensor) -> torch.Tensor:
    """Five standard deviations."""
    return 5 * (expected * (1 - expected) / NUM_DRAWS).sqrt()


@pytest.mark.parametrize(
    ("top_p", "temperature", "expected"),
    [
        (1.0, 1.0, PROBABILITIES),
        (0.89, 1.0, torch.tensor([0.4, 0.3, 0.2, 0, 0]) / 0.9),
        (0.35, 1.0, torch.tensor([1.0, 0, 0, 0, 0])),
        (1.0, 2.0, PROBABILITIES.sqrt() / PROBABILITIES.sqrt().sum()),
    ],
)
def test_tokens_are_drawn_as_their_probabilities_say(top_p: float, temperature: float, expected: torch.Tensor) -> None:
    assert ((shares(top_p, temperature) - expected).abs() <= close_to(expected)).all()


def test_clocks_are_exponential_and_those_of_neighbours_are_unrelated() -> None:
    times = clocks(torch.arange(400)[None], [Draw(seed, position, 1, 1) for seed in range(20) for position in range(5)])
    assert times.mean().item() == pytest.approx(1, abs=5 / math.sqrt(times.numel()))
    assert (times > 1).float().mean().item() == pytest.approx(math.exp(-1), abs=5 / math.sqrt(times.numel()))
    for other in (times.roll(1, 0), times.roll(1, 1), times.roll(5, 0)):
        assert torch.corrcoef(torch.stack([times.flatten(), other.flatten()]))[0, 1].abs() < 5 / math.sqrt(
            times.numel()
        )


@given(st.data())
def test_a_choice_depends_on_its_own_row_alone(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 6))
    logits = torch.randn(count, 700, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))) * 3
    kinds = st.sampled_from([(0.0, 1.0), (0.5, 0.9), (1.0, 0.99), (1.0, 1.0), (2.0, 0.999)])
    draws = [Draw(seed, seed, *data.draw(kinds)) for seed in range(count)]
    together = choose(logits, draws)
    for row, draw in enumerate(draws):
        alone = choose(logits[row : row + 1], [draw])
        assert (alone.tokens[0], alone.unsure[0]) == (together.tokens[row], together.unsure[row])


@given(st.integers(0, 2**63), st.integers(0, 100))
def test_rounding_changes_no_choice_that_is_sure(seed: int, number: int) -> None:
    """Logits in coarse steps, so that many are as likely as others, and stand at the border of the nucleus."""
    logits = torch.randn(40, 50, generator=torch.Generator().manual_seed(number)).clamp(-4, 4)
    logits = (logits * 4).round() / 4
    draws = [Draw(seed + row, row, (0.0, 0.7, 1.0)[row % 3], (0.5, 0.9, 1.0)[row % 2]) for row in range(40)]
    first = choose(logits, draws)
    moved = logits + torch.randn(logits.shape).sign() * logits.abs().amax(1, keepdim=True) * MARGIN * 0.4
    second = choose(moved, draws)
    assert (first.unsure | second.unsure | (first.tokens == second.tokens)).all()
    assert not first.unsure.all()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1e-46), (1e-4, 1e-46), (1e-40, 1.0), (1e-40, 0.9)])
def test_settings_too_small_for_fp32_take_the_likeliest(temperature: float, top_p: float) -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, -9.0]])
    assert choose(logits, [Draw(1, 0, temperature, top_p)]).tokens.tolist() == [1]


def test_a_nucleus_wider_than_what_is_looked_at_first_is_sorted_whole() -> None:
    logits = torch.zeros(2000, 3 * NUM_CANDIDATES)
    tokens = choose(logits, [Draw(seed, 0, 1.0, 0.999) for seed in range(2000)]).tokens
    assert len(set(tokens.tolist())) > 1.5 * NUM_CANDIDATES


def test_a_token_seen_before_is_less_likely_whatever_its_sign() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert penalised(logits, seen, torch.tensor([[2.0]])).tolist() == [[1.0, -4.0, 2.0, -2.0]]
