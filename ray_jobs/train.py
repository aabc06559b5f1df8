"""Packed rows to a trained model: Ray Train's TorchTrainer runs `codeparrot.train.fit` in every worker.

Workers talk to the driver through a mailbox (an actor), which is no barrier, unlike `ray.train.report`. Checkpoints
are ours (`codeparrot.checkpoint`): Ray Train restarts the worker group after a failure, and every start, whether in
this job or in a later one, continues from the newest intact checkpoint in the store.
"""

import logging
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from codeparrot.checkpoint import CheckpointStore
from codeparrot.config import Recipe
from codeparrot.dataloader import PackedRows
from codeparrot.errors import ClusterError, TrainingError
from codeparrot.generate import export_files
from codeparrot.manifest import File, Manifest, write_file
from codeparrot.storage import Storage, open_storage
from codeparrot.train import Trainer, TrainingJob, World, fit, metrics_lines
from ray_jobs.cluster import TRAIN_FOLDER, connect, require_room, unwrapped
from ray_jobs.interrupt import check
from ray_jobs.progress import Advance, duration, progress
from ray_jobs.stage import Output, Stage, Work, main, prefix_of, stage_settings

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class Mailbox:
    """Events from the workers, until the driver collects them."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []

    def put(self, event: Mapping[str, Any]) -> None:
        """Add one event."""
        self._events.append(dict(event))

    def drain(self) -> list[dict[str, Any]]:
        """All events since the last call."""
        events, self._events = self._events, []
        return events


def run(work: Work) -> Output:
    """Train, and commit the export that rank 0 wrote."""
    connect()
    import ray

    settings = work.recipe.train
    require_room(settings.num_workers, _worker_resources(work.recipe), settings.placement_timeout_seconds)
    mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
    events: dict[str, Any] = {"num_starts": 0}
    with unwrapped(), progress("train", settings.max_steps, "steps") as advance, _fitting(work, mailbox) as running:
        while running.is_alive():
            running.join(POLL_SECONDS)
            check()
            for event in ray.get(mailbox.drain.remote()):
                _watch(event, events, advance)
    for event in ray.get(mailbox.drain.remote()):
        _watch(event, events, lambda *_: None)
    if "error" in events:
        raise TrainingError(events["error"]["message"])
    if "result" not in events:
        raise ClusterError("training ended without a result; run again to continue from the last checkpoint")
    result = events["result"]
    files = [File(**file) for file in result["files"]]
    return files, {**result["counts"], "num_restarts": max(0, events["num_starts"] - 1)}


def _worker_resources(recipe: Recipe) -> dict[str, float]:
    resources = dict(recipe.train.resources_per_worker)
    return {"GPU": 1.0, **resources} if recipe.train.use_gpu else resources


@contextmanager
def _fitting(work: Work, mailbox: Any) -> Iterator[threading.Thread]:
    """`trainer.fit()` in a thread, so that this one can show progress and be interrupted."""
    trainer = _trainer(work, mailbox)
    failure: list[BaseException] = []

    def target() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            failure.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    yield thread
    if failure:
        raise failure[0]


def _trainer(work: Work, mailbox: Any) -> Any:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    settings = work.recipe.train
    config = {
        "recipe": work.recipe.model_dump(mode="json"),
        "uri": work.storage.uri,  # absolute, unlike the recipe's may be
        "packed": work.inputs["packed"],
        "tokenizer": work.inputs["tokenizer"],
        "folder": work.attempt.folder,
        "mailbox": mailbox,
    }
    return TorchTrainer(
        train_worker,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if settings.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.num_workers,
            use_gpu=settings.use_gpu,
            resources_per_worker=_worker_resources(work.recipe),
        ),
        run_config=ray.train.RunConfig(
            # Ray Train's own state is not what a run resumes from, so it gets a name that is never met again.
            name=f"{work.recipe.run_name}-{uuid.uuid4().hex[:8]}",
            storage_path=str(TRAIN_FOLDER),
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
        ),
    )


def train_worker(config: dict[str, Any]) -> None:
    """What every Ray Train worker runs."""
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

    def observe(event: Mapping[str, Any]) -> None:
        mailbox.put.remote(dict(event))

    if world.rank == 0:
        observe({"kind": "started"})
    job = training_job(recipe, storage, config["packed"], config["tokenizer"])
    try:
        trainer = fit(job, world, observe)
    except TrainingError as error:  # the same on all ranks and after every restart: no use in trying again
        if world.rank == 0:
            ray.get(mailbox.put.remote({"kind": "error", "message": str(error)}))
        return
    if world.rank == 0:
        files = _write_export(trainer, storage, config["folder"], config["tokenizer"])
        event = {"kind": "result", "files": files, "counts": run_counts(trainer, recipe)}
        ray.get(mailbox.put.remote(event))


def training_job(recipe: Recipe, storage: Storage, packed: Manifest, tokenizer: Manifest) -> TrainingJob:
    """The job that a recipe describes, on these inputs."""
    checkpoints = CheckpointStore(
        storage,
        prefix_of("run", recipe),
        settings={"seed": recipe.seed, "model": recipe.model.model_dump(mode="json"), "train": recipe.train.identity()},
        inputs={"packed": packed.digest, "tokenizer": tokenizer.digest},
        num_to_keep=recipe.train.num_to_keep,
    )
    return TrainingJob(
        model=recipe.model,
        train=recipe.train,
        seed=recipe.seed,
        vocab_size=packed.counts["vocab_size"],
        eos_token_id=packed.counts["eos_token_id"],
        rows=PackedRows(storage, packed, "train"),
        validation=PackedRows(storage, packed, "validation"),
        checkpoints=checkpoints,
    )


def run_counts(trainer: Trainer, recipe: Recipe) -> dict[str, Any]:
    """What the manifest of a run records."""
    steps = [event for event in trainer.history if event["kind"] == "step"]
    evaluations = [event for event in trainer.history if event["kind"] == "evaluation"]
    return {
        "num_parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "world_size": trainer.world.world_size,
        "max_steps": recipe.train.max_steps,
        "tokens_seen": steps[-1]["tokens_seen"] if steps else 0,
        "loss": steps[-1]["loss"] if steps else None,
        "validation_loss": evaluations[-1]["validation_loss"] if evaluations else None,
        "precision": trainer.precision,
        "device": trainer.world.device,
        "checkpoint_uri": trainer.job.checkpoints.uri(trainer.step),
    }


def _write_export(trainer: Trainer, storage: Storage, folder: str, tokenizer: Manifest) -> list[dict[str, Any]]:
    named = export_files(trainer.model)
    named |= {name: tokenizer.read(storage, name) for name in TOKENIZER_FILES}
    files = [write_file(storage, folder, f"export/{name}", data) for name, data in named.items()]
    files.append(write_file(storage, folder, "metrics.jsonl", metrics_lines(trainer)))
    return [vars(file) for file in files]


def _watch(event: dict[str, Any], events: dict[str, Any], advance: Advance) -> None:
    """Keep what the driver needs, and show the rest to a person."""
    kind = event["kind"]
    if kind == "started":
        events["num_starts"] += 1
        if events["num_starts"] > 1:
            logger.warning("train            the worker group was restarted (%d)", events["num_starts"] - 1)
    elif kind == "step":
        note = f"loss {event['loss']:.4f}  {event['tokens_per_second']:,.0f} tokens/s"
        advance(event["step"], note)
    elif kind == "resumed":
        logger.info("train            resumed at step %d/%d from %s", event["step"], event["max_steps"], event["uri"])
        advance(event["step"])
    elif kind == "evaluation":
        logger.info(
            "train            step %d: validation loss %.4f nats/token", event["step"], event["validation_loss"]
        )
    elif kind == "checkpoint":
        logger.info("train            step %d: checkpoint in %s", event["step"], duration(event["seconds"]))
    else:
        events[kind] = event


def summary(manifest: Manifest) -> tuple[str, str]:
    """Tokens seen; the model and its validation loss."""
    counts: Any = manifest.counts
    return (
        f"{counts['tokens_seen']:,} tokens",
        f"{counts['num_parameters'] / 1e6:.1f}M parameters, validation loss {counts['validation_loss']:.3f}",
    )


STAGE = Stage(
    makes="run",
    inputs=("packed", "tokenizer"),
    settings=lambda recipe: stage_settings(recipe, "seed", "model", "run_name") | {"train": recipe.train.identity()},
    code=(
        "codeparrot.model",
        "codeparrot.optimizer",
        "codeparrot.precision",
        "codeparrot.dataloader",
        "codeparrot.checkpoint",
        "codeparrot.train",
        "ray_jobs.train",
    ),
    run=run,
    summary=summary,
)

if __name__ == "__main__":
    main("ray_jobs.train")
