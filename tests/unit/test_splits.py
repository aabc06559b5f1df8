import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.errors import EmptyCorpusError
from codeparrot.splits import validation_units

UNITS = st.lists(st.text(max_size=8), min_size=2, max_size=30, unique=True)
FRACTION = st.floats(0.001, 0.999)


@given(UNITS, st.integers(0, 9), FRACTION)
def test_both_sides_have_a_unit(units: list[str], seed: int, fraction: float) -> None:
    held_out = validation_units(units, seed=seed, fraction=fraction)
    assert held_out
    assert held_out < {*units}


@given(UNITS, st.integers(0, 9), FRACTION)
def test_the_order_and_number_of_mentions_do_not_matter(units: list[str], seed: int, fraction: float) -> None:
    expected = validation_units(units, seed=seed, fraction=fraction)
    assert validation_units([*reversed(units), *units], seed=seed, fraction=fraction) == expected


@given(st.integers(0, 9), st.integers(100, 200), st.integers(0, 200))
def test_a_unit_stays_on_its_side_when_the_corpus_grows(seed: int, before: int, more: int) -> None:
    units = [f"repository-{number}" for number in range(before + more)]
    small = validation_units(units[:before], seed=seed, fraction=0.3)
    assert validation_units(units, seed=seed, fraction=0.3) & {*units[:before]} == small


@given(st.integers(0, 9), st.floats(0.1, 0.9))
def test_about_the_fraction_is_held_out(seed: int, fraction: float) -> None:
    held_out = validation_units(map(str, range(2000)), seed=seed, fraction=fraction)
    assert abs(len(held_out) / 2000 - fraction) < 0.05


def test_another_seed_holds_out_others() -> None:
    units = [str(number) for number in range(100)]
    assert validation_units(units, seed=0, fraction=0.5) != validation_units(units, seed=1, fraction=0.5)


def test_a_chance_that_leaves_a_side_empty_is_corrected() -> None:
    for seed in range(20):
        assert len(validation_units(["a", "b"], seed=seed, fraction=0.001)) == 1
        assert len(validation_units(["a", "b"], seed=seed, fraction=0.999)) == 1


@pytest.mark.parametrize("units", [[], ["a"], ["a", "a"]])
def test_fewer_than_two_units_are_an_error(units: list[str]) -> None:
    with pytest.raises(EmptyCorpusError, match="a validation split of its own needs two"):
        validation_units(units, seed=0, fraction=0.5)
