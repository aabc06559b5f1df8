"""Four Ray Train workers on two cores against one process with two threads: the same global batch, the same losses.

What data-parallel training costs on a machine that one process could fill: four times the weights to update, gradients
to sum, and ranks that wait for the slowest. Micro-batches are of the recipe's size on both sides.
"""

import contextlib
from collections.abc import Iterator

from benchmarks.corpus import Corpus, corpus
from benchmarks.harness import Benchmark, Comparison, Target, installed
from benchmarks.runs import Launcher, Trained, require_close, train

NUM_STEPS, NUM_TRIAL_STEPS = 48, 8
TOLERANCE = 1e-4


class _Efficiency(Comparison):
    def __init__(self, packed: Corpus, num_steps: int) -> None:
        self._corpus = packed
        self._num_steps = num_steps
        self._large: list[float] = []

    def _run(self, how: Launcher, *overrides: str) -> Trained:
        return train(self._corpus, how, self._num_steps, "train.log_every_steps=4", *overrides)

    def check(self) -> str:
        return require_close(self._run("ray").losses, self._run("alone").losses, TOLERANCE, "losses")

    def ours(self) -> float:
        return self._run("ray").steady_tokens_per_second

    def peer(self) -> float:
        return self._run("alone").steady_tokens_per_second

    def notes(self) -> list[str]:
        whole = self._run("alone", "train.micro_batch_size=8").steady_tokens_per_second
        return [f"one process with micro-batches of 8 rows instead of 2: {whole:,.0f} tokens/s"]


@contextlib.contextmanager
def _comparison(trial: bool) -> Iterator[Comparison]:
    with corpus() as packed:
        yield _Efficiency(packed, NUM_TRIAL_STEPS if trial else NUM_STEPS)


BENCHMARK = Benchmark(
    title="tokens/s of four workers on two cores against one process with two threads",
    unit="tokens/s",
    peer=installed("torch"),
    ratio="ours / peer",
    target=Target(">=", 0.85, 0.92),
    comparison=_comparison,
)
