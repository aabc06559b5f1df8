"""One rank of `bench_memory_per_worker`: python -m benchmarks.memory_worker steps|checkpoints STEPS URI FOLDER."""

import json
import os
import sys
from pathlib import Path

import boto3  # noqa: F401 - what a worker imports sooner or later belongs to the imports
import torch
from torch import distributed
from torch.distributed import tensor as _  # noqa: F401
from torch.nn import parallel  # noqa: F401
from transformers import GPT2Config, GPT2LMHeadModel  # noqa: F401

from benchmarks.bench_memory_per_worker import resident_bytes
from benchmarks.corpus import Corpus
from benchmarks.runs import job_here
from codeparrot.manifest import require_manifest
from codeparrot.parallel import World
from codeparrot.storage import open_storage
from codeparrot.train import prepare, save, train_step
from codeparrot.training_job import Trainer, Unsupervised


def main() -> int:
    """Train, and write what it took."""
    mode, num_steps, uri, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    Path("/proc/self/clear_refs").write_text("5")  # the high water begins anew, proc_pid_clear_refs(5)
    imports = resident_bytes("VmRSS")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    storage = open_storage(uri)
    packed, tokenizer = (require_manifest(storage, noun, noun) for noun in ("packed", "tokenizer"))
    job = job_here(Corpus(uri, packed, tokenizer), 10_000)
    rank = distributed.get_rank()
    trainer = prepare(job, World(rank, distributed.get_world_size()), Unsupervised())
    for step in range(num_steps):
        train_step(trainer)
        if mode == "checkpoints" and step % 4 == 3:
            save(trainer)
    trainer.writer.join()
    peak = resident_bytes("VmHWM")
    distributed.barrier()
    found = {
        "import_bytes": imports,
        "peak_bytes": peak - imports,
        "state_bytes": _state_bytes(trainer),
        "saved_bytes": _saved_bytes(trainer),
    }
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()
    return 0


def _state_bytes(trainer: Trainer) -> int:
    """Weights, gradients and the two moments."""
    weights: int = sum(parameter.nbytes for parameter in trainer.model.parameters())
    moments: int = sum(
        int(trainer.optimizer.state[parameter][name].nbytes)
        for parameter in trainer.model.parameters()
        for name in ("exp_avg", "exp_avg_sq")
    )
    return 2 * weights + moments


def _saved_bytes(trainer: Trainer) -> int:
    """What autograd keeps between the forward and the backward pass of a micro-batch, weights aside."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in trainer.model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = tensor
        return tensor

    rows = trainer.job.rows.tensor(range(trainer.job.train.micro_batch_size))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trainer.parallel(rows)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


if __name__ == "__main__":
    os._exit(main())
