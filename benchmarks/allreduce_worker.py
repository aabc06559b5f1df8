"""One rank of `bench_shm_allreduce`: python -m benchmarks.allreduce_worker gloo|shared|steps REPEATS FOLDER.

`SharedMemory` is the trial: every rank copies its gradients into a file of /dev/shm, sums its share of all ranks'
(in the order of the ranks), and copies the shares of the others back. What ranks tell each other is one counter each.
"""

import hashlib
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from benchmarks.corpus import ROOT
from codeparrot.config import load_recipe
from codeparrot.model import build_model, model_config

NUM_BYTES = 25 * 2**20
HEADER_BYTES = 4096
CACHED_NUMBERS = 65_536
"""Summed at once: the parts of four ranks then fit into a core's cache."""


class SharedMemory:
    """Mean over the ranks of one node, in the same memory."""

    def __init__(self, num_numbers: int) -> None:
        self.rank, self.world_size = distributed.get_rank(), distributed.get_world_size()
        path = Path(f"/dev/shm/codeparrot-{os.environ['TORCHELASTIC_RUN_ID']}")
        size = HEADER_BYTES + 4 * num_numbers * self.world_size
        if self.rank == 0:
            with path.open("wb") as file:
                file.truncate(size)
        distributed.barrier()
        storage: Any = torch.UntypedStorage.from_file(str(path), shared=True, nbytes=size)
        memory = torch.empty(0, dtype=torch.uint8).set_(storage)
        self._counters = memory[:HEADER_BYTES].view(torch.int64)[::8][: self.world_size].numpy()  # a cache line each
        self._slots = memory[HEADER_BYTES:].view(torch.float32).view(self.world_size, num_numbers)
        self._count = 0
        distributed.barrier()
        if self.rank == 0:
            path.unlink()

    def _meet(self) -> None:
        self._count += 1
        self._counters[self.rank] = self._count
        while self._counters.min() < self._count:
            os.sched_yield()

    def mean(self, numbers: torch.Tensor) -> None:
        """Put the mean over all ranks in place of `numbers`, (N,)."""
        count = numbers.numel()
        share = -(-count // self.world_size)
        slots, own = self._slots[:, :count], self._slots[self.rank, :count]
        self._meet()  # all have read what was there
        own.copy_(numbers)
        self._meet()
        for begin in range(self.rank * share, min(count, (self.rank + 1) * share), CACHED_NUMBERS):
            part = slice(begin, min(begin + CACHED_NUMBERS, (self.rank + 1) * share, count))
            torch.sum(slots[:, part], 0, out=numbers[part])
            own[part].copy_(numbers[part].div_(self.world_size))
        self._meet()
        for other in range(self.world_size):
            part = slice(other * share, min(count, (other + 1) * share))
            if other != self.rank:
                numbers[part].copy_(slots[other, part])


def gloo_mean(numbers: torch.Tensor) -> None:
    """The same by gloo."""
    distributed.all_reduce(numbers)
    numbers.div_(distributed.get_world_size())


def no_mean(numbers: torch.Tensor) -> None:
    """None at all: what a transport that takes no time would give."""


def time_means(how: str, repeats: int) -> dict[str, Any]:
    """Median seconds of one all-reduce, and what came out."""
    numbers = torch.randint(
        -1000, 1000, (NUM_BYTES // 4,), generator=torch.Generator().manual_seed(torch.initial_seed())
    )
    numbers = numbers.float()  # whole numbers: sums are exact in any order
    mean = SharedMemory(numbers.numel()).mean if how == "shared" else gloo_mean
    seconds = []
    for _ in range(repeats):
        summed = numbers.clone()
        distributed.barrier()
        began = time.perf_counter()
        mean(summed)
        seconds.append(time.perf_counter() - began)
    return {"seconds": statistics.median(seconds), "sha256": hashlib.sha256(summed.numpy().tobytes()).hexdigest()}


def future_of(ready: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
    """What a communication hook returns when nothing is left to wait for."""
    future: Any = torch.futures.Future()
    future.set_result(ready)
    return future  # type: ignore[no-any-return]


def time_steps(repeats: int) -> dict[str, Any]:
    """Median seconds of a step of the tiny recipe by each transport, and without any, in turns."""
    recipe = load_recipe(str(ROOT / "recipes" / "tiny.yaml"), [])
    assert recipe.tokenizer.vocab_size is not None
    config = model_config(
        recipe.model, vocab_size=recipe.tokenizer.vocab_size, max_seq_len=recipe.pack.max_seq_len, eos_token_id=0
    )
    model = DistributedDataParallel(
        build_model(config, 0), gradient_as_bucket_view=True, static_graph=True, bucket_cap_mb=NUM_BYTES / 2**20
    )
    shared = SharedMemory(sum(parameter.numel() for parameter in model.parameters()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    rows = torch.randint(0, config.vocab_size, (recipe.train.micro_batch_size, recipe.pack.max_seq_len))
    means = {"gloo": gloo_mean, "shared": shared.mean, "none": no_mean}
    how = "gloo"

    def hook(_: Any, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:  # type: ignore[name-defined]
        gradients = bucket.buffer()
        means[how](gradients)
        return future_of(gradients)

    register: Any = model.register_comm_hook
    register(None, hook)
    seconds: dict[str, list[float]] = {name: [] for name in means}
    for turn in range(repeats + 2):
        for how in means if turn % 2 else reversed(means):
            distributed.barrier()
            began = time.perf_counter()
            model(input_ids=rows, labels=rows).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            distributed.barrier()
            if turn >= 2:
                seconds[how].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Measure, and let rank 0 write it."""
    how, repeats, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    torch.manual_seed(distributed.get_rank())
    measured = time_steps(repeats) if how == "steps" else time_means(how, repeats)
    if distributed.get_rank() == 0:
        (folder / "rank-0.json").write_text(json.dumps(measured))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
