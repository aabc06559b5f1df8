"""Our loop against the loop of the original CodeParrot script (`benchmarks.peers`): tokens/s in one process.

Same model with the same attention, same tokens per step, two threads on both sides. Ours reads rows that were
tokenized and packed before; the original tokenizes as it goes. Its buffer is smaller than its own default (1,024
rows), or a sample would pay for tokens that it does not train on. For the comparison of losses both get the same rows,
a constant learning rate and the same weight decay.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from benchmarks.corpus import Corpus, corpus, documents, trained_on
from benchmarks.harness import Benchmark, Comparison, Target, Unequal, installed
from benchmarks.peers import ConstantLengthDataset, fast_tokenizer, original_loader, original_loop
from benchmarks.runs import fit_here, job_here, require_close
from codeparrot.model import build_model, model_config

NUM_STEPS, NUM_TRIAL_STEPS = 40, 4
NUM_CHECKED_STEPS = 4
ROWS_IN_BUFFER = 64
NUM_THREADS = 2
TOLERANCE = 1e-4
LONG = 10_000_000
"""Steps of a schedule that does not move while it is watched."""


class _Loops(Comparison):
    def __init__(self, packed: Corpus, num_steps: int) -> None:
        self._corpus = packed
        self._num_steps = num_steps
        self._job = job_here(packed, num_steps, "train.log_every_steps=10")
        self._texts = trained_on(documents())
        files = {name: packed.tokenizer.read(packed.storage, name) for name in packed.tokenizer.names()}
        self._tokenizer = fast_tokenizer(files)
        self._tokens = self._job.train.global_batch_size * self._job.rows.max_seq_len

    def check(self) -> str:
        ours = job_here(
            self._corpus,
            NUM_CHECKED_STEPS,
            "train.log_every_steps=1",
            "train.weight_decay=0",
            "train.final_learning_rate_fraction=1",
            "train.warmup_steps=0",
        )
        order = ours.rows.order(ours.seed, ours.train.shuffle_shards)
        size = ours.train.micro_batch_size
        batches = [
            ours.rows.tensor(rows[start : start + size])
            for rows in (order.global_batch(step, ours.train.global_batch_size) for step in range(NUM_CHECKED_STEPS))
            for start in range(0, len(rows), size)
        ]
        parts = torch.tensor(self._original(batches, ours.train, NUM_CHECKED_STEPS))
        losses = parts.view(NUM_CHECKED_STEPS, -1).mean(dim=1).tolist()
        rows = torch.stack([row for row, _ in zip(self._dataset(), range(ROWS_IN_BUFFER // 2), strict=False)])
        if not torch.equal(rows, ours.rows.tensor(range(len(rows)))):
            raise Unequal("the first rows of the corpus")
        close = require_close(fit_here(ours).losses, losses, TOLERANCE, "losses")
        return f"{close}; the first {len(rows)} rows, token by token"

    def _dataset(self) -> ConstantLengthDataset:
        return ConstantLengthDataset(self._tokenizer, self._texts, self._job.rows.max_seq_len, ROWS_IN_BUFFER)

    def _original(self, batches: Any, settings: Any, num_steps: int, *, recompute: bool = False) -> list[float]:
        job = self._job
        config = model_config(
            job.model, vocab_size=job.vocab_size, max_seq_len=job.rows.max_seq_len, eos_token_id=job.eos_token_id
        )
        model = build_model(config, job.seed)
        if recompute:
            model.gradient_checkpointing_enable()
        self._began = time.perf_counter()
        return original_loop(
            model,
            batches,
            settings,
            num_steps=num_steps,
            schedule_steps=LONG,
            num_accumulated=settings.global_batch_size // settings.micro_batch_size,
        )

    def ours(self) -> float:
        return self._num_steps * self._tokens / fit_here(self._job).seconds

    def peer(self) -> float:
        return self._timed(recompute=False)

    def _timed(self, *, recompute: bool) -> float:
        loader = original_loader(self._dataset(), self._job.train.micro_batch_size)
        self._original(loader, self._job.train, self._num_steps, recompute=recompute)
        return self._num_steps * self._tokens / (time.perf_counter() - self._began)

    def notes(self) -> list[str]:
        whole = replace(self._job, train=self._job.train.model_copy(update={"micro_batch_size": 8}))
        ours = self._num_steps * self._tokens / fit_here(whole).seconds
        return [
            f"ours with micro-batches of 8 rows instead of 2: {ours:,.0f} tokens/s",
            f"the original as published, with activation checkpointing: {self._timed(recompute=True):,.0f} tokens/s",
        ]


@contextlib.contextmanager
def _comparison(trial: bool) -> Iterator[Comparison]:
    torch.set_num_threads(NUM_THREADS)
    with corpus() as packed:
        yield _Loops(packed, NUM_TRIAL_STEPS if trial else NUM_STEPS)


BENCHMARK = Benchmark(
    title="tokens/s of our loop against the loop of the original CodeParrot script",
    unit="tokens/s",
    peer=installed("transformers"),
    ratio="ours / peer",
    target=Target(">=", 1.5),
    comparison=_comparison,
)
