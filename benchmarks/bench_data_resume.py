"""Finding the next batch after 10,000 steps, against skipping the batches before it.

Ours computes which rows come next and reads them: opening the packed rows, the order, the shards and the batch. The
peer is what trainers do whose data has no position (`if step < resume_step: continue`, and Accelerate's
`skip_first_batches`): a DataLoader goes over all batches up to the right one. To its advantage its dataset is ours,
packed and open in memory already, and it knows the order of the epochs, so both find the same batch.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.corpus import Corpus, corpus
from benchmarks.harness import Benchmark, Comparison, Target, Unequal, installed
from benchmarks.runs import empty_cache, rows_in
from codeparrot.dataloader import PackedRows

STEP, TRIAL_STEP = 10_000, 500
LIMIT_SECONDS = 1.0


class Rows(Dataset[torch.Tensor]):
    """Packed rows one by one."""

    def __init__(self, rows: PackedRows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return self._rows.num_rows

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._rows.tensor([index])[0]


class _Resume(Comparison):
    def __init__(self, packed: Corpus, cache: Path, step: int) -> None:
        self._corpus, self._cache, self._step = packed, cache, step
        recipe = packed.recipe("resume")
        self._size, self._seed, self._window = recipe.train.global_batch_size, recipe.seed, recipe.train.shuffle_shards
        self._rows = rows_in(packed, cache)
        self._batch = self._resume(cache)
        self._seconds: list[float] = []

    def _resume(self, cache: Path) -> torch.Tensor:
        rows = rows_in(self._corpus, cache)
        order = rows.order(self._seed, self._window)
        return rows.tensor(order.global_batch(self._step, self._size))

    def _skip(self) -> torch.Tensor:
        order = self._rows.order(self._seed, self._window)
        positions = np.arange((self._step + 1) * self._size)
        loader = DataLoader(Rows(self._rows), batch_size=self._size, sampler=order.rows(positions).tolist())
        for step, batch in enumerate(loader):
            if step < self._step:
                continue
            found: torch.Tensor = batch
            return found
        raise AssertionError("the loader ended too early")

    def check(self) -> str:
        if not torch.equal(self._resume(self._cache), self._skip()):
            raise Unequal(f"the batches of step {self._step}")
        return f"the batch of step {self._step:,}, token by token"

    def ours(self) -> float:
        began = time.perf_counter()
        self._resume(self._cache)
        self._seconds.append(time.perf_counter() - began)
        return self._seconds[-1]

    def peer(self) -> float:
        began = time.perf_counter()
        self._skip()
        return time.perf_counter() - began

    def notes(self) -> list[str]:
        with empty_cache() as cache:
            began = time.perf_counter()
            self._resume(cache)
            cold = time.perf_counter() - began
        verdict = "met" if max(cold, *self._seconds) <= LIMIT_SECONDS else "MISSED"
        found = f"ours at most {max(self._seconds):.3f} s; with an empty cache, shards from the store: {cold:.3f} s"
        return [f"{found}; target <= {LIMIT_SECONDS:g} s: {verdict}"]


@contextlib.contextmanager
def _comparison(trial: bool) -> Iterator[Comparison]:
    with corpus() as packed, empty_cache() as cache:
        yield _Resume(packed, cache, TRIAL_STEP if trial else STEP)


BENCHMARK = Benchmark(
    title="seconds to the batch of step 10,000, against skipping all batches before it",
    unit="s",
    peer=installed("torch"),
    ratio="peer / ours",
    target=Target(">=", 100),
    comparison=_comparison,
    num_pairs=9,
)
