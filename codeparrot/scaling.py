"""How the loss falls with the size of a model and the tokens it sees, and what that says of larger ones.

The law is L(N, D) = E + A / N^alpha + B / D^beta of N parameters and D tokens (Hoffmann et al., "Training
Compute-Optimal Large Language Models", 2022, eq. 2), fitted as in their approach 3: the Huber loss of the logarithms'
differences, with delta 1e-3, from a grid of starts. Instead of L-BFGS, whose stopping has led to a wrong law there
(Besiroglu et al., "Chinchilla Scaling: A Replication Attempt", 2024), it is Levenberg and Marquardt's method on the
weights that the Huber loss gives to residuals, for all starts at once.

Compute is 6 N D, theirs too; attention's own products come on top. Intervals are those of residuals drawn anew (Efron
and Tibshirani, "An Introduction to the Bootstrap", 1993, section 9.4): a grid has too few points to leave some out.

A law says nothing of where it ends. Two bounds are known: how far it was seen to reach, by predicting a model that was
left out of the fit, and where its interval is too wide to be of use. Extrapolation ends at the nearer of the two.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from codeparrot.bootstrap import CONFIDENCE, Interval, percentile
from codeparrot.draws import key
from codeparrot.errors import ScalingError

Float64 = npt.NDArray[np.float64]

NUM_CONSTANTS = 5
MIN_LEVELS = 3
"""Different sizes, and different token counts: two powers of one variable and a constant need as many."""
DELTA = 1e-3
MIN_EXPONENT, MAX_EXPONENT = 0.01, 3.0
NUM_ITERATIONS = 300
NUM_SAMPLES = 500
STEP = 10**0.05
"""By which compute grows while the end of extrapolation is looked for."""


@dataclass(frozen=True)
class Point:
    """A model that was trained."""

    num_parameters: float
    tokens: float
    loss: float
    """Above 0: nats per token, or bits per byte."""

    @property
    def flops(self) -> float:
        return 6 * self.num_parameters * self.tokens


@dataclass(frozen=True)
class Law:
    """E + A / N^alpha + B / D^beta."""

    irreducible: float
    """E: of the text itself."""
    size_factor: float
    """A"""
    size_exponent: float
    """alpha"""
    data_factor: float
    """B"""
    data_exponent: float
    """beta"""

    def loss(self, num_parameters: float, tokens: float) -> float:
        """Of a model of this size after so many tokens."""
        by_size = self.size_factor * num_parameters**-self.size_exponent
        return float(self.irreducible + by_size + self.data_factor * tokens**-self.data_exponent)

    def optimum(self, flops: float) -> tuple[float, float]:
        """(parameters, tokens) with the lowest loss for this compute (Hoffmann et al., eq. 4)."""
        alpha, beta = self.size_exponent, self.data_exponent
        balance = math.log(alpha * self.size_factor) - math.log(beta * self.data_factor)
        ideal = (balance + beta * math.log(flops / 6)) / (alpha + beta)
        num_parameters = math.exp(min(max(ideal, 0.0), math.log(flops / 6)))  # one of each at least
        return num_parameters, flops / 6 / num_parameters

    def lowest_loss(self, flops: float) -> float:
        """Of the best model for this compute."""
        return self.loss(*self.optimum(flops))


@dataclass(frozen=True)
class Estimate:
    """A figure and how far it would move."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Fit:
    """A law, and those that other noise would have given."""

    law: Law
    samples: tuple[Law, ...]
    noise: tuple[float, ...]
    """Residuals of the points, as logarithms, widened for the constants that were fitted to them."""
    num_points: int
    seed: int

    def of(self, figure: Callable[[Law], float]) -> Estimate:
        """A figure of the law, with its interval."""
        return Estimate(figure(self.law), self._interval([figure(law) for law in self.samples]))

    def predicted(self, num_parameters: float, tokens: float) -> Estimate:
        """The loss of a model, with the interval in which a single run would lie."""
        draws = _generator(self.seed, "prediction", len(self.samples)).choice(self.noise, len(self.samples))
        losses = [
            law.loss(num_parameters, tokens) * math.exp(draw) for law, draw in zip(self.samples, draws, strict=True)
        ]
        return Estimate(self.law.loss(num_parameters, tokens), self._interval(losses))

    def _interval(self, values: Sequence[float]) -> Interval:
        return percentile(np.asarray(values), CONFIDENCE, self.num_points)


@dataclass(frozen=True)
class End:
    """Where extrapolation ends."""

    flops: float
    reason: str


def fit(points: Sequence[Point], seed: int, num_samples: int = NUM_SAMPLES) -> Fit:
    """The law of these points. Raises ScalingError if they do not determine one."""
    _require_enough(points)
    sizes, tokens, losses = (
        np.log([[getattr(point, name) for point in points]]) for name in ("num_parameters", "tokens", "loss")
    )
    centers = float(sizes.mean()), float(tokens.mean())
    x, y = sizes - centers[0], tokens - centers[1]
    found = _best(_solve(_starts(float(losses.min())), x, y, losses), x, y, losses)
    _require_falling(found, x, y, losses)
    residuals = losses - _predict(found, x, y)[0]
    noise = (residuals - residuals.mean())[0] * math.sqrt(len(points) / (len(points) - NUM_CONSTANTS))
    drawn = _generator(seed, "scaling", len(points)).choice(noise, (num_samples, len(points)))
    again = _solve(np.repeat(found, num_samples, axis=0), x, y, losses - residuals + drawn)
    laws = tuple(_law(row, *centers) for row in again)
    return Fit(_law(found[0], *centers), laws, tuple(noise.tolist()), len(points), seed)


def end_of_extrapolation(found: Fit, largest: float, reach: float, tolerance: float) -> End:
    """The compute beyond which nothing is to be expected of a law.

    `largest`: compute of the largest run that it was fitted to. `reach`: as many times this was it seen to hold, 1 if
    it was not tried. `tolerance`: half the width of an interval that is still of use, as a share of the loss.
    """
    flops = largest
    while flops < largest * reach:
        further = min(flops * STEP, largest * reach)
        estimate = found.of(lambda law, flops=further: law.lowest_loss(flops))  # type: ignore[misc]
        if (estimate.interval.high - estimate.interval.low) / 2 > tolerance * estimate.value:
            return End(flops, f"beyond, its interval is wider than {tolerance:.0%} to either side")
        flops = further
    return End(
        flops, "as far as it was seen to hold" if reach > 1 else "the largest run; it was not seen to hold beyond"
    )


def _require_enough(points: Sequence[Point]) -> None:
    values = [value for point in points for value in (point.num_parameters, point.tokens, point.loss)]
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise ScalingError("a law needs sizes, token counts and losses that are finite and above 0")
    for name, what in (("num_parameters", "sizes"), ("tokens", "token counts")):
        levels = len({getattr(point, name) for point in points})
        if levels < MIN_LEVELS:
            raise ScalingError(f"a law needs {MIN_LEVELS} different {what} or more, got {levels}")
    if len(points) <= NUM_CONSTANTS:
        raise ScalingError(
            f"a law of {NUM_CONSTANTS} constants needs {NUM_CONSTANTS + 1} points or more, got {len(points)}"
        )


def _require_falling(constants: Float64, x: Float64, y: Float64, losses: Float64) -> None:
    """Raise ScalingError unless both powers tell points apart: the loss falls by more than the fit resolves."""
    _, a, b, log_alpha, log_beta = constants[0]
    powers = np.exp(a - np.exp(log_alpha) * x), np.exp(b - np.exp(log_beta) * y)
    for power, what in zip(powers, ("larger models", "more tokens"), strict=True):
        if np.ptp(power) < DELTA * np.exp(losses.min()):
            raise ScalingError(f"the loss does not fall with {what}: no law describes these points")


def _starts(lowest: float) -> Float64:
    """Constants to begin from, (starts, 5): ln E, ln A and ln B at the middle of the points, ln alpha, ln beta."""
    levels = [lowest + math.log(share) for share in (0.1, 0.5, 0.9)]
    parts = [lowest + math.log(share) for share in (0.05, 0.5)]
    exponents = [math.log(exponent) for exponent in (0.1, 0.3, 0.6, 1.2)]
    return np.array(list(itertools.product(levels, parts, parts, exponents, exponents)))


def _predict(constants: Float64, x: Float64, y: Float64) -> tuple[Float64, Float64]:
    """(ln L, its derivatives by the constants): shapes (B, n) and (B, n, 5). `constants`: (B, 5); x, y: (1, n)."""
    e, a, b, log_alpha, log_beta = (column[:, None] for column in constants.T)
    alpha, beta = np.exp(log_alpha), np.exp(log_beta)
    terms = np.stack(np.broadcast_arrays(e + 0 * x, a - alpha * x, b - beta * y))
    highest = terms.max(axis=0)
    weights = np.exp(terms - highest)
    total = weights.sum(axis=0)
    w = weights / total
    slopes = np.stack([w[0], w[1], w[2], -w[1] * alpha * x, -w[2] * beta * y], axis=-1)
    return highest + np.log(total), slopes


def _huber(residuals: Float64) -> Float64:
    """Summed over points: shape (B,)."""
    size = np.abs(residuals)
    value: Float64 = np.where(size <= DELTA, 0.5 * residuals**2, DELTA * (size - 0.5 * DELTA)).sum(axis=-1)
    return value


def _solve(constants: Float64, x: Float64, y: Float64, wanted: Float64) -> Float64:
    """Lower the Huber loss of each row of constants, (B, 5). `wanted`: ln L, (1 or B, n)."""
    constants = constants.copy()
    damping = np.full(len(constants), 1e-2)
    predicted, slopes = _predict(constants, x, y)
    residuals = predicted - wanted
    cost = _huber(residuals)
    for _ in range(NUM_ITERATIONS):
        weights = np.minimum(1.0, DELTA / np.maximum(np.abs(residuals), 1e-300))
        normal = np.einsum("bni,bn,bnj->bij", slopes, weights, slopes)
        gradient = np.einsum("bni,bn,bn->bi", slopes, weights, residuals)
        diagonal = np.einsum("bii->bi", normal)
        diagonal += damping[:, None] * (diagonal + 1e-12)
        moved = constants - np.linalg.solve(normal, gradient[..., None])[..., 0]
        moved[:, 3:] = np.clip(moved[:, 3:], math.log(MIN_EXPONENT), math.log(MAX_EXPONENT))
        moved[:, :3] = np.clip(moved[:, :3], -50, 50)
        predicted, new_slopes = _predict(moved, x, y)
        new_residuals = predicted - wanted
        new_cost = _huber(new_residuals)
        better = new_cost < cost
        constants[better], slopes[better], cost[better] = moved[better], new_slopes[better], new_cost[better]
        residuals = np.where(better[:, None], new_residuals, residuals)
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-12, 1e12)
    return constants


def _best(constants: Float64, x: Float64, y: Float64, wanted: Float64) -> Float64:
    """The row with the lowest cost, the first of equal ones: shape (1, 5)."""
    return constants[[int(np.argmin(_huber(_predict(constants, x, y)[0] - wanted)))]]


def _law(constants: Float64, size_center: float, tokens_center: float) -> Law:
    e, a, b, log_alpha, log_beta = constants.tolist()
    alpha, beta = math.exp(log_alpha), math.exp(log_beta)
    return Law(math.exp(e), math.exp(a + alpha * size_center), alpha, math.exp(b + beta * tokens_center), beta)


def _generator(seed: int, purpose: str, number: int) -> Any:
    return np.random.Generator(np.random.PCG64(key(seed, purpose, number)))
