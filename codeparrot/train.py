"""The training loop: the same function in one process, under torchrun, and in every worker of a Ray Train worker group.

A step is a pure function of (weights, optimizer state, step): its rows come from the data order, its learning rate
and its dropout are keyed by the step. Killing a run at any moment and resuming from a checkpoint therefore gives
the weights of an undisturbed run, bit for bit, with the same number of workers.

Gradients are those of the mean over all predicted tokens of the global batch, whatever the number of workers or
micro-batches: every micro-batch's summed loss is divided by the tokens of the whole batch.

The device is not waited for but at a log line, an evaluation or a checkpoint. A gradient that is not finite turns the
optimizer off on the device itself, so the weights stay those before the bad step until the next log line ends the run.
"""

import json
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from codeparrot.checkpoint import Checkpoint
from codeparrot.checkpoint_writer import CheckpointWriter
from codeparrot.data_order import rank_rows, spread
from codeparrot.draws import key
from codeparrot.errors import CheckpointError, TrainingError
from codeparrot.manifest import json_lines
from codeparrot.model import build_model, model_config
from codeparrot.optimizer import build_optimizer, learning_rate, set_learning_rates
from codeparrot.parallel import Agreement, World, exchanging, parallelize, reshard, sum_over_ranks, whole
from codeparrot.precision import autocast, choose_precision
from codeparrot.run_record import METRICS, write_record
from codeparrot.storage import persist, sha256_hex
from codeparrot.throughput import flops_per_token, peak_flops
from codeparrot.train_state import restore, snapshot, state_json
from codeparrot.training_job import Supervisor, Trainer, TrainingJob

if TYPE_CHECKING:
    import torch

POLL_SECONDS = 5.0
WINDOWS_AHEAD = 2


def fit(job: TrainingJob, world: World, supervisor: Supervisor) -> Trainer:
    """Train until `max_steps`, from the newest checkpoint if there is one. Collective: every rank calls it."""
    settings = job.train
    trainer = prepare(job, world, supervisor)
    resume(trainer)
    trainer.peak_flops = sum(trainer.agreement.all(peak_flops(world.device, trainer.precision)))
    record(trainer, "training", {"world_size": world.world_size})
    trainer.clock.restart(trainer.step)
    polled = time.monotonic()
    while not trainer.has_ended:
        polls = world.is_first and time.monotonic() - polled > POLL_SECONDS
        stop, polls, busy, ends = trainer.agreement.exchange(
            supervisor.stop_requested(), polls, trainer.writer.busy, trainer.writer.reason_to_end is not None
        )
        if polls:
            polled = time.monotonic()
            stop = supervisor.preempted() or stop
        if ends:
            end_if_any_must(trainer)
        if stop:
            trainer.stopped = True
            break
        loss, norm = train_step(trainer)
        last = trainer.step == settings.max_steps
        if last or trainer.step % settings.log_every_steps == 0:
            record_step(trainer, loss, norm)
        if last or trainer.step % settings.eval_every_steps == 0:
            with trainer.clock.waiting("pause"):
                record(trainer, "evaluation", {"validation_loss": validation_loss(trainer)})
        best = settings.keep_best and trainer.best_step == trainer.step
        if best:
            job.checkpoints.protected = {trainer.step}
        if best or (not last and trainer.step % settings.checkpoint.every_steps == 0):
            save(trainer, busy=busy and not best)
    finish(trainer)
    if settings.keep_best and not trainer.stopped:
        take_best(trainer)
    trainer.agreement.close()
    return trainer


def take_best(trainer: Trainer) -> None:
    """Put the weights of the best checkpoint in the place of the last ones, for the export. Collective."""
    step = trainer.best_step
    checkpoint = trainer.job.checkpoints.load(step) if step is not None else None
    if checkpoint is None:
        raise CheckpointError(f"the best checkpoint, of step {step}, is gone")
    restore(trainer.model, trainer.optimizer, checkpoint)


def prepare(job: TrainingJob, world: World, supervisor: Supervisor) -> Trainer:
    """A fresh model and optimizer on this rank's device."""
    import torch

    settings = job.train
    if world.device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")  # TF32
    max_seq_len = job.rows.max_seq_len
    config = model_config(job.model, vocab_size=job.vocab_size, max_seq_len=max_seq_len, eos_token_id=job.eos_token_id)
    model = build_model(config, job.seed).to(world.device)
    if settings.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    order = job.rows.order(job.seed, settings.shuffle_shards)
    batch = job.batch(job.rows, [0], world.device, job.seed, [0])
    parallel = parallelize(model, settings.parallel, world, batch, compile=settings.compile)
    trainer: Trainer

    def committed(values: Mapping[str, Any]) -> None:
        tell(trainer, "checkpoint", values)
        write_record(job.checkpoints.storage, job.checkpoints.run_prefix, list(trainer.history))

    writer = CheckpointWriter(
        job.checkpoints,
        settings.checkpoint,
        rank=world.rank,
        world_size=world.world_size,
        guard=supervisor.guard,
        committed=committed,
    )
    trainer = Trainer(
        job,
        world,
        supervisor,
        Agreement(world),
        order,
        model,
        parallel,
        build_optimizer(model, settings),
        choose_precision(settings.precision, world.device),
        writer,
        torch.full((), -1, device=world.device),
        flops_per_token(config, num_parameters, job.objective.sizes(max_seq_len)),
    )
    return trainer


def train_step(trainer: Trainer) -> "tuple[torch.Tensor, torch.Tensor]":
    """One optimizer update; returns (this rank's part of the loss in nats per token, gradient norm), on the device."""
    import torch

    job, world, settings = trainer.job, trainer.world, trainer.job.train
    torch.manual_seed(key(job.seed, "step", trainer.step, world.rank))
    batch = trainer.order.global_batch(trainer.step, settings.global_batch_size)
    trainer.rows_digest = sha256_hex(trainer.rows_digest.encode() + batch.astype("<i8").tobytes())
    tokens = job.objective.num_predicted(job.rows.lengths(batch))
    trainer.parallel.train()
    total = torch.zeros((), device=world.device)
    for part, last in _micro_batches(trainer, batch):
        with exchanging(trainer.parallel, last):
            with autocast(trainer.precision, world.device):
                loss = trainer.parallel(*part) / tokens
            # Gradients are averaged over the ranks; the loss is already divided by the tokens of all of them.
            (loss * world.world_size).backward()
        total += loss.detach()
    limit = settings.max_grad_norm or float("inf")
    norm = whole(torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), limit, foreach=True))
    trainer.bad_step.copy_(torch.where((trainer.bad_step < 0) & ~torch.isfinite(norm), trainer.step, trainer.bad_step))
    trainer.optimizer.found_inf = (trainer.bad_step >= 0).float()  # type: ignore[attr-defined]
    set_learning_rates(trainer.optimizer, trainer.step, settings.max_steps, settings)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.step += 1
    return total, norm


def _micro_batches(trainer: Trainer, batch: npt.NDArray[np.int64]) -> "Iterator[tuple[tuple[torch.Tensor, ...], bool]]":
    """(what is asked of some of this rank's rows of a global batch, on the device; whether they are the last)."""
    job, world, size = trainer.job, trainer.world, trainer.job.train.micro_batch_size
    position = trainer.step * job.train.global_batch_size
    job.rows.prefetch(trainer.order.shards(position, WINDOWS_AHEAD))
    rows = rank_rows(batch, world.rank, world.world_size)
    positions = rank_rows(position + np.arange(len(batch)), world.rank, world.world_size)
    for start in range(0, len(rows), size):
        here = slice(start, start + size)
        with trainer.clock.waiting("data"):
            part = job.batch(job.rows, rows[here], world.device, job.seed, positions[here])
        yield part, start + size >= len(rows)


def validation_loss(trainer: Trainer) -> float:
    """Nats per predicted token over the fixed slice, each row once whatever the number of ranks. Collective."""
    import torch

    rows, world = trainer.job.validation, trainer.world
    chosen = spread(rows.num_rows, trainer.job.train.eval_rows)
    seed = key(trainer.job.seed, "validation")
    size = trainer.job.train.micro_batch_size
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    trainer.parallel.eval()
    with torch.no_grad(), autocast(trainer.precision, world.device):
        for start in range(0, len(chosen), size * world.world_size):  # as many forward passes on every rank
            batch = chosen[start : start + size * world.world_size]
            mine = batch[world.rank :: world.world_size]
            some = mine or batch[:1]
            nll = trainer.parallel(*trainer.job.batch(rows, some, world.device, seed, some))
            total += nll if mine else 0.0
    reshard(trainer.parallel)
    num_predicted = trainer.job.objective.num_predicted(rows.lengths(chosen))
    return sum_over_ranks(total, world).item() / num_predicted


def record_step(trainer: Trainer, loss: "torch.Tensor", norm: "torch.Tensor") -> None:
    """Log the step just done, with the speed since the last one logged. Collective.

    Raises TrainingError on all ranks if a gradient since then was not finite.
    """
    settings = trainer.job.train
    total = sum_over_ranks(loss.clone(), trainer.world).item()
    require_finite(trainer, loss)
    num_steps, seconds, waits = trainer.clock.read(trainer.step)
    tokens = settings.global_batch_size * trainer.job.rows.max_seq_len
    useful = sum(event.get("seconds", 0.0) for event in trainer.history if event["kind"] == "step") + seconds
    values = {
        "loss": total,
        "grad_norm": norm.item(),
        "learning_rate": learning_rate(trainer.step - 1, settings.max_steps, settings),
        "tokens_seen": trainer.step * tokens,
        "rows_digest": trainer.rows_digest,
        "seconds": seconds,
        "tokens_per_second": num_steps * tokens / seconds,
        "mfu": num_steps * tokens / seconds * trainer.flops_per_token / trainer.peak_flops,
        "goodput": useful / max(useful, time.time() - trainer.history[0]["time"]),
        "data_wait_seconds": waits["data"],
        "checkpoint_stall_seconds": waits["checkpoint"],
    }
    record(trainer, "step", values)


def require_finite(trainer: Trainer, loss: "torch.Tensor | None" = None) -> None:
    """Raise TrainingError on all ranks, with the rows to look at, if a gradient was not finite. Collective."""
    import torch

    bad = int(trainer.bad_step.item())
    if bad < 0:
        return
    batch = trainer.order.global_batch(bad, trainer.job.train.global_batch_size)
    finite = trainer.agreement.all(loss is not None and bool(torch.isfinite(loss)))
    ranks = [rank for rank, fine in enumerate(finite) if not fine] or list(range(trainer.world.world_size))
    rows = {rank: rank_rows(batch, rank, trainer.world.world_size).tolist() for rank in ranks}
    path = f"{trainer.job.checkpoints.run_prefix}/not-finite.json"
    if trainer.world.is_first:
        text = json.dumps({"step": bad, "rows_by_rank": rows}, indent=1).encode()
        trainer.job.checkpoints.storage.write(path, text)
    raise TrainingError(
        f"step {bad}: the gradient is not finite; rows {', '.join(f'{rows[rank]} on rank {rank}' for rank in ranks)} "
        f"(recorded in {trainer.job.checkpoints.storage.uri}/{path}); lower train.learning_rate or look at these rows"
    )


def record(trainer: Trainer, kind: str, values: Mapping[str, Any]) -> None:
    """Tell who watches, and keep the event in the history."""
    event = tell(trainer, kind, {"time": time.time(), **values})
    trainer.history.append(event)


def tell(trainer: Trainer, kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Tell who watches. Rank 0 speaks for all."""
    event = {"kind": kind, "step": trainer.step, **values}
    if trainer.world.is_first:
        trainer.supervisor.observe({**event, "max_steps": trainer.job.train.max_steps})
    return event


def save(trainer: Trainer, *, busy: bool = False) -> None:
    """Begin to write a checkpoint of the current step. Collective.

    If another is being written (`busy`, the same on all ranks), this one is left out, unless it is to be kept for
    ever; then, and without `busy`, the one before is waited for.
    """
    settings = trainer.job.train.checkpoint
    forever = settings.keep_every_steps and trainer.step % settings.keep_every_steps == 0
    if busy and not forever:
        return
    with trainer.clock.waiting("checkpoint"):
        trainer.writer.join()
        require_finite(trainer)
        others = {"train_state.json": state_json(position(trainer)), METRICS: json_lines(trainer.history)}
        files = snapshot(trainer.model, trainer.optimizer, trainer.world, others, trainer.host)
        trainer.writer.start(trainer.step, files)


def finish(trainer: Trainer) -> None:
    """Wait for the checkpoint of the current step, and write it if there is none yet. Collective.

    One that fails is tried again until the budget is spent, or, if training was asked to stop, given up.
    """
    while True:
        trainer.writer.join()
        end_if_any_must(trainer)
        writer, step = trainer.writer, trainer.step
        states = trainer.agreement.all((writer.committed == step, writer.started == step))
        if all(done for done, _ in states) or (trainer.stopped and all(tried for _, tried in states)):
            return
        save(trainer)


def end_if_any_must(trainer: Trainer) -> None:
    """Raise, on all ranks, what keeps one of them from writing checkpoints. Collective."""
    for reason in trainer.agreement.all(trainer.writer.reason_to_end):
        if reason is not None:
            raise reason


def position(trainer: Trainer) -> dict[str, Any]:
    """Where the run is, and what it is: `train_state.json`."""
    job = trainer.job
    rows = trainer.step * job.train.global_batch_size
    return {
        "step": trainer.step,
        "position": rows,
        "epoch": rows // job.rows.num_rows,
        "tokens_seen": rows * job.rows.max_seq_len,
        "rows_digest": trainer.rows_digest,
        "seed": job.seed,
        "world_size": trainer.world.world_size,
        "train": job.train.model_dump(mode="json"),
        "model": job.model.model_dump(mode="json"),
    }


def resume(trainer: Trainer) -> None:
    """Continue from the newest intact checkpoint, the same one on all ranks; fresh if there is none. Collective."""
    store, patience = trainer.job.checkpoints, trainer.job.train.checkpoint.retry_seconds

    def newest() -> Checkpoint | None:
        return persist(store.latest, patience, "training waits for its checkpoint")

    checkpoint = newest() if trainer.world.is_first else None
    step = trainer.agreement.from_first(checkpoint.step if checkpoint else None)
    if step is None:
        return
    if checkpoint is None:
        checkpoint = persist(lambda: store.load(step), patience, "training waits for its checkpoint")
    if checkpoint is None:
        raise CheckpointError(f"the checkpoint of step {step} vanished while the ranks loaded it; run again")
    restore(trainer.model, trainer.optimizer, checkpoint)
    state = json.loads(checkpoint.read("train_state.json"))
    trainer.step, trainer.rows_digest = int(state["step"]), str(state["rows_digest"])
    trainer.history = [json.loads(line) for line in checkpoint.read(METRICS).splitlines()]
    trainer.writer.started = trainer.writer.committed = trainer.step
    if trainer.job.train.keep_best and trainer.best_step is not None:
        store.protected = {trainer.best_step}
    tell(trainer, "resumed", {"uri": checkpoint.uri})
