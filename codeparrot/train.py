"""The training loop: the same function in one process, and in every worker of a Ray Train worker group.

A step is a pure function of (weights, optimizer state, step): its rows come from the data order, its learning rate
and its dropout are keyed by the step. Killing a run at any moment and resuming from a checkpoint therefore gives
the weights of an undisturbed run, bit for bit, with the same number of workers.

Gradients are those of the mean over all predicted tokens of the global batch, whatever the number of workers or
micro-batches: every micro-batch's summed loss is divided by the tokens of the whole batch.

Not covered: FSDP, checkpoints in the background, compile.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from codeparrot.checkpoint import CheckpointStore, pack_tensors, unpack_tensors
from codeparrot.dataloader import PackedRows, global_batch, rank_rows
from codeparrot.errors import CheckpointError, TrainingError
from codeparrot.evaluate import row_nll, spread
from codeparrot.model import ModelSettings, build_model, model_config
from codeparrot.optimizer import OptimizerSettings, build_optimizer, learning_rate
from codeparrot.precision import autocast, choose_precision

if TYPE_CHECKING:
    import torch
    from torch import nn

Observe = Callable[[Mapping[str, Any]], None]
"""Receives one mapping per event: {"kind": "step" | "evaluation" | "checkpoint" | ..., "step": ..., ...}."""

OPERATIONAL = {
    "num_workers",
    "micro_batch_size",
    "log_every_steps",
    "eval_every_steps",
    "eval_rows",
    "checkpoint_every_steps",
    "num_to_keep",
    "max_failures",
    "resources_per_worker",
    "use_gpu",
    "placement_timeout_seconds",
}
"""Settings that do not shape the trained model: they may change between the attempts of a run."""


class TrainSettings(OptimizerSettings):
    """One training run."""

    max_steps: PositiveInt
    global_batch_size: PositiveInt
    """Rows of one step over all ranks."""
    micro_batch_size: PositiveInt
    """Most rows of one forward pass on one rank."""
    num_workers: PositiveInt = 4
    """Ray Train workers, one rank each."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the device computes in it, else fp32."""
    log_every_steps: PositiveInt = 10
    eval_every_steps: PositiveInt = 100
    eval_rows: PositiveInt = 256
    """Rows of the validation split, evenly spread, to evaluate during training."""
    checkpoint_every_steps: PositiveInt = 100
    num_to_keep: PositiveInt = 2
    """Newest checkpoints to keep."""
    max_failures: int = Field(default=3, ge=0)
    """Restarts of the worker group before training is given up."""
    resources_per_worker: dict[str, float] = {"CPU": 1}
    """Ray resources of one worker; fractions let four workers share two cores."""
    use_gpu: bool = False
    placement_timeout_seconds: float = Field(default=30, gt=0)
    """How long to wait for the cluster to have room for all workers."""

    @model_validator(mode="after")
    def _batch_divides(self) -> "TrainSettings":
        if self.global_batch_size % self.num_workers:
            raise ValueError(
                f"global_batch_size ({self.global_batch_size}) must be a multiple of num_workers ({self.num_workers})"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """The settings that shape the trained model."""
        return self.model_dump(mode="json", exclude=OPERATIONAL)


@dataclass(frozen=True)
class World:
    """This process among all that train."""

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"


@dataclass(frozen=True)
class TrainingJob:
    """Everything a training run needs to know."""

    model: ModelSettings
    train: TrainSettings
    seed: int
    vocab_size: int
    eos_token_id: int
    rows: PackedRows
    validation: PackedRows
    checkpoints: CheckpointStore


@dataclass
class Trainer:
    """A model, its optimizer and where they are in the run."""

    job: TrainingJob
    world: World
    observe: Observe
    model: "nn.Module"
    parallel: "nn.Module"
    """`model`, wrapped in DDP if there are several ranks."""
    optimizer: "torch.optim.Optimizer"
    precision: str
    step: int = 0
    """Steps done so far."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Logged events up to `step`; part of every checkpoint, so a resumed curve has no gap and no repetition."""


def fit(job: TrainingJob, world: World, observe: Observe) -> Trainer:
    """Train until `max_steps`, from the newest checkpoint if there is one. Collective: every rank calls it."""
    settings = job.train
    trainer = prepare(job, world, observe)
    restore(trainer)
    began, logged = time.perf_counter(), trainer.step
    while trainer.step < settings.max_steps:
        loss, norm = train_step(trainer)
        last = trainer.step == settings.max_steps
        if last or trainer.step % settings.log_every_steps == 0:
            now = time.perf_counter()
            record_step(trainer, loss, norm, trainer.step - logged, now - began)
            began, logged = now, trainer.step
        if last or trainer.step % settings.eval_every_steps == 0:
            record(trainer, "evaluation", {"validation_loss": validation_loss(trainer)})
            began = time.perf_counter()
        if last or trainer.step % settings.checkpoint_every_steps == 0:
            save(trainer)
            began = time.perf_counter()
    return trainer


def prepare(job: TrainingJob, world: World, observe: Observe) -> Trainer:
    """A fresh model and optimizer on this rank's device."""
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    max_seq_len = job.rows.max_seq_len
    config = model_config(job.model, vocab_size=job.vocab_size, max_seq_len=max_seq_len, eos_token_id=job.eos_token_id)
    model: nn.Module = build_model(config, job.seed).to(world.device)
    parallel: nn.Module = model
    if world.world_size > 1:
        assert distributed.is_initialized(), "the process group of the ranks must exist before fit()"
        parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
        _settle_buckets(parallel, job.rows.tensor([0]).to(world.device))
    precision = choose_precision(job.train.precision, world.device)
    optimizer = build_optimizer(model, job.train)
    return Trainer(job, world, observe, model, parallel, optimizer, precision)


def _settle_buckets(parallel: "nn.Module", row: "torch.Tensor") -> None:
    """One backward pass whose gradients are thrown away.

    DDP orders its gradient buckets anew after the first backward pass of a process, and a sum over ranks depends on
    where in a bucket a gradient lies, in the last bit. Without this, the first step after a restart would differ from
    the same step of an undisturbed run.
    """
    row_nll(parallel, row).sum().backward()  # type: ignore[no-untyped-call]
    parallel.zero_grad(set_to_none=True)


def train_step(trainer: Trainer) -> tuple[float, float]:
    """One optimizer update; returns (loss in nats per token, gradient norm), equal on all ranks.

    Raises TrainingError on all ranks if the loss or a gradient is not finite, before the weights are touched.
    """
    import torch

    job, world, settings = trainer.job, trainer.world, trainer.job.train
    torch.manual_seed((job.seed * 1_000_003 + trainer.step) * 65_537 + world.rank)
    batch = global_batch(
        trainer.step,
        global_batch_size=settings.global_batch_size,
        num_rows=job.rows.num_rows,
        seed=job.seed,
    )
    tokens = len(batch) * (job.rows.max_seq_len - 1)
    mine = rank_rows(batch, world.rank, world.world_size)
    trainer.parallel.train()
    total = torch.zeros((), device=world.device)
    for rows, synchronise in _micro_batches(trainer, mine):
        with synchronise, autocast(trainer.precision, trainer.world.device):
            loss = row_nll(trainer.parallel, rows).sum() / tokens
            # DDP averages gradients over the ranks; the loss is already divided by the tokens of all of them.
            (loss * world.world_size).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    if world.world_size > 1:
        torch.distributed.all_reduce(total)
    norm = torch.nn.utils.clip_grad_norm_(
        trainer.model.parameters(), settings.max_grad_norm or float("inf"), foreach=True
    )
    if not bool(torch.isfinite(norm) & torch.isfinite(total)):
        raise TrainingError(
            f"step {trainer.step}: loss {total.item():g}, gradient norm {norm.item():g} is not finite; "
            f"rows {sorted(batch.tolist())}; lower train.learning_rate or look at these rows"
        )
    for group in trainer.optimizer.param_groups:
        group["lr"] = learning_rate(trainer.step, settings.max_steps, settings)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.step += 1
    return total.item(), norm.item()


def _micro_batches(trainer: Trainer, rows: Any) -> "Iterator[tuple[torch.Tensor, AbstractContextManager[Any]]]":
    """(token ids, context): gradients are exchanged only in the last micro-batch's context."""
    size = trainer.job.train.micro_batch_size
    for start in range(0, len(rows), size):
        part = trainer.job.rows.tensor(rows[start : start + size]).to(trainer.world.device)
        waits = trainer.world.world_size > 1 and start + size < len(rows)
        yield part, trainer.parallel.no_sync() if waits else nullcontext()  # type: ignore[operator]


def validation_loss(trainer: Trainer) -> float:
    """Nats per predicted token over the fixed slice, each row once whatever the number of ranks."""
    import torch

    rows = trainer.job.validation
    chosen = spread(rows.num_rows, trainer.job.train.eval_rows)
    mine = chosen[trainer.world.rank :: trainer.world.world_size]
    size = trainer.job.train.micro_batch_size
    total = torch.zeros((), dtype=torch.float64, device=trainer.world.device)
    trainer.model.eval()
    with torch.no_grad(), autocast(trainer.precision, trainer.world.device):
        for start in range(0, len(mine), size):
            total += row_nll(trainer.model, rows.tensor(mine[start : start + size]).to(trainer.world.device)).sum()
    if trainer.world.world_size > 1:
        torch.distributed.all_reduce(total)
    return total.item() / (len(chosen) * (rows.max_seq_len - 1))


def record_step(trainer: Trainer, loss: float, norm: float, num_steps: int, seconds: float) -> None:
    """Log the step just done, with the speed since the last one logged."""
    settings = trainer.job.train
    tokens = settings.global_batch_size * trainer.job.rows.max_seq_len
    values = {
        "loss": loss,
        "grad_norm": norm,
        "learning_rate": learning_rate(trainer.step - 1, settings.max_steps, settings),
        "tokens_seen": trainer.step * tokens,
        "tokens_per_second": num_steps * tokens / max(seconds, 1e-9),
    }
    record(trainer, "step", values)


def record(trainer: Trainer, kind: str, values: Mapping[str, Any]) -> None:
    """Tell who watches, and keep the event in the history."""
    if trainer.world.rank == 0:
        trainer.history.append(tell(trainer, kind, {"time": time.time(), **values}))


def tell(trainer: Trainer, kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Tell who watches. Rank 0 speaks for all."""
    event = {"kind": kind, "step": trainer.step, **values}
    if trainer.world.rank == 0:
        trainer.observe({**event, "max_steps": trainer.job.train.max_steps})
    return event


def save(trainer: Trainer) -> None:
    """Commit a checkpoint of the current step; rank 0 writes, the others go on to the next step."""
    if trainer.world.rank == 0:
        began = time.perf_counter()
        uri = trainer.job.checkpoints.save(trainer.step, state_files(trainer))
        tell(trainer, "checkpoint", {"uri": uri, "seconds": time.perf_counter() - began})


def state_files(trainer: Trainer) -> dict[str, bytes]:
    """The files of a checkpoint."""
    import torch

    job = trainer.job
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in trainer.model.named_parameters()}
    moments = {
        f"{names[parameter]}:{key}": value
        for parameter, values in trainer.optimizer.state.items()
        for key, value in values.items()
    }
    position = trainer.step * job.train.global_batch_size
    state = {
        "step": trainer.step,
        "position": position,
        "epoch": position // job.rows.num_rows,
        "tokens_seen": position * job.rows.max_seq_len,
        "seed": job.seed,
        "train": job.train.model_dump(mode="json"),
        "model": job.model.model_dump(mode="json"),
        "versions": {"torch": str(torch.__version__)},
    }
    return {
        "model.safetensors": pack_tensors(dict(trainer.model.named_parameters())),
        "optimizer.safetensors": pack_tensors(moments),
        "train_state.json": json.dumps(state, indent=1, sort_keys=True).encode(),
        "metrics.jsonl": metrics_lines(trainer),
    }


def metrics_lines(trainer: Trainer) -> bytes:
    """The history as JSON lines."""
    return "".join(json.dumps(event, sort_keys=True) + "\n" for event in trainer.history).encode()


def restore(trainer: Trainer) -> None:
    """Continue from the newest intact checkpoint, the same one on all ranks; fresh if there is none."""
    import torch

    checkpoint = trainer.job.checkpoints.latest()
    if trainer.world.world_size > 1:
        steps: list[int | None] = [None] * trainer.world.world_size
        torch.distributed.all_gather_object(steps, checkpoint.step if checkpoint else 0)
        if len(set(steps)) > 1:
            raise CheckpointError(f"ranks found checkpoints of different steps ({steps}); run again")
    if checkpoint is None:
        return
    state = json.loads(checkpoint.files["train_state.json"])
    weights = unpack_tensors(checkpoint.files["model.safetensors"])
    moments = unpack_tensors(checkpoint.files["optimizer.safetensors"])
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            parameter.copy_(weights[name])
            trainer.optimizer.state[parameter] = {
                key: moments[f"{name}:{key}"].to(parameter.device) for key in ("step", "exp_avg", "exp_avg_sq")
            }
    trainer.step = int(state["step"])
    trainer.history = [json.loads(line) for line in checkpoint.files["metrics.jsonl"].splitlines()]
    tell(trainer, "resumed", {"uri": checkpoint.uri})
