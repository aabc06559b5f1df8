"""pass@k: of k completions of a problem, the chance that at least one is right.

The unbiased estimate of Chen et al. 2021 ("Evaluating Large Language Models Trained on Code", equation 1), from n
completions of which c are right: 1 - C(n - c, k) / C(n, k). It is computed in whole numbers and rounded once.

How certain it is: a bootstrap over problems (`codeparrot.bootstrap`). Problems are drawn, not completions: another
benchmark would have had other problems.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from codeparrot.bootstrap import CONFIDENCE, percentile, resampled

NUM_RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean over problems, and the interval that holds it with a confidence of 95 %."""

    value: float
    low: float
    high: float


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """The estimate for one problem. Raises ValueError if it has fewer than k completions."""
    if not 0 <= num_passed <= num_samples:
        raise ValueError(f"{num_passed} of {num_samples} completions cannot have passed")
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} needs {k} completions, there are {num_samples}")
    every = comb(num_samples, k)
    return (every - comb(num_samples - num_passed, k)) / every


def estimate(counts: Sequence[tuple[int, int]], k: int, seed: int) -> Estimate:
    """pass@k of a benchmark, from (completions, passed) of each of its problems, in their order."""
    values = np.array([pass_at_k(num_samples, num_passed, k) for num_samples, num_passed in counts])
    means = resampled(values[None], seed, NUM_RESAMPLES)[0] / len(values)
    interval = percentile(means, CONFIDENCE, len(values))
    return Estimate(float(values.mean()), interval.low, interval.high)
