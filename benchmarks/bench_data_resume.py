"""Finding the next batch after 10,000 steps, against skipping the batches before it.

Ours computes which rows come next, and reads them. The peer is what trainers do whose data has no position
(`if step < resume_step: continue`, and Accelerate's `skip_first_batches`): a DataLoader goes over all batches up to
the right one. To its advantage its dataset is ours, packed, and it is given the order of all rows, so both find the
same batch. The rows are open on both sides: opening and verifying them takes the same time, and is shown apart. Every
pair has a seed of its own, so that no order is known from the pair before.
"""

import contextlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.corpus import Corpus, corpus, documents, trained_on
from benchmarks.harness import Benchmark, Comparison, Target, Unequal, installed
from benchmarks.peers import ConstantLengthDataset, fast_tokenizer, original_loader
from benchmarks.runs import empty_cache, rows_in
from codeparrot.dataloader import PackedRows

STEP, TRIAL_STEP = 10_000, 500
ROWS_IN_BUFFER = 1024
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
        self._size, self._window = recipe.train.global_batch_size, recipe.train.shuffle_shards
        self._rows = rows_in(packed, cache)
        self._seeds = {"ours": recipe.seed, "peer": recipe.seed}

    def _compute(self, rows: PackedRows, seed: int) -> torch.Tensor:
        return rows.tensor(rows.order(seed, self._window).global_batch(self._step, self._size))

    def _skip(self, seed: int) -> tuple[torch.Tensor, float]:
        """(the batch, the seconds to it)"""
        positions = np.arange((self._step + 1) * self._size)
        order = self._rows.order(seed, self._window).rows(positions).tolist()
        began = time.perf_counter()
        for step, batch in enumerate(DataLoader(Rows(self._rows), batch_size=self._size, sampler=order)):
            if step < self._step:
                continue
            found: torch.Tensor = batch
            return found, time.perf_counter() - began
        raise AssertionError("the loader ended too early")

    def _next_seed(self, side: str) -> int:
        self._seeds[side] += 1
        return self._seeds[side]

    def check(self) -> str:
        seed = self._next_seed("ours")
        self._next_seed("peer")
        if not torch.equal(self._compute(self._rows, seed), self._skip(seed)[0]):
            raise Unequal(f"the batches of step {self._step}")
        return f"the batch of step {self._step:,}, token by token"

    def ours(self) -> float:
        seed = self._next_seed("ours")
        began = time.perf_counter()
        self._compute(self._rows, seed)
        return time.perf_counter() - began

    def peer(self) -> float:
        return self._skip(self._next_seed("peer"))[1]

    def _opening(self, cache: Path) -> float:
        """Seconds from nothing to the batch."""
        began = time.perf_counter()
        self._compute(rows_in(self._corpus, cache), self._next_seed("ours"))
        return time.perf_counter() - began

    def _original(self) -> float:
        """Seconds of the original loader, which tokenizes what it skips."""
        packed = self._corpus
        files = {name: packed.tokenizer.read(packed.storage, name) for name in packed.tokenizer.names()}
        texts = itertools.cycle(trained_on(documents()))
        dataset = ConstantLengthDataset(fast_tokenizer(files), texts, self._rows.max_seq_len, ROWS_IN_BUFFER)
        began = time.perf_counter()
        next(itertools.islice(original_loader(dataset, self._size), self._step, None))
        return time.perf_counter() - began

    def notes(self) -> list[str]:
        warm = self._opening(self._cache)
        with empty_cache() as cache:
            cold = self._opening(cache)
        verdict = "met" if cold <= LIMIT_SECONDS else "MISSED"
        return [
            f"ours with opening and verifying the rows: {warm:.3f} s",
            f"the same with an empty cache, from the S3 server: {cold:.3f} s; target <= {LIMIT_SECONDS:g} s: {verdict}",
            f"the loader of the original, which tokenizes what it skips: {self._original():.1f} s",
        ]


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
