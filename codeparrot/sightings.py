"""Which runs were trained on rows of a repository, and on which rows.

A run and its checkpoints name the version of the rows that they were trained on (its digest), and the record of that
version says which rows held which repository. Which row comes when is a function of the position, so what a run has
seen up to a step is computed, not remembered. Runs that mix corpora are told, but not their rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from codeparrot.data_order import DataOrder
from codeparrot.errors import ManifestError
from codeparrot.manifest import Manifest, load_manifest
from codeparrot.provenance import read_version
from codeparrot.runs import RUNS, prefix_of, saved_checkpoints
from codeparrot.storage import Storage

Int64 = npt.NDArray[np.int64]

POSITIONS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Training:
    """A run on one version of the rows, as far as its weights are in the store."""

    run: str
    packed: str
    """The digest of the version."""
    seed: int
    global_batch_size: int
    shuffle_shards: int
    mixed: bool
    """Whether other corpora are mixed in."""
    num_steps: int


@dataclass(frozen=True)
class Sighting:
    """A training that has, or may have, seen rows of certain repositories."""

    training: Training
    num_held: int | None
    """How many rows of that version hold them; None: no record of the version is left."""
    rows: tuple[int, ...] | None
    """Those of them that it was trained on; None: not known."""
    first_step: int | None
    """The first step that had one, counted from 1: checkpoints of earlier steps know nothing of them."""


def trainings(storage: Storage) -> list[Training]:
    """All trainings whose weights are in the store, by run. Damaged manifests tell nothing and are passed over."""
    found: dict[tuple[Any, ...], Training] = {}
    for name in sorted({path.split("/")[1] for path, _ in storage.list(f"{RUNS}/")}):
        for manifest, num_steps in _weights(storage, name):
            train = manifest.settings["train"]
            training = Training(
                run=name,
                packed=manifest.inputs["packed"],
                seed=manifest.settings["seed"],
                global_batch_size=train["global_batch_size"],
                shuffle_shards=train["shuffle_shards"],
                mixed=train.get("mixture") is not None,
                num_steps=num_steps,
            )
            key = (name, training.packed, training.seed, training.global_batch_size, training.shuffle_shards)
            if key not in found or found[key].num_steps < num_steps:
                found[key] = training
    return list(found.values())


def _weights(storage: Storage, name: str) -> Iterator[tuple[Manifest, int]]:
    """(manifest, steps done) of the run and of its checkpoints."""
    try:
        made = load_manifest(storage, prefix_of(name))
    except ManifestError:
        made = None
    if made is not None:
        yield made, made.counts.get("num_steps", made.settings["train"]["max_steps"])
    for saved in saved_checkpoints(storage, name):
        if saved.manifest is not None:
            yield saved.manifest, saved.step


def sightings(storage: Storage, packed_prefix: str, repositories: Sequence[str]) -> list[Sighting]:
    """All trainings that have, or may have, seen a train row which holds one of the repositories."""
    found = []
    for training in trainings(storage):
        version = read_version(storage, packed_prefix, training.packed, repositories)
        if version is None:
            found.append(Sighting(training, None, None, None))
            continue
        held = np.unique(np.concatenate([np.empty(0, np.int64), *version.rows.get("train", {}).values()]))
        if not len(held):
            continue
        if training.mixed:
            found.append(Sighting(training, len(held), None, None))
            continue
        order = DataOrder(training.seed, version.num_rows, version.rows_per_shard, training.shuffle_shards)
        rows, first = seen(order, held, training.num_steps * training.global_batch_size)
        if first is not None:
            found.append(Sighting(training, len(held), rows, first // training.global_batch_size + 1))
    return found


def seen(order: DataOrder, wanted: Int64, num_positions: int) -> tuple[tuple[int, ...], int | None]:
    """(those of the rows that stand at the first positions, the first position of one of them)."""
    rows, first = list[int](), None
    stop = min(num_positions, order.num_rows)  # an epoch has every row once
    for low in range(0, stop, POSITIONS_AT_ONCE):
        here = order.rows(np.arange(low, min(stop, low + POSITIONS_AT_ONCE)))
        hits = np.flatnonzero(np.isin(here, wanted))
        if first is None and len(hits):
            first = low + int(hits[0])
        rows += here[hits].tolist()
        if len(rows) == len(wanted):
            break
    return tuple(sorted(rows)), first
