"""Laws that were planted are found again, and points that have none are refused."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from codeparrot.errors import ScalingError
from codeparrot.scaling import End, Law, Point, end_of_extrapolation, fit

PLANTED = Law(0.9, 120.0, 0.34, 300.0, 0.37)
SIZES, TOKENS = (1e6, 2e6, 4e6, 8e6), (1e7, 3e7, 9e7)


def grid(law: Law, noise: float = 0.0, sizes: Sequence[float] = SIZES, seed: int = 0) -> list[Point]:
    random = np.random.default_rng(seed)
    return [
        Point(size, tokens, law.loss(size, tokens) * math.exp(noise * random.standard_normal()))
        for size in sizes
        for tokens in TOKENS
    ]


def constants(law: Law) -> tuple[float, ...]:
    return (law.irreducible, law.size_factor, law.size_exponent, law.data_factor, law.data_exponent)


@pytest.mark.parametrize("law", [PLANTED, Law(1.69, 406.4, 0.34, 410.7, 0.28), Law(0.2, 9.0, 0.15, 400.0, 0.4)])
def test_without_noise_the_planted_law_is_found(law: Law) -> None:
    found = fit(grid(law), seed=1, num_samples=4)
    assert constants(found.law) == pytest.approx(constants(law), rel=0.01)
    assert found.law.loss(1e9, 1e10) == pytest.approx(law.loss(1e9, 1e10), rel=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_with_noise_the_planted_exponents_lie_in_their_intervals(seed: int) -> None:
    found = fit(grid(PLANTED, 0.003, seed=seed), seed=1)
    for name in ("size_exponent", "data_exponent", "irreducible"):
        interval = found.of(lambda law, name=name: float(getattr(law, name))).interval  # type: ignore[misc]
        assert interval.low < getattr(PLANTED, name) < interval.high, name


def test_a_larger_model_is_predicted() -> None:
    found = fit(grid(PLANTED, 0.003), seed=1)
    held_out = PLANTED.loss(32e6, 9e7)
    estimate = found.predicted(32e6, 9e7)
    assert estimate.value == pytest.approx(held_out, rel=0.02)
    assert estimate.interval.low < held_out < estimate.interval.high


def test_the_interval_of_a_run_is_wider_than_that_of_the_law() -> None:
    found = fit(grid(PLANTED, 0.003), seed=1)
    run, law = found.predicted(4e6, 3e7).interval, found.of(lambda law: law.loss(4e6, 3e7)).interval
    assert run.high - run.low > law.high - law.low


def test_one_outlier_does_not_move_the_law() -> None:
    points = grid(PLANTED)
    points[5] = replace(points[5], loss=points[5].loss * 1.1)
    found = fit(points, seed=1, num_samples=2).law
    for size, tokens in ((1e6, 1e7), (8e6, 9e7), (32e6, 9e7)):
        assert found.loss(size, tokens) == pytest.approx(PLANTED.loss(size, tokens), rel=0.005)


def test_the_same_points_give_the_same_fit() -> None:
    assert fit(grid(PLANTED, 0.003), seed=1, num_samples=8) == fit(grid(PLANTED, 0.003), seed=1, num_samples=8)
    assert fit(grid(PLANTED, 0.003), 1, 8).samples != fit(grid(PLANTED, 0.003), 2, 8).samples


def test_no_other_split_of_the_compute_is_better_than_the_optimum() -> None:
    flops = 3e16
    size, tokens = PLANTED.optimum(flops)
    assert 6 * size * tokens == pytest.approx(flops)
    others = [PLANTED.loss(size * factor, tokens / factor) for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2)]
    assert PLANTED.lowest_loss(flops) < min(others)


def test_a_law_is_trusted_as_far_as_it_was_seen_to_hold() -> None:
    found = fit(grid(PLANTED), seed=1, num_samples=20)
    assert end_of_extrapolation(found, 1e15, 1, 0.02).flops == 1e15
    assert end_of_extrapolation(found, 1e15, 8, 0.02) == End(8e15, "as far as it was seen to hold")


def test_a_law_is_not_trusted_where_its_interval_is_too_wide() -> None:
    found = fit(grid(PLANTED, 0.01), seed=1)
    wide, narrow = (end_of_extrapolation(found, 1e15, 1e12, tolerance) for tolerance in (0.1, 0.05))
    assert 1e15 <= narrow.flops < wide.flops < 1e27
    assert narrow.reason == "beyond, its interval is wider than 5% to either side"


def refusal(points: list[Point]) -> str:
    with pytest.raises(ScalingError) as caught:
        fit(points, seed=1, num_samples=2)
    return str(caught.value)


def test_points_that_determine_no_law_are_refused() -> None:
    points = grid(PLANTED)
    assert refusal([]) == "a law needs 3 different sizes or more, got 0"
    assert refusal(points[:6]) == "a law needs 3 different sizes or more, got 2"
    assert "3 different token counts or more, got 1" in refusal([point for point in points if point.tokens == 1e7])
    assert "needs 6 points or more, got 3" in refusal([points[0], points[4], points[8]])
    assert "finite and above 0" in refusal([*points, replace(points[0], loss=math.nan)])
    assert "finite and above 0" in refusal([*points, replace(points[0], loss=-1.0)])


def test_a_loss_that_does_not_fall_has_no_law() -> None:
    flat = Law(1.0, 0.0, 0.3, 300.0, 0.3)
    assert refusal(grid(flat)) == "the loss does not fall with larger models: no law describes these points"
    assert "does not fall with" in refusal([replace(point, loss=2.0) for point in grid(PLANTED)])
    rising = [replace(point, loss=1 + 1e-8 * point.tokens) for point in grid(PLANTED)]
    assert "does not fall with" in refusal(rising)
