"""Packed rows to a trained model: Ray Train's TorchTrainer runs `codeparrot.train.fit` in every worker.

    python -m ray_jobs.train --config FILE
    python -m ray_jobs.train --config FILE --dry-run [--accelerator NAME] [--mfu SHARE] [--price AMOUNT]

Checkpoints are ours (`codeparrot.checkpoint`): Ray Train restarts the worker group after a failure, and every start,
whether in this job or in a later one, continues from the newest intact checkpoint in the store.
"""

import argparse
import logging
import os
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from codeparrot import launch
from codeparrot.config import Recipe, dump_recipe, load_recipe
from codeparrot.errors import ClusterError, Interrupted
from codeparrot.manifest import File, Manifest, canonical
from codeparrot.objectives import identity_of
from codeparrot.storage import open_storage, probe, sha256_hex
from ray_jobs import sizes
from ray_jobs.cluster import TRAIN_FOLDER, connect, require_room, unwrapped, warn_once
from ray_jobs.interrupt import check
from ray_jobs.progress import Advance, duration, progress
from ray_jobs.stage import Output, Stage, Work, main, reported, shared_options, stage_settings
from ray_jobs.status import status
from ray_jobs.telemetry import Telemetry
from ray_jobs.train_worker import Mailbox, train_worker
from ray_jobs.worker_environment import MODEL_MODULES, forked

logger = logging.getLogger(__name__)

NAME = "ray_jobs.train"
STOP_SECONDS = 25.0
"""How long a signal waits for the last checkpoint: less than the 30 s that Kubernetes gives by default."""
POLL_SECONDS = 1.0
WAY_OUT = "lower train.num_workers or train.resources_per_worker"


def plan(recipe: Recipe) -> tuple[str, launch.Corpora]:
    """The corpora that are mixed in, which other recipes have packed."""
    others = launch.mixed_corpora(recipe, open_storage(recipe.storage.uri))
    return sha256_hex(canonical({prefix: manifest.digest for prefix, manifest in others.items()})), others


def run(work: Work) -> Output:
    """Train, and commit the export that rank 0 wrote.

    A worker group that ends since its node is about to go has written a checkpoint; another one continues from it.
    """
    connect()
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    settings = work.recipe.train
    probe(work.storage, work.recipe.prefix_of("run"))
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # other nodes may go
    environment = forked(*MODEL_MODULES)  # of the first worker, too: all after it begin with what they need
    mailbox = ray.remote(num_cpus=0, scheduling_strategy=here, runtime_env=environment)(Mailbox).remote()
    while True:
        least = settings.min_workers or settings.num_workers
        require_room(least, _worker_resources(work.recipe), settings.placement_timeout_seconds, WAY_OUT)
        with unwrapped(), progress("train", settings.max_steps, "steps") as advance:
            told = _train_once(work, mailbox, advance)
        if told.error is not None:
            raise told.error
        if told.result is not None:
            break
        if told.stopped is None:
            raise ClusterError("training ended without a result; run again to continue from the last checkpoint")
        logger.info("train            a node is about to go: training continues on others")
    launch.checkpoint_store(work.recipe, work.storage, **work.inputs, others=work.plan).remove_others()
    files = [File(**file) for file in told.result["files"]]
    return files, {**told.result["counts"], "num_restarts": told.num_starts - 1}


@dataclass
class Told:
    """What the workers have told."""

    num_starts: int = 0
    """Of worker groups, in this job."""
    num_failures: int = 0
    """Of worker groups since the last checkpoint."""
    failure: str = ""
    """What ended the last of them, if a worker could tell."""
    checkpoint: str = "no checkpoint yet"
    """The newest, for the progress line."""
    trains: bool = False
    """Whether steps are being made, so that a checkpoint can be asked for."""
    error: Exception | None = None
    stopped: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None


def _train_once(work: Work, mailbox: Any, advance: Advance) -> Told:
    """One `trainer.fit()`, restarts after failures included. On a signal, the workers write a checkpoint first."""
    import ray

    told = Told()
    telemetry = Telemetry(work.recipe.run_name)

    def listen(seconds: float) -> None:
        ended.wait(seconds)
        for event in ray.get(mailbox.drain.remote()):
            _watch(event, told, advance)
            telemetry.observe(event)
            status.observe(event, work.recipe.train.max_steps)

    with _fitting(work, mailbox) as ended:
        try:
            while not ended.is_set():
                listen(POLL_SECONDS)
                check()
                work.lease.check()
                if told.num_failures > work.recipe.train.max_failures:
                    raise ClusterError(
                        f"the worker group failed {told.num_failures} times without a new checkpoint in "
                        f"between{told.failure}; look at the cluster, then run again to continue, or raise "
                        "train.max_failures"
                    )
        except (KeyboardInterrupt, Interrupted):
            if told.trains:
                logger.info("train            writing a checkpoint before the end")
                ray.get(mailbox.stop.remote())
                deadline = time.monotonic() + STOP_SECONDS
                while not ended.is_set() and told.stopped is None and time.monotonic() < deadline:
                    listen(POLL_SECONDS)
            raise
        listen(0)
    return told


def _worker_resources(recipe: Recipe) -> dict[str, float]:
    resources = dict(recipe.train.resources_per_worker)
    return {"GPU": 1.0, **resources} if recipe.train.use_gpu else resources


@contextmanager
def _fitting(work: Work, mailbox: Any) -> Iterator[threading.Event]:
    """`trainer.fit()` in a thread, so that this one can show progress and be interrupted; sets the event at its end.

    An event, since `Thread.join` that a signal interrupts takes the thread for ended (Python 3.11).
    """
    # Ray Train's own state is not what a run resumes from, so it gets a name that is never met again.
    name = f"{work.recipe.run_name}-{uuid.uuid4().hex[:8]}"
    trainer = _trainer(work, mailbox, name)
    failure: list[BaseException] = []
    ended = threading.Event()

    def target() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            failure.append(error)
        finally:
            ended.set()

    threading.Thread(target=target, daemon=True).start()
    try:
        yield ended
    finally:
        shutil.rmtree(TRAIN_FOLDER / name, ignore_errors=True)
    if failure:
        raise failure[0]


def _trainer(work: Work, mailbox: Any, name: str) -> Any:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    settings = work.recipe.train
    if settings.min_workers is not None:
        # A node that has just died still counts; a group that waits for it must give up before it can shrink.
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = f"{settings.placement_timeout_seconds:g}"
    config = {
        "recipe": work.recipe.model_dump(mode="json"),
        "uri": work.storage.uri,  # absolute, unlike the recipe's may be
        "sequence": work.lease.sequence,
        "packed": work.inputs["packed"],
        "tokenizer": work.inputs["tokenizer"],
        "others": work.plan,
        "folder": work.attempt.folder,
        "mailbox": mailbox,
    }
    return TorchTrainer(
        train_worker,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if settings.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(settings.min_workers, settings.num_workers) if settings.min_workers else settings.num_workers,
            use_gpu=settings.use_gpu,
            resources_per_worker=_worker_resources(work.recipe),
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(TRAIN_FOLDER),
            worker_runtime_env=forked(*MODEL_MODULES),
            failure_config=ray.train.FailureConfig(max_failures=-1),  # counted by `_watch`
        ),
    )


def _watch(event: dict[str, Any], told: Told, advance: Advance) -> None:
    """Keep what the driver needs, and show the rest to a person."""
    kind = event["kind"]
    if kind == "started":
        told.num_starts, told.trains = event["number"], False
        if told.num_starts > 1:
            logger.warning("train            the worker group was restarted (%d)", told.num_starts - 1)
            told.num_failures += 1
    elif kind == "training":
        told.trains = True
        logger.info("train            training from step %d on %d workers", event["step"], event["world_size"])
    elif kind == "step":
        waits = event["data_wait_seconds"] + event["checkpoint_stall_seconds"]
        note = f"loss {event['loss']:.4f}  {event['tokens_per_second']:,.0f} tokens/s  MFU {event['mfu']:.0%}"
        note += f"  waits {waits / event['seconds']:.1%}" if waits > 0 else ""
        advance(event["step"], note + f"  {told.checkpoint}")
    elif kind == "resumed":
        logger.info("train            resumed at step %d/%d from %s", event["step"], event["max_steps"], event["uri"])
        advance(event["step"])
    elif kind == "evaluation":
        logger.info(
            "train            step %d: validation loss %.4f nats/token", event["step"], event["validation_loss"]
        )
    elif kind == "checkpoint":
        logger.info("train            step %d: checkpoint in %s", event["step"], duration(event["seconds"]))
        told.num_failures, told.checkpoint = 0, f"checkpoint {event['step']}"
    elif kind == "warning":
        warn_once(event["message"])
    elif kind == "failed":
        told.failure = f"; the last one: {event['message']}"
        logger.warning("train            rank %d failed: %s", event["rank"], event["message"])
    elif kind == "error":
        told.error = event["error"]
    elif kind == "stopped":
        told.stopped = event
    else:
        told.result = event


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
    settings=lambda recipe: {
        **stage_settings(recipe, "seed", "model", "run_name"),
        "train": recipe.train.identity(),
        **identity_of(recipe.objective),
    },
    run=run,
    summary=summary,
    plan=plan,
)


def parse(name: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = shared_options(name)
    sizes.add_options(parser)
    options = parser.parse_args(arguments)
    sizes.require_dry_run(parser, options)
    return options


def dry_run(options: argparse.Namespace) -> int:
    """Print the resolved recipe and, as comments, what its training takes; returns the exit code."""
    recipe = load_recipe(options.config, options.overrides)
    print(dump_recipe(recipe) + sizes.estimate(recipe, options), end="")
    return 0


if __name__ == "__main__":
    options = parse(NAME)
    if options.dry_run:
        sys.exit(reported(lambda: dry_run(options), debug=options.debug))
    main(NAME)
