"""How long training stands still for a checkpoint: ours, in the background, against written and uploaded at once.

Four ranks with the state of the tiny recipe and the S3 server. Ours is the call of `codeparrot.train.save` on the
slowest rank. The peer pickles the same state on rank 0 (`torch.save`) and uploads it (boto3's `upload_fileobj`) while
the others wait, as a plain loop does. The steps beside the background thread are timed too: what it takes from them is
no stall, but it is not free.
"""

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed, multiprocessing

from benchmarks.corpus import BUCKET, Corpus, corpus
from benchmarks.harness import Benchmark, Comparison, Target, Unequal, installed
from benchmarks.peers import save_at_once
from benchmarks.runs import NUM_WORKERS, job_here
from codeparrot.parallel import World
from codeparrot.s3 import s3_client
from codeparrot.train import prepare, save, train_step
from codeparrot.train_state import MOMENTS
from codeparrot.training_job import Trainer, Unsupervised

RUN_NAME = "here"
KEY = "bench-peer/checkpoint.pt"
NUM_BEFORE, NUM_BESIDE = 2, 6
"""Steps before a checkpoint, and steps timed after it."""
EVERY_STEPS = 50
LIMIT_SHARE = 0.005


class _Rank:
    """One of the ranks; what it does, all do together."""

    def __init__(self, rank: int, packed: Corpus, rendezvous: str) -> None:
        torch.set_num_threads(1)
        distributed.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=NUM_WORKERS)
        self._corpus = packed
        job = job_here(packed, 10_000)
        self.trainer: Trainer = prepare(job, World(rank, NUM_WORKERS), Unsupervised())

    def follow(self) -> None:
        """Do what rank 0 does, until it ends."""
        while True:
            what: list[Any] = [None]
            distributed.broadcast_object_list(what)
            if what[0] is None:
                distributed.destroy_process_group()
                return
            self.do(*what[0])

    def lead(self, what: str, num_beside: int = NUM_BESIDE) -> tuple[float, float]:
        """On rank 0: have all do the same."""
        distributed.broadcast_object_list([(what, num_beside)])
        return self.do(what, num_beside)

    def end(self) -> None:
        """On rank 0: let all end."""
        distributed.broadcast_object_list([None])
        distributed.destroy_process_group()

    def do(self, what: str, num_beside: int) -> tuple[float, float]:
        """(seconds that training stood still on the slowest rank, seconds of the steps right after)."""
        for _ in range(NUM_BEFORE):
            train_step(self.trainer)
        distributed.barrier()
        began = time.perf_counter()
        if what == "ours":
            save(self.trainer)
        else:
            if self.trainer.world.is_first:
                save_at_once(self.state(), s3_client(), BUCKET, KEY)
            distributed.barrier()
        stall = torch.tensor(time.perf_counter() - began)
        began = time.perf_counter()
        for _ in range(num_beside):
            train_step(self.trainer)
        beside = time.perf_counter() - began
        self.trainer.writer.join()
        distributed.all_reduce(stall, distributed.ReduceOp.MAX)
        return float(stall), beside

    def state(self) -> dict[str, Any]:
        """What the peer saves."""
        trainer = self.trainer
        return {
            "model": trainer.model.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "step": trainer.step,
        }


def _follow(rank: int, packed: Corpus, rendezvous: str) -> None:
    _Rank(rank, packed, rendezvous).follow()


class _Stalls(Comparison):
    def __init__(self, packed: Corpus, first: _Rank) -> None:
        self._corpus = packed
        self._first = first
        self._stalls: list[float] = []
        self._beside: dict[str, list[float]] = {"ours": [], "peer": []}

    def _sample(self, what: str) -> float:
        stall, beside = self._first.lead(what)
        self._beside[what].append(beside)
        return stall

    def check(self) -> str:
        """The peer's file and ours, written between the same two steps, hold the same tensors."""
        trainer = self._first.trainer
        self._first.lead("ours", 0)
        checkpoint = trainer.job.checkpoints.load(trainer.step)
        assert checkpoint is not None
        data = io.BytesIO()
        save_at_once(self._first.state(), s3_client(), BUCKET, KEY)
        s3_client().download_fileobj(BUCKET, KEY, data)
        data.seek(0)
        theirs = torch.load(data)
        names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
        order = [names[id(parameter)] for group in trainer.optimizer.param_groups for parameter in group["params"]]
        moments = {
            f"{order[index]}:{moment}": values[moment]
            for index, values in theirs["optimizer"]["state"].items()
            for moment in MOMENTS
            if moment in values
        }
        ours = {**dict(checkpoint.tensors("model")), **dict(checkpoint.tensors("optimizer"))}
        different = [
            name for name, tensor in ours.items() if not torch.equal(tensor, {**theirs["model"], **moments}[name])
        ]
        if different or not set(moments) <= set(ours):
            raise Unequal(f"the tensors {different[:3]}")
        return f"{len(ours)} tensors of the state, bit for bit"

    def ours(self) -> float:
        self._stalls.append(self._sample("ours"))
        return self._stalls[-1]

    def peer(self) -> float:
        return self._sample("peer")

    def notes(self) -> list[str]:
        alone, beside = (statistics.median(self._beside[what]) for what in ("peer", "ours"))
        stall, step = statistics.median(self._stalls), alone / NUM_BESIDE
        share = stall / (EVERY_STEPS * step + stall)
        verdict = "met" if share <= LIMIT_SHARE else "MISSED"
        every = f"at a checkpoint per {EVERY_STEPS} steps of {step:.3f} s"
        extra = beside - alone
        return [
            f"share of the wall time {every}: {share:.3%}; target <= {LIMIT_SHARE:.1%}: {verdict}",
            f"{NUM_BESIDE} steps beside the background thread take {extra * 1000:+.0f} ms",
        ]


@contextlib.contextmanager
def _comparison(trial: bool) -> Iterator[Comparison]:
    with corpus() as packed, tempfile.TemporaryDirectory() as folder:
        packed.forget(RUN_NAME)
        context = multiprocessing.get_context("spawn")
        rendezvous = f"{folder}/rendezvous"
        others = [
            context.Process(target=_follow, args=(rank, packed, rendezvous), daemon=True)
            for rank in range(1, NUM_WORKERS)
        ]
        for process in others:
            process.start()
        first = _Rank(0, packed, rendezvous)
        try:
            yield _Stalls(packed, first)
            first.end()
        finally:
            for process in others:
                process.join(10)
                process.kill()
            packed.forget(RUN_NAME)


BENCHMARK = Benchmark(
    title="seconds that training stands still for a checkpoint, against torch.save and upload",
    unit="s",
    peer=installed("torch"),
    ratio="peer / ours",
    target=Target(">=", 20),
    comparison=_comparison,
    num_pairs=9,
)
