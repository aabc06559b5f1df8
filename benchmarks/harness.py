"""Ours against a peer: pairs of samples taken in turns, the median of their ratios, and how certain it is.

Outputs are compared first: what does not do the same is not compared in speed. Then come the samples, in the order
ours, peer, peer, ours, ..., so that a machine that becomes slower harms both. The interval is a percentile bootstrap
of the median (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13) with a fixed seed.
"""

import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

NUM_PAIRS = 5
NUM_RESAMPLES = 10_000
SEED = 20
MAX_BUSY = 0.10
"""Share of all cores that may be in use by others when a pair begins."""
QUIET_SECONDS = 1.0
MAX_WAIT_SECONDS = 900.0
"""How long to wait for a quiet machine, all pairs together."""
RESULTS = Path(__file__).parent / "results"


class Unequal(Exception):
    """Ours and the peer do not compute the same."""


class Console:
    """Prints lines and keeps them."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        """Print one line."""
        self.lines.append(line)
        print(line, flush=True)


@dataclass(frozen=True)
class Target:
    """What the ratio must be."""

    sense: Literal[">=", "<="]
    limit: float
    stretch: float | None = None

    def verdict(self, ratio: float) -> str:
        """The target, and whether the ratio meets it."""
        parts = [f"target {self.sense} {self.limit:g}: {self._met(ratio, self.limit)}"]
        if self.stretch is not None:
            parts.append(f"stretch {self.sense} {self.stretch:g}: {self._met(ratio, self.stretch)}")
        return ", ".join(parts)

    def _met(self, ratio: float, limit: float) -> str:
        return "met" if (ratio >= limit if self.sense == ">=" else ratio <= limit) else "MISSED"


class Comparison(ABC):
    """Ours and a peer, ready to be measured."""

    @abstractmethod
    def check(self) -> str:
        """What is equal. Raises Unequal if it is not."""

    @abstractmethod
    def ours(self) -> float:
        """One sample."""

    @abstractmethod
    def peer(self) -> float:
        """One sample."""

    def notes(self) -> Sequence[str]:
        """What else was seen."""
        return ()


@dataclass(frozen=True)
class Benchmark:
    """One claim about ours and a peer."""

    title: str
    unit: str
    peer: str
    """name==version"""
    ratio: Literal["ours / peer", "peer / ours"]
    target: Target
    comparison: Callable[[bool], AbstractContextManager[Comparison]]
    """Called with whether it is only tried out."""
    num_pairs: int = NUM_PAIRS
    first: Literal["ours", "peer"] = "ours"
    alternate: bool = True
    """Whether every second pair begins with the other side; not where one side must come first."""


def installed(name: str) -> str:
    """name==version of an installed distribution."""
    return f"{name}=={version(name)}"


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the median."""
    values = np.asarray(ratios)
    drawn = np.random.default_rng(SEED).choice(values, (NUM_RESAMPLES, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(low), float(high)


def measure(name: str, benchmark: Benchmark, *, trial: bool = False) -> Console:
    """Run one benchmark and print it; the last line is JSON. Raises Unequal. `trial`: small, two pairs."""
    console = Console()
    console.say(f"{name}: {benchmark.title}")
    console.say(f"{machine()}, {time.strftime('%Y-%m-%d')}{'; ONLY A TRIAL' if trial else ''}")
    patience = 0.0 if trial else MAX_WAIT_SECONDS
    began = time.monotonic()
    pairs = []
    with benchmark.comparison(trial) as comparison:
        console.say(f"equal: {comparison.check()}")
        for number in range(2 if trial else benchmark.num_pairs):
            patience = quiet(patience, console)
            ours_first = (benchmark.first == "ours") == (number % 2 == 0 or not benchmark.alternate)
            if ours_first:
                ours = comparison.ours()
                peer = comparison.peer()
            else:
                peer = comparison.peer()
                ours = comparison.ours()
            pairs.append(ours / peer if benchmark.ratio == "ours / peer" else peer / ours)
            first, second = (ours, peer) if ours_first else (peer, ours)
            who = ("ours", benchmark.peer) if ours_first else (benchmark.peer, "ours")
            console.say(
                f"pair {number + 1}: {who[0]} {figure(first)} {benchmark.unit}, "
                f"{who[1]} {figure(second)} {benchmark.unit}, {benchmark.ratio} = {pairs[-1]:.4g}"
            )
        for note in comparison.notes():
            console.say(note)
    ratio = float(np.median(pairs))
    low, high = interval(pairs)
    console.say(
        f"median of {len(pairs)} ratios ({benchmark.ratio}): {ratio:.4g}, 95 % interval {low:.4g} to {high:.4g}; "
        f"{benchmark.target.verdict(ratio)}; {time.monotonic() - began:.0f} s"
    )
    result = {"id": name, "ratio": ratio, "low": low, "high": high, "peer": benchmark.peer, "equal": True}
    console.say(
        json.dumps({key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in result.items()})
    )
    return console


def figure(value: float) -> str:
    """Four digits, and separators where there are thousands."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def machine() -> str:
    """The processor and the memory, for whoever reads the result."""
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {cpu.partition(':')[2].strip()}, {memory:.0f} GiB"


def quiet(patience_seconds: float, console: Console) -> float:
    """Wait until nobody else computes; returns the patience that is left."""
    began = time.monotonic()
    share = _busy()
    while share > MAX_BUSY and time.monotonic() - began < patience_seconds:
        share = _busy()
    if share > MAX_BUSY:
        console.say(f"others use {share:.0%} of the cores: the next pair is not to be trusted")
    return patience_seconds - (time.monotonic() - began)


def _busy() -> float:
    """The share of all cores that is in use, over a second."""

    def read() -> tuple[int, int]:
        ticks = list(map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]))
        return sum(ticks), ticks[3] + ticks[4]  # idle and waiting for input, proc_stat(5)

    total, idle = read()
    time.sleep(QUIET_SECONDS)
    later_total, later_idle = read()
    return 1 - (later_idle - idle) / max(1, later_total - total)
