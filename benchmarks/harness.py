"""Ours against a peer: pairs of samples taken in turns, the median of their ratios, and how certain it is.

Outputs are compared first: what does not do the same is not compared in speed. Then come the samples, in the order
ours, peer, peer, ours, ..., so that a machine that becomes slower harms both. The interval is a percentile bootstrap
of the median (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13) with a fixed seed.
"""

import contextlib
import json
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

NUM_PAIRS = 5
NUM_RESAMPLES = 10_000
SEED = 20
MAX_BUSY = 0.05
"""Share of all cores that others may use during a pair; the pair is taken again if they used more."""
QUIET_SECONDS = 5.0
SAMPLE_SECONDS = 1.0
MAX_WAIT_SECONDS = 1800.0
"""How long to wait for a quiet machine, and to repeat pairs, before they are taken as they are."""
MARKER = "CODEPARROT_BENCHMARK"
"""Stands in the environment of all processes of a benchmark."""
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

    def notes(self) -> Iterable[str]:
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
    timed: bool = True
    """Whether samples depend on the machine; if not, it need not be quiet."""


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
    os.environ[MARKER] = str(os.getpid())
    began = time.monotonic()
    deadline = began + (0.0 if trial else MAX_WAIT_SECONDS)
    pairs: list[float] = []
    with benchmark.comparison(trial) as comparison:
        console.say(f"equal: {comparison.check()}")
        while len(pairs) < (2 if trial else benchmark.num_pairs):
            if benchmark.timed:
                wait_for_quiet(deadline)
            with Others() as others:
                ours, peer, line = _pair(comparison, benchmark, len(pairs))
            share = others.share if benchmark.timed else 0.0
            if share > MAX_BUSY and time.monotonic() < deadline:
                console.say(f"{line}; taken again, since others used {share:.0%} of the cores")
                continue
            console.say(line if share <= MAX_BUSY else f"{line}; NOT TO BE TRUSTED: others used {share:.0%}")
            pairs.append(ours / peer if benchmark.ratio == "ours / peer" else peer / ours)
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


def _pair(comparison: Comparison, benchmark: Benchmark, number: int) -> tuple[float, float, str]:
    """(ours, the peer's, a line that says it)."""
    taken: dict[str, float] = {}
    sides = {"ours": comparison.ours, benchmark.peer: comparison.peer}
    backwards = (benchmark.first == "peer") != (benchmark.alternate and number % 2 == 1)
    for side in reversed(sides) if backwards else sides:
        taken[side] = sides[side]()
    ours, peer = taken["ours"], taken[benchmark.peer]
    shown = ", ".join(f"{side} {figure(value)} {benchmark.unit}" for side, value in taken.items())
    ratio = ours / peer if benchmark.ratio == "ours / peer" else peer / ours
    return ours, peer, f"pair {number + 1}: {shown}, {benchmark.ratio} = {ratio:.4g}"


def figure(value: float) -> str:
    """Four digits, and separators where there are thousands."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def machine() -> str:
    """The processor and the memory, for whoever reads the result."""
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {cpu.partition(':')[2].strip()}, {memory:.0f} GiB"


class Others:
    """What processes that are not of this benchmark take from the cores during a `with` block."""

    def __init__(self) -> None:
        self._ticks: dict[tuple[int, int], int] = {}
        self._is_ours: dict[tuple[int, int], bool] = {}
        self._used = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="others", daemon=True)

    def __enter__(self) -> "Others":
        self._began = time.monotonic()
        self._ticks = dict(self._read())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        seconds = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        self.share = self._used / os.sysconf("SC_CLK_TCK") / seconds
        """Of all cores."""

    def _watch(self) -> None:
        over = False
        while not over:
            over = self._ended.wait(SAMPLE_SECONDS)
            ticks = dict(self._read())
            self._used += sum(count - self._ticks.get(process, 0) for process, count in ticks.items())
            self._ticks = ticks

    def _read(self) -> Iterator[tuple[tuple[int, int], int]]:
        """((process id, when it began), clock ticks it has used) of others (proc_pid_stat(5), fields 14, 15 and 22)."""
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                process = (int(folder.name), int(fields[19]))
                if process not in self._is_ours:
                    environment = (folder / "environ").read_bytes()
                    is_ours = process[0] == os.getpid() or f"{MARKER}={os.getpid()}".encode() in environment
                    if environment:  # none: it is just beginning, or it is the kernel's
                        self._is_ours[process] = is_ours
                else:
                    is_ours = self._is_ours[process]
                if not is_ours:
                    yield process, int(fields[11]) + int(fields[12])


def wait_for_quiet(deadline: float) -> None:
    """Wait until nobody else computes, at most until this moment of `time.monotonic`."""
    while time.monotonic() < deadline:
        with Others() as others:
            time.sleep(QUIET_SECONDS)
        if others.share <= MAX_BUSY:
            return
