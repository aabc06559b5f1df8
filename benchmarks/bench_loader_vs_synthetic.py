"""Rows from the store against rows in memory: seconds per step, of the same training in this process.

Ours begins every sample with an empty cache, so a sample of few steps pays for fetching, verifying and writing all
shards of the corpus, which serve thousands of steps. The peer has the batches as tensors and their row numbers as
arrays: it computes no order and reads nothing.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.corpus import Corpus, corpus
from benchmarks.harness import Benchmark, Comparison, Target, Unequal, installed
from benchmarks.runs import empty_cache, fit_here, job_here, rows_in
from codeparrot.data_order import DataOrder
from codeparrot.dataloader import PackedRows
from codeparrot.training_job import TrainingJob

NUM_STEPS, NUM_TRIAL_STEPS = 40, 4
NUM_THREADS = 2


@dataclass(frozen=True)
class Prepared(DataOrder):
    """An order that was computed before."""

    batches: Sequence[npt.NDArray[np.int64]] = field(default=(), compare=False)

    def global_batch(self, step: int, global_batch_size: int) -> npt.NDArray[np.int64]:
        assert len(self.batches[step]) == global_batch_size
        return self.batches[step]

    def shards(self, position: int, num_windows: int) -> list[int]:
        return []


class InMemory(PackedRows):
    """Rows that lie in memory as tensors, by batch."""

    def __init__(self, rows: PackedRows, job: TrainingJob) -> None:
        self.num_rows, self.max_seq_len, self.rows_per_shard = rows.num_rows, rows.max_seq_len, rows.rows_per_shard
        self._order = rows.order(job.seed, job.train.shuffle_shards)
        size = job.train.global_batch_size
        self._batches = [self._order.global_batch(step, size) for step in range(job.train.max_steps)]
        micro = job.train.micro_batch_size
        parts = [batch[i : i + micro] for batch in self._batches for i in range(0, size, micro)]
        parts.append(np.zeros(1, np.int64))  # `prepare` asks for it
        self._tensors = {tuple(part.tolist()): rows.tensor(part) for part in parts}

    def order(self, seed: int, window_shards: int) -> DataOrder:
        known = self._order
        return Prepared(seed, known.num_rows, known.rows_per_shard, window_shards, self._batches)

    def tensor(self, indices: Any) -> "torch.Tensor":
        return self._tensors[tuple(map(int, indices))]

    def prefetch(self, shards: Sequence[int]) -> None:
        """Nothing to fetch."""


class _Loader(Comparison):
    def __init__(self, packed: Corpus, num_steps: int) -> None:
        self._corpus = packed
        self._job = job_here(packed, num_steps, "train.log_every_steps=10")
        rows = self._job.rows
        assert isinstance(rows, PackedRows), "the tiny recipe has one corpus"
        self._synthetic = InMemory(rows, self._job)
        self._losses: list[float] = []

    def _sample(self, rows: PackedRows) -> float:
        watch = fit_here(replace(self._job, rows=rows))
        self._losses = self._losses or watch.losses
        if watch.losses != self._losses:
            raise Unequal(f"losses {watch.losses} and {self._losses}")
        return watch.seconds / self._job.train.max_steps

    def check(self) -> str:
        self.peer()
        self.ours()
        return f"losses of {self._job.train.max_steps} steps, bit for bit (all samples)"

    def ours(self) -> float:
        with empty_cache() as cache:
            return self._sample(rows_in(self._corpus, cache))

    def peer(self) -> float:
        return self._sample(self._synthetic)


@contextlib.contextmanager
def _comparison(trial: bool) -> Iterator[Comparison]:
    torch.set_num_threads(NUM_THREADS)
    with corpus() as packed:
        yield _Loader(packed, NUM_TRIAL_STEPS if trial else NUM_STEPS)


BENCHMARK = Benchmark(
    title="seconds per step with rows from the S3 server (empty cache) against batches in memory",
    unit="s",
    peer=installed("torch"),
    ratio="ours / peer",
    target=Target("<=", 1.01),
    comparison=_comparison,
    num_pairs=7,
)
