"""Gradients of one node's ranks summed in shared memory, against gloo: is it worth having?

The trial is `SharedMemory` in `allreduce_worker`. What counts is the second figure, the length of whole steps: a hook
of our own would sum in another order than gloo, so a run's bits would depend on where its workers are placed
(docs/decisions/0008).
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from benchmarks.harness import Benchmark, Comparison, Target, Unequal, installed
from benchmarks.runs import on_ranks


def run(how: str, repeats: int) -> dict[str, Any]:
    """What four ranks measure."""
    [measured] = on_ranks("benchmarks.allreduce_worker", how, str(repeats))
    return measured


class _AllReduce(Comparison):
    def __init__(self, repeats: int) -> None:
        self._repeats = repeats

    def check(self) -> str:
        if run("shared", 2)["sha256"] != run("gloo", 2)["sha256"]:
            raise Unequal("the means of whole numbers differ")
        return "means of 25 MiB of whole numbers, bit for bit"

    def ours(self) -> float:
        return 1000 * float(run("shared", self._repeats)["seconds"])

    def peer(self) -> float:
        return 1000 * float(run("gloo", self._repeats)["seconds"])

    def notes(self) -> list[str]:
        steps = run("steps", self._repeats)
        gain = steps["gloo"] / steps["shared"] - 1
        most = steps["gloo"] / steps["none"] - 1
        shown = ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in steps.items())
        return [
            f"whole steps of the tiny recipe: {shown}; shared memory makes them {gain:.1%} faster, at most {most:.1%}"
        ]


@contextlib.contextmanager
def _comparison(trial: bool) -> Iterator[Comparison]:
    yield _AllReduce(6 if trial else 30)


BENCHMARK = Benchmark(
    title="a mean of 25 MiB over four ranks of one node in shared memory, against gloo",
    unit="ms",
    peer=installed("torch"),
    ratio="peer / ours",
    target=Target(">=", 3, 10),
    comparison=_comparison,
)
