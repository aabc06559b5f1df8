import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.bootstrap import CHUNK, difference_interval, ratio_interval, resampled

amounts = st.lists(st.tuples(st.floats(0, 1e3), st.floats(0.1, 1e3)), min_size=2, max_size=30)


@given(amounts)
def test_an_interval_lies_within_the_extremes_of_its_units_and_around_the_figure(
    units: list[tuple[float, float]],
) -> None:
    above, below = np.array(units).T
    found = ratio_interval(above, below, seed=1)
    assert found is not None
    assert found.num_units == len(units)
    ratios = above / below
    assert ratios.min() - 1e-9 <= found.low <= found.high <= ratios.max() + 1e-9


def test_of_one_unit_nothing_can_be_said() -> None:
    assert ratio_interval([3.0], [4.0], seed=1) is None
    assert ratio_interval([], [], seed=1) is None
    assert difference_interval([3.0], [2.0], [4.0], seed=1) is None


def test_equal_units_leave_no_doubt() -> None:
    found = ratio_interval([2.0] * 9, [4.0] * 9, seed=1)
    assert found is not None
    assert found.low == found.high == 0.5


def test_two_units_are_drawn_as_the_binomial_distribution_says() -> None:
    """Of 0/1 and 1/1 the resampled ratios are 0, 1/2 and 1 with probabilities 1/4, 1/2 and 1/4."""
    above, below = resampled(np.array([[0.0, 1.0], [1.0, 1.0]]), seed=3, num_samples=20_000)
    assert below.tolist() == [2.0] * 20_000
    shares = np.bincount(above.astype(int), minlength=3) / 20_000
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.02)


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    draws = np.random.Generator(np.random.PCG64(5))
    covered = 0
    for trial in range(200):
        found = ratio_interval(draws.normal(1.0, 0.5, 40), np.ones(40), seed=trial)
        assert found is not None
        covered += found.low <= 1.0 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_models_are_compared_on_the_same_draws() -> None:
    """One that is always a little better is better for certain, however much its documents differ."""
    below = np.ones(50)
    first = np.linspace(1, 100, 50)
    found = difference_interval(first, first - 0.1, below, seed=2)
    assert found is not None
    assert found.low == pytest.approx(0.1)
    assert found.high == pytest.approx(0.1)
    assert found.real
    alone = ratio_interval(first, below, seed=2)
    assert alone is not None
    assert alone.high - alone.low > 10


def test_a_difference_without_a_sign_is_not_real() -> None:
    found = difference_interval([1.0, 2.0] * 20, [2.0, 1.0] * 20, np.ones(40), seed=2)
    assert found is not None
    assert found.low < 0 < found.high
    assert not found.real


def test_the_same_seed_draws_the_same_also_when_not_all_draws_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(12.0).reshape(2, 6)
    whole = resampled(values, seed=4, num_samples=50)
    assert CHUNK > 50 * 6
    monkeypatch.setattr("codeparrot.bootstrap.CHUNK", 40)
    assert (resampled(values, seed=4, num_samples=50) == whole).all()
    assert (resampled(values, seed=5, num_samples=50) != whole).any()
