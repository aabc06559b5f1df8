"""From a recipe to a training job, and training it without Ray.

    torchrun --nproc-per-node 4 -m codeparrot.launch --config recipes/tiny.yaml
    python -m codeparrot.launch --config recipes/tiny.yaml

train the rows that the stages before training have packed, in the same run, with the same checkpoints. SIGTERM ends
them with a checkpoint. The export is the business of `python -m ray_jobs.train`, which then finds the last step done.
"""

import argparse
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any, NoReturn

from codeparrot.checkpoint import CheckpointStore, Identity
from codeparrot.code_version import code_version
from codeparrot.config import Recipe, load_recipe
from codeparrot.dataloader import MixedRows, PackedRows
from codeparrot.errors import CodeParrotError, ManifestError
from codeparrot.lease import Lease, holding
from codeparrot.manifest import Manifest, require_manifest
from codeparrot.objectives import fills_holes, identity_of, objective_of
from codeparrot.parallel import World
from codeparrot.storage import Storage, open_storage
from codeparrot.train import fit
from codeparrot.training_job import TrainingJob, Unsupervised

logger = logging.getLogger(__name__)


OWN = "packed"
Corpora = Mapping[str, Manifest]
"""Packed corpora by their prefix."""


def mixed_corpora(recipe: Recipe, storage: Storage) -> Corpora:
    """What `train.mixture` names besides the run's own corpus. Raises ManifestError if one does not go with it."""
    prefixes = [prefix for prefix in recipe.train.mixture or () if prefix != OWN]
    if not prefixes:
        return {}
    own = require_manifest(storage, recipe.prefix_of(OWN), "pack")
    found = {prefix: require_manifest(storage, prefix, "pack") for prefix in prefixes}
    for prefix, manifest in found.items():
        if manifest.inputs.get("tokenizer") != own.inputs.get("tokenizer"):
            raise ManifestError(f"train.mixture: {prefix} was packed with another tokenizer than {OWN}; pack it again")
        if manifest.counts["max_seq_len"] != own.counts["max_seq_len"]:
            raise ManifestError(f"train.mixture: the rows of {prefix} have another length than those of {OWN}")
    return found


def checkpoint_store(
    recipe: Recipe, storage: Storage, packed: Manifest, tokenizer: Manifest, others: Corpora
) -> CheckpointStore:
    """The checkpoints of the recipe's run on these inputs."""
    identity = Identity(
        settings={
            "seed": recipe.seed,
            "model": recipe.model.model_dump(mode="json"),
            "train": recipe.train.identity(),
            **identity_of(recipe.objective),
        },
        inputs={"packed": packed.digest, "tokenizer": tokenizer.digest}
        | {prefix: manifest.digest for prefix, manifest in others.items()},
        code=code_version("codeparrot.train"),
        any_code=recipe.train.any_code_version,
    )
    settings = recipe.train.checkpoint
    return CheckpointStore(
        storage,
        recipe.prefix_of("run"),
        identity,
        num_to_keep=settings.num_to_keep,
        keep_every_steps=settings.keep_every_steps,
    )


def training_job(
    recipe: Recipe,
    storage: Storage,
    packed: Manifest,
    tokenizer: Manifest,
    others: Corpora,
    checkpoints: CheckpointStore,
) -> TrainingJob:
    """The job that a recipe describes, on these rows. Raises TokenizerError if the tokenizer lacks what it needs."""
    corpora = {OWN: packed, **others}
    weights = recipe.train.mixture or {OWN: 1}
    parts = [PackedRows(storage, corpora[name], "train", cache_bytes=recipe.train.cache_bytes) for name in weights]
    tokenizer_json = tokenizer.read(storage, "tokenizer.json").decode() if fills_holes(recipe.objective) else ""
    return TrainingJob(
        model=recipe.model,
        train=recipe.train,
        seed=recipe.seed,
        vocab_size=packed.counts["vocab_size"],
        eos_token_id=packed.counts["eos_token_id"],
        rows=parts[0] if len(parts) == 1 else MixedRows(parts, tuple(weights.values())),
        validation=PackedRows(storage, packed, "validation", cache_bytes=recipe.train.cache_bytes),
        checkpoints=checkpoints,
        objective=objective_of(recipe.objective, tokenizer_json, packed.counts["max_seq_len"]),
    )


class Terminal(Unsupervised):
    """Prints events, and ends training on SIGTERM or SIGINT."""

    def __init__(self, lease: Lease | None) -> None:
        self._lease = lease
        self._stop = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request_stop)

    def _request_stop(self, _: int, __: FrameType | None) -> None:
        self._stop = True

    def observe(self, event: Mapping[str, Any]) -> None:
        shown = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in event.items()}
        print(" ".join(f"{name}={value}" for name, value in shown.items()), flush=True)

    def stop_requested(self) -> bool:
        return self._stop

    def guard(self) -> None:
        if self._lease is not None:
            self._lease.renew()


def train(recipe: Recipe) -> int:
    """Train on the ranks that torchrun has started, or in this process alone; returns the exit code."""
    from torch import cuda, distributed

    storage = open_storage(recipe.storage.uri)
    packed = require_manifest(storage, recipe.prefix_of("packed"), "pack")
    tokenizer = require_manifest(storage, recipe.prefix_of("tokenizer"), "train_tokenizer")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = f"cuda:{local_rank}" if recipe.train.use_gpu and cuda.is_available() else "cpu"
    world = World(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")), device)
    if world.world_size > 1:
        distributed.init_process_group("nccl" if device != "cpu" else "gloo")
    with _lease(storage, recipe, world) as lease:
        others = mixed_corpora(recipe, storage)
        checkpoints = checkpoint_store(recipe, storage, packed, tokenizer, others)
        tokens: list[Any] = [f"{lease.sequence:08d}" if lease else None]
        if world.world_size > 1:
            distributed.broadcast_object_list(tokens)
        checkpoints.token = tokens[0]
        job = training_job(recipe, storage, packed, tokenizer, others, checkpoints)
        trainer = fit(job, world, Terminal(lease))
    if world.world_size > 1:
        distributed.destroy_process_group()
    return 3 if trainer.stopped else 0


@contextlib.contextmanager
def _lease(storage: Storage, recipe: Recipe, world: World) -> Iterator[Lease | None]:
    """Rank 0 holds the run's lease for all."""
    if world.is_first:
        with holding(storage, recipe.prefix_of("run")) as lease:
            yield lease
    else:
        yield None


def leave(code: int) -> NoReturn:
    """End this rank with an exit code, at once.

    Threads of a process group can outlive it (DDP keeps it), and one that lets go of a tensor while the interpreter
    is taken down aborts the process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m codeparrot.launch", description="Train without Ray.")
    parser.add_argument("--config", required=True, metavar="FILE", help="the recipe, a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", dest="overrides")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        return train(load_recipe(options.config, options.overrides))
    except CodeParrotError as error:
        print(f"{error.kind}: {error}", file=sys.stderr, flush=True)
        return error.exit_code


if __name__ == "__main__":
    leave(main())
