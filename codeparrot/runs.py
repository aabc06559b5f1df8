"""Runs as their store has them: what there is, whether it is intact, and deleting it.

All is read from the store, so any machine can ask, also while a run is written: what training removes meanwhile is no
damage. Deleting takes the leases of what it deletes, and removes manifests first, so nothing half-deleted is ever
read. The leases themselves stay: their sequence must go on growing (`codeparrot.lease`).
"""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from codeparrot.checkpoint import Checkpoint, CheckpointStore, Identity
from codeparrot.errors import CheckpointError, ManifestError
from codeparrot.lease import LEASE, holding, living
from codeparrot.manifest import MANIFEST, Manifest, load_manifest
from codeparrot.run_record import METRICS
from codeparrot.storage import Storage

logger = logging.getLogger(__name__)

RUNS = "runs"


@dataclass(frozen=True)
class Run:
    """One run at a glance."""

    name: str
    state: str
    """`complete`: its manifest exists. `training`: a living process holds its lease. `interrupted`: neither.
    `damaged`: its manifest cannot be read."""
    steps: int
    """Done: by the complete run, or up to its newest checkpoint."""
    max_steps: int | None
    newest_checkpoint: int | None
    """Its step."""
    validation_loss: float | None
    """Nats per token: of the complete run, or the last one known at the newest checkpoint."""
    size_bytes: int
    """Of everything under its prefix."""
    created: str | None
    """When it, or else its newest checkpoint, was committed: UTC, ISO 8601."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that has been committed."""

    step: int
    manifest: Manifest | None
    """None: it is there, but cannot be read."""


@dataclass(frozen=True)
class Finding:
    """What verifying one output has found."""

    step: int | None
    """Of a checkpoint; None: the run's own output."""
    num_files: int
    size_bytes: int
    bad: tuple[str, ...]
    """The names of files that are damaged or missing."""


def prefix_of(name: str) -> str:
    """Where a run lies, relative to the base of the storage."""
    return f"{RUNS}/{name}"


def find_runs(storage: Storage, name: str = "") -> list[Run]:
    """All runs, or the one of this name if it exists, by name."""
    objects: dict[str, dict[str, int]] = {}
    for path, size in storage.list(f"{prefix_of(name)}/" if name else f"{RUNS}/"):
        run, slash, rest = path.removeprefix(f"{RUNS}/").partition("/")
        if slash:
            objects.setdefault(run, {})[rest] = size
    open_ones = [run for run, sizes in objects.items() if MANIFEST not in sizes and LEASE in sizes]
    alive = living(storage, [prefix_of(run) for run in open_ones])
    return [
        _glance(storage, run, sum(sizes.values()), alive=prefix_of(run) in alive)
        for run, sizes in sorted(objects.items())
        if prefix_of(run) in alive or not all(map(_is_lease, sizes))
    ]


def require_run(storage: Storage, name: str) -> Run:
    """The run of this name. Raises ManifestError if there is none."""
    found = find_runs(storage, name)
    if not found:
        raise ManifestError(f"{storage.uri} has no run {name!r}; `python -m ray_jobs.runs ... list` shows those it has")
    return found[0]


def _is_lease(path: str) -> bool:
    return path.rpartition("/")[2] == LEASE


def _glance(storage: Storage, name: str, size_bytes: int, *, alive: bool) -> Run:
    newest = max((saved for saved in saved_checkpoints(storage, name) if saved.manifest), key=_age, default=None)
    state, made = "training" if alive else "interrupted", None
    try:
        made = load_manifest(storage, prefix_of(name))
        state = "complete" if made else state
    except ManifestError:
        state = "damaged"
    source = made or (newest.manifest if newest else None)
    max_steps = source.settings.get("train", {}).get("max_steps") if source else None
    if made:
        steps, loss = made.counts.get("num_steps", max_steps or 0), made.counts.get("validation_loss")
    else:
        steps, loss = (newest.step, _last_loss(storage, newest)) if newest else (0, None)
    created = source.created if source else None
    return Run(name, state, steps, max_steps, newest.step if newest else None, loss, size_bytes, created)


def saved_checkpoints(storage: Storage, name: str) -> list[Saved]:
    """The checkpoints of a run, whichever training they belong to, by step."""
    store = _checkpoints(storage, name)
    found = []
    for step in store.steps():
        try:
            manifest = load_manifest(storage, store.prefix_of(step))
        except ManifestError:
            found.append(Saved(step, None))
            continue
        if manifest is not None:  # else training has removed it meanwhile
            found.append(Saved(step, manifest))
    return found


def _checkpoints(storage: Storage, name: str) -> CheckpointStore:
    return CheckpointStore(storage, prefix_of(name), Identity({}, {}))


def _age(saved: Saved) -> tuple[str, int]:
    """Later checkpoints have a greater one: by the token of the attempt that wrote them, then by step."""
    assert saved.manifest is not None
    return saved.manifest.folder.rpartition("-")[2], saved.step


def _last_loss(storage: Storage, saved: Saved) -> float | None:
    assert saved.manifest is not None
    with contextlib.suppress(ManifestError):
        losses = validation_losses(saved.manifest.read(storage, METRICS))
        return losses[max(losses)] if losses else None
    return None


def validation_losses(metrics: bytes) -> dict[int, float]:
    """Validation loss by step, in the lines of a run's metrics."""
    events: list[Mapping[str, Any]] = [json.loads(line) for line in metrics.splitlines()]
    return {event["step"]: event["validation_loss"] for event in events if event["kind"] == "evaluation"}


def verify(storage: Storage, name: str, step: int | None = None) -> Iterator[Finding]:
    """Read every file of every checkpoint (or of that of one step) and of the run's output, and check its hash.

    Raises CheckpointError if the step has no checkpoint.
    """
    store = _checkpoints(storage, name)
    steps = store.steps()
    if step is not None:
        _require_step(storage, name, step, steps)
        steps = [step]
    for each in steps:
        yield from _verified(storage, store.prefix_of(each), each)
    if step is None:
        yield from _verified(storage, prefix_of(name), None)


def _verified(storage: Storage, prefix: str, step: int | None) -> Iterator[Finding]:
    """One finding, or none if there is no output, or no more."""
    while True:
        try:
            manifest = load_manifest(storage, prefix)
        except ManifestError:
            yield Finding(step, 0, 0, (MANIFEST,))
            return
        if manifest is None:
            return
        bad = _bad_files(storage, manifest)
        with contextlib.suppress(ManifestError):
            if bad and load_manifest(storage, prefix) != manifest:  # removed or replaced meanwhile: no damage
                continue
        yield Finding(step, len(manifest.files), sum(file.size_bytes for file in manifest.files), tuple(bad))
        return


def _bad_files(storage: Storage, manifest: Manifest) -> list[str]:
    bad = []
    for name in manifest.names():
        try:
            manifest.read(storage, name)
        except ManifestError:
            bad.append(name)
    return bad


def choose_checkpoint(storage: Storage, name: str, step: int | None = None) -> Checkpoint:
    """The newest intact checkpoint of a run, or that of one step, whose files are not read yet.

    Raises CheckpointError if there is none, ManifestError if the manifest of that step is damaged.
    """
    store = _checkpoints(storage, name)
    if step is not None:
        _require_step(storage, name, step, store.steps())
        manifest = load_manifest(storage, store.prefix_of(step))
        if manifest is not None:
            return Checkpoint(step, store.uri(step), manifest, storage)
    readable = [saved for saved in saved_checkpoints(storage, name) if saved.manifest]
    for saved in sorted(readable, key=_age, reverse=True):
        assert saved.manifest is not None
        bad = _bad_files(storage, saved.manifest)
        if not bad:
            return Checkpoint(saved.step, store.uri(saved.step), saved.manifest, storage)
        logger.warning("checkpoint of step %d is damaged (%s); trying the one before", saved.step, ", ".join(bad))
    raise CheckpointError(f"{storage.uri}/{prefix_of(name)} has no intact checkpoint")


def _require_step(storage: Storage, name: str, step: int, steps: list[int]) -> None:
    if step not in steps:
        there = ", ".join(map(str, steps)) or "none"
        raise CheckpointError(f"{storage.uri}/{prefix_of(name)} has no checkpoint of step {step}; there are: {there}")


def doomed(storage: Storage, name: str, step: int | None = None) -> list[tuple[str, int]]:
    """(path, size) of what deleting a run, or the checkpoint of one step, removes: manifests first, by depth."""
    prefix = _prefix(storage, name, step)
    found = [(path, size) for path, size in storage.list(f"{prefix}/") if not _is_lease(path)]
    return sorted(found, key=lambda item: (not _is_manifest(item[0]), item[0].count("/"), item[0]))


def delete(storage: Storage, name: str, step: int | None = None) -> list[tuple[str, int]]:
    """Delete a run, or the checkpoint of one step; returns (path, size) of what there was.

    Raises LeaseHeld if a living process writes the run or one of its outputs.
    """
    prefix = _prefix(storage, name, step)
    stored = [path for path, _ in storage.list(f"{prefix}/")]
    leased = {prefix_of(name), *(path.removesuffix(f"/{LEASE}") for path in stored if _is_lease(path))}
    with contextlib.ExitStack() as held:
        for each in sorted(leased):
            held.enter_context(holding(storage, each))
        found = doomed(storage, name, step)
        manifests = [path for path, _ in found if _is_manifest(path)]
        storage.delete(manifests[:1])  # the run's own, or the checkpoint's: one request keeps no order
        storage.delete(manifests[1:])
        storage.delete([path for path, _ in found if not _is_manifest(path)])
        storage.sweep(f"{prefix}/")
    return found


def _prefix(storage: Storage, name: str, step: int | None) -> str:
    return prefix_of(name) if step is None else _checkpoints(storage, name).prefix_of(step)


def _is_manifest(path: str) -> bool:
    return path.rpartition("/")[2] == MANIFEST
