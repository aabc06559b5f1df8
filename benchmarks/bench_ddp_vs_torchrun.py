"""Ray Train against torchrun: the same `codeparrot.train.fit` on four ranks, tokens/s over the second half of a run.

A sample is one run of the real command. What Ray costs beside the start is what its own processes and ours that watch
(the driver, the mailbox) take from the cores.
"""

import contextlib
from collections.abc import Iterator

from benchmarks.corpus import Corpus, corpus
from benchmarks.harness import Benchmark, Comparison, Target, Unequal, installed
from benchmarks.runs import Launcher, Trained, train

NUM_STEPS, NUM_TRIAL_STEPS = 48, 8


class _Launchers(Comparison):
    def __init__(self, packed: Corpus, num_steps: int) -> None:
        self._corpus = packed
        self._num_steps = num_steps
        self._weights: dict[str, str] = {}

    def _run(self, how: Launcher) -> Trained:
        run = train(self._corpus, how, self._num_steps, "train.log_every_steps=4")
        self._weights = self._weights or dict(run.weights)
        if run.weights != self._weights:
            raise Unequal(f"the weights after {self._num_steps} steps under {how}")
        return run

    def check(self) -> str:
        self._run("ray")
        self._run("torchrun")
        return f"weights after {self._num_steps} steps, bit for bit (all runs)"

    def ours(self) -> float:
        return self._run("ray").steady_tokens_per_second

    def peer(self) -> float:
        return self._run("torchrun").steady_tokens_per_second


@contextlib.contextmanager
def _comparison(trial: bool) -> Iterator[Comparison]:
    with corpus() as packed:
        yield _Launchers(packed, NUM_TRIAL_STEPS if trial else NUM_STEPS)


BENCHMARK = Benchmark(
    title="tokens/s of four Ray Train workers against four processes of torchrun",
    unit="tokens/s",
    peer=installed("torch"),
    ratio="ours / peer",
    target=Target(">=", 0.975, 0.99),
    comparison=_comparison,
)
