"""How far a figure would move with other repositories or documents: percentile bootstrap (Efron 1979).

What is drawn anew are whole units, since tokens of one repository tell of each other. A figure is a ratio of sums (nats
to tokens, bits to bytes), so a large unit weighs as much as it does in the figure itself. The draws depend on the seed
and the number of units alone, and two models are compared on the same draws: what is hard for both cancels out.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from codeparrot.draws import key

Float64 = npt.NDArray[np.float64]

NUM_SAMPLES = 2000
CONFIDENCE = 0.95
CHUNK = 1 << 22
"""Draws that are held at once."""


@dataclass(frozen=True)
class Interval:
    """Between which bounds a figure lies, with this confidence."""

    low: float
    high: float
    confidence: float
    num_units: int

    @property
    def real(self) -> bool:
        """Of a difference: whether it has a sign."""
        return self.low > 0 or self.high < 0


def ratio_interval(
    above: npt.ArrayLike, below: npt.ArrayLike, seed: int, confidence: float = CONFIDENCE
) -> Interval | None:
    """For sum(above) / sum(below) over units; None for fewer than two, of which nothing can be said.

    Shapes (units,): what each adds to either sum.
    """
    return _interval(np.asarray(above, np.float64), np.asarray(below, np.float64), seed, confidence)


def difference_interval(
    first: npt.ArrayLike, second: npt.ArrayLike, below: npt.ArrayLike, seed: int, confidence: float = CONFIDENCE
) -> Interval | None:
    """For (sum(first) - sum(second)) / sum(below): the same units, measured by two models."""
    both = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    return _interval(both, np.asarray(below, np.float64), seed, confidence)


def _interval(above: Float64, below: Float64, seed: int, confidence: float) -> Interval | None:
    num_units = len(below)
    if num_units < 2:
        return None
    # As many draws lie beyond either bound as with the ordinary confidence.
    num_samples = max(NUM_SAMPLES, round(NUM_SAMPLES * (1 - CONFIDENCE) / (1 - confidence)))
    sums = resampled(np.stack([above, below]), seed, num_samples)
    return percentile(sums[0] / sums[1], confidence, num_units)


def resampled(values: Float64, seed: int, num_samples: int = NUM_SAMPLES) -> Float64:
    """Sums over units drawn with replacement: shape (rows, num_samples). `values`: shape (rows, units)."""
    num_units = values.shape[1]
    draws: Any = np.random.Generator(np.random.PCG64(key(seed, "bootstrap", num_units)))
    found = np.empty((len(values), num_samples))
    step = max(1, CHUNK // num_units)
    for start in range(0, num_samples, step):
        part = slice(start, min(start + step, num_samples))
        drawn = draws.integers(0, num_units, (part.stop - part.start, num_units))
        for row, of_units in zip(found, values, strict=True):
            row[part] = of_units[drawn].sum(axis=1)
    return found


def percentile(samples: Float64, confidence: float, num_units: int) -> Interval:
    """The middle part of resampled figures."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(samples, (tail, 1 - tail))
    return Interval(float(low), float(high), confidence, num_units)
