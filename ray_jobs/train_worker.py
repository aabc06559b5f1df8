"""What every Ray Train worker runs, and how it talks with the driver.

Events go to a mailbox (an actor), which is no barrier, unlike `ray.train.report`; through it the driver also asks
for a checkpoint and an end.
"""

import threading
from collections.abc import Mapping
from typing import Any

from codeparrot.checkpoint import CheckpointStore
from codeparrot.config import Recipe
from codeparrot.errors import CheckpointError, EmptyCorpusError, LeaseError, TokenizerError, TrainingError
from codeparrot.launch import checkpoint_store, training_job
from codeparrot.lease import require_holder
from codeparrot.manifest import Manifest, json_lines, write_file
from codeparrot.model import export_files
from codeparrot.parallel import World, whole
from codeparrot.run_record import METRICS
from codeparrot.storage import Storage, open_storage
from codeparrot.train import fit
from codeparrot.training_job import Trainer
from ray_jobs.cluster import MAX_SHOWN_ERROR, warnings_to

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
POLL_SECONDS = 1.0
FINAL = (CheckpointError, EmptyCorpusError, LeaseError, TokenizerError, TrainingError)
"""Errors that are the same after every restart: no use in trying again."""


class Mailbox:
    """Events from the workers, until the driver collects them, and its wish that they end."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._num_starts = 0
        self._stopping = False

    def put(self, event: Mapping[str, Any]) -> None:
        """Add one event."""
        self._events.append(dict(event))

    def drain(self) -> list[dict[str, Any]]:
        """All events since the last call."""
        events, self._events = self._events, []
        return events

    def next_start(self) -> int:
        """How many worker groups have begun, the one that asks included."""
        self._num_starts += 1
        return self._num_starts

    def stop(self) -> None:
        """Ask the workers to write a checkpoint and end."""
        self._stopping = True

    def stopping(self) -> bool:
        """Whether they are asked to."""
        return self._stopping


class RaySupervisor:
    """The driver and the cluster, as one rank sees them."""

    def __init__(self, mailbox: Any, storage: Storage, prefix: str, sequence: int, world: World) -> None:
        self._mailbox = mailbox
        self._storage, self._prefix, self._sequence = storage, prefix, sequence
        self._stop = threading.Event()
        if world.is_first:
            threading.Thread(target=self._watch, name="mailbox", daemon=True).start()

    def _watch(self) -> None:
        import ray

        pause = threading.Event()
        while not pause.wait(POLL_SECONDS):
            try:
                if ray.get(self._mailbox.stopping.remote()):
                    self._stop.set()
                    return
            except Exception:  # noqa: BLE001 - the driver is gone, and Ray ends this process
                return

    def observe(self, event: Mapping[str, Any]) -> None:
        self._mailbox.put.remote(dict(event))

    def stop_requested(self) -> bool:
        return self._stop.is_set()

    def preempted(self) -> bool:
        import ray.train

        return ray.train.get_preemption_info() is not None

    def guard(self) -> None:
        require_holder(self._storage, self._prefix, self._sequence)


def train_worker(config: dict[str, Any]) -> None:
    """The training function of Ray Train."""
    import ray
    import ray.train
    import torch
    from ray.train.torch import get_device

    recipe = Recipe.model_validate(config["recipe"])
    storage = open_storage(config["uri"])
    torch.set_num_threads(max(1, int(recipe.train.resources_per_worker.get("CPU", 1))))
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size(), str(get_device()))
    mailbox = config["mailbox"]

    def warn(message: str) -> None:
        mailbox.put.remote({"kind": "warning", "message": message})

    with warnings_to(warn):
        supervisor = RaySupervisor(mailbox, storage, recipe.prefix_of("run"), config["sequence"], world)
        checkpoints = checkpoint_store(recipe, storage, config["packed"], config["tokenizer"], config["others"])
        checkpoints.token = _token(config, world)
        try:
            job = training_job(recipe, storage, config["packed"], config["tokenizer"], config["others"], checkpoints)
            trainer = fit(job, world, supervisor)
        except FINAL as error:
            if world.is_first:
                ray.get(mailbox.put.remote({"kind": "error", "error": error}))
            return
        except Exception as error:
            message = f"{type(error).__name__}: {' '.join(str(error).split())[:MAX_SHOWN_ERROR]}"
            ray.get(mailbox.put.remote({"kind": "failed", "rank": world.rank, "message": message}))
            raise
        _conclude(trainer, recipe, storage, config)


def _token(config: Mapping[str, Any], world: World) -> str:
    """Of this worker group: higher than that of every group and every driver before. The same on all ranks."""
    import ray
    import ray.train.collective

    number = ray.get(config["mailbox"].next_start.remote()) if world.is_first else None
    if world.is_first:
        ray.get(config["mailbox"].put.remote({"kind": "started", "number": number}))
    number = ray.train.collective.broadcast_from_rank_zero(number)
    return f"{config['sequence']:08d}.{number:04d}"


def _conclude(trainer: Trainer, recipe: Recipe, storage: Storage, config: Mapping[str, Any]) -> None:
    """Rank 0 tells how training ended, and exports the model if it is complete."""
    import ray

    event: dict[str, Any] = {"kind": "stopped", "step": trainer.step, "saved": trainer.writer.committed == trainer.step}
    if not trainer.stopped:
        weights = {name: whole(tensor.detach()) for name, tensor in trainer.model.named_parameters()}  # tied ones once
        if trainer.world.is_first:
            files = _write_export(trainer, weights, storage, config["folder"], config["tokenizer"])
            event = {"kind": "result", "files": files, "counts": run_counts(trainer, recipe)}
    if trainer.world.is_first:
        ray.get(config["mailbox"].put.remote(event))


def _write_export(
    trainer: Trainer, weights: Mapping[str, Any], storage: Storage, folder: str, tokenizer: Manifest
) -> list[dict[str, Any]]:
    model: Any = trainer.model
    named = export_files(model, weights)
    named |= {name: tokenizer.read(storage, name) for name in TOKENIZER_FILES}
    files = [write_file(storage, folder, f"export/{name}", data) for name, data in named.items()]
    files.append(write_file(storage, folder, METRICS, json_lines(trainer.history)))
    return [vars(file) for file in files]


def run_counts(trainer: Trainer, recipe: Recipe) -> dict[str, Any]:
    """What the manifest of a run records."""
    steps = [event for event in trainer.history if event["kind"] == "step"]
    checkpoints: CheckpointStore = trainer.job.checkpoints
    best = trainer.best_step if recipe.train.keep_best else None
    return {
        "num_parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "world_size": trainer.world.world_size,
        "num_steps": trainer.step,
        "best_step": best,
        "tokens_seen": steps[-1]["tokens_seen"] if steps else 0,
        "loss": steps[-1]["loss"] if steps else None,
        "validation_loss": _validation_loss(trainer, recipe),
        "precision": trainer.precision,
        "device": trainer.world.device,
        "checkpoint_uri": checkpoints.uri(best if best is not None else trainer.step),
    }


def _validation_loss(trainer: Trainer, recipe: Recipe) -> float | None:
    """Of the weights that are exported."""
    losses = dict(trainer.evaluations())
    step = trainer.best_step if recipe.train.keep_best else max(losses, default=None)
    return losses[step] if step is not None else None
