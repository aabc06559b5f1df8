import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.draws import key, uniform

seeds = st.integers(0, 2**63)
purposes = st.lists(st.text() | st.integers(), max_size=3)


@given(seeds, purposes, st.integers(1, 64))
def test_a_key_has_at_most_its_bits(seed: int, purpose: list[str | int], num_bits: int) -> None:
    assert 0 <= key(seed, *purpose, num_bits=num_bits) < 2**num_bits


@given(seeds, purposes)
def test_a_key_is_what_torch_takes_as_a_seed(seed: int, purpose: list[str | int]) -> None:
    assert 0 <= key(seed, *purpose) < 2**63


@given(seeds, purposes)
def test_a_uniform_number_is_from_0_up_to_1(seed: int, purpose: list[str | int]) -> None:
    assert 0 <= uniform(seed, *purpose) < 1


def test_draws_differ_by_seed_and_by_every_part_of_the_purpose() -> None:
    purposes = [(), ("a",), ("b",), ("a", 1), ("a", 2), ("a1",), ("a", "1", "x"), (12,), (1, 2)]
    assert len({key(seed, *purpose) for seed in range(10) for purpose in purposes}) == 10 * len(purposes)
    assert len({uniform(seed, *purpose) for seed in range(10) for purpose in purposes}) == 10 * len(purposes)


def test_uniform_numbers_are_spread_evenly() -> None:
    numbers = sorted(uniform(0, "spread", index) for index in range(10_000))
    assert max(abs(number - place / 10_000) for place, number in enumerate(numbers)) < 0.02


def test_a_name_that_is_not_unicode_is_a_purpose_too() -> None:
    assert key(0, "\udcff.py") != key(0, "\udcfe.py")


@pytest.mark.parametrize(
    ("purpose", "num_bits", "expected"),
    [
        ((), 63, 8898586205396736955),
        (("split", "a.py"), 64, 10977351776978241495),
        (("step", 7, 0), 63, 9190770295401968391),
        (("sample",), 53, 340856337209516),
    ],
)
def test_draws_are_the_same_in_every_version(purpose: tuple[str | int, ...], num_bits: int, expected: int) -> None:
    """Splits, samples and the weights of a run depend on them."""
    assert key(1, *purpose, num_bits=num_bits) == expected
