"""Checkpoints: a step's whole state, committed at once, verified when loaded.

    runs/tiny/checkpoints/step-00000120/manifest.json
    runs/tiny/checkpoints/step-00000120/data/9b1c...-00000007/model-00000-of-00004.safetensors,
                                                              optimizer-00000-of-00004.safetensors, ...,
                                                              train_state.json, metrics.jsonl

Every rank writes its part and then a list of it; when all lists are there, rank 0 writes the manifest with the hashes
of all files. Before that, no reader looks at them. The manifest names the training that a checkpoint belongs to
(settings that shape the result, data, code), so that a run never resumes from the wrong one. There are no random
states to keep: every random choice is keyed by (seed, step, rank).

The folder carries the token of the attempt that writes it (`codeparrot.lease`): attempts never mix their files, and
each removes only what earlier ones left.
"""

import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from codeparrot.errors import CheckpointError, ManifestError, ObjectNotFound, PreconditionFailed
from codeparrot.manifest import MANIFEST, Attempt, File, Manifest, load_manifest
from codeparrot.storage import Storage

logger = logging.getLogger(__name__)

STORED = re.compile(r"step-(\d{8,})/(?:data/([^/]+)/)?(.+)")
FIRST_TOKEN = "0" * 8


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint; its files are verified as they are read."""

    step: int
    uri: str
    manifest: Manifest
    storage: Storage

    def read(self, name: str) -> bytes:
        """One file. Raises ManifestError if it is damaged."""
        return self.manifest.read(self.storage, name)

    def tensors(self, kind: str) -> "Iterator[tuple[str, Any]]":
        """(name, tensor) of all parts of a kind: `model` or `optimizer`."""
        for name in self.manifest.names(f"{kind}-"):
            yield from unpack_tensors(self.read(name)).items()


@dataclass(frozen=True)
class Identity:
    """What a checkpoint must share with a run that resumes from it."""

    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    code: str = ""
    any_code: bool = False
    """Whether a checkpoint made by another version of the code will do."""

    def owns(self, manifest: Manifest) -> bool:
        """Whether the checkpoint belongs to this training."""
        return self.is_alike(manifest) and (self.any_code or manifest.code == self.code)

    def is_alike(self, manifest: Manifest) -> bool:
        """Whether it would, but for the version of the code."""
        return (manifest.settings, manifest.inputs) == (self.settings, self.inputs)


@dataclass
class CheckpointStore:
    """The checkpoints of one run, as one attempt at it sees them."""

    storage: Storage
    run_prefix: str
    identity: Identity
    num_to_keep: int = 2
    keep_every_steps: int | None = None
    """Checkpoints of steps that are a multiple of this stay for ever."""
    token: str = FIRST_TOKEN
    """Of this attempt; later ones have a higher one."""
    protected: set[int] = field(default_factory=set)
    """Steps whose checkpoints are not pruned."""
    _damaged: set[int] = field(default_factory=set)

    @property
    def prefix(self) -> str:
        """Where the checkpoints lie, relative to the base of the storage."""
        return f"{self.run_prefix}/checkpoints"

    def prefix_of(self, step: int) -> str:
        """Where the checkpoint of a step lies, relative to the base of the storage."""
        return f"{self.prefix}/step-{step:08d}"

    def uri(self, step: int) -> str:
        """Where the checkpoint of a step lies."""
        return f"{self.storage.uri}/{self.prefix_of(step)}"

    def steps(self) -> list[int]:
        """The steps of all committed checkpoints, whichever training they belong to, ascending."""
        return sorted(step for step, _, name in self._stored() if name == MANIFEST)

    def write_part(self, step: int, rank: int, files: Mapping[str, bytes]) -> None:
        """Write one rank's files, and their list last."""
        attempt = self._attempt(step)
        entries = [asdict(attempt.write(name, data)) for name, data in files.items()]
        attempt.write(_part(rank), json.dumps(entries).encode())

    def parts(self, step: int, world_size: int) -> list[File] | None:
        """The files of all ranks, or None as long as a list is missing."""
        folder = self._attempt(step).folder
        try:
            lists = [json.loads(self.storage.read(f"{folder}/{_part(rank)}")) for rank in range(world_size)]
        except ObjectNotFound:
            return None
        return [File(**entry) for entries in lists for entry in entries]

    def commit(self, step: int, files: Collection[File]) -> str:
        """Make the checkpoint valid; returns its URI.

        Raises CheckpointError if a file is gone, or if another attempt has just committed other content.
        """
        attempt = self._attempt(step)
        manifest = attempt.manifest(files, {"step": step})
        missing = manifest.missing(self.storage)
        if missing:
            raise CheckpointError(f"{self.storage.uri}/{attempt.folder}: {missing[0]} is gone; nothing was committed")
        path = f"{attempt.prefix}/{MANIFEST}"
        try:
            _, tag = self.storage.read_tagged(path)
        except ObjectNotFound:
            tag = None
        try:
            self.storage.write(path, manifest.to_json(), only_if_absent=tag is None, if_match=tag)
        except PreconditionFailed as error:
            there = load_manifest(self.storage, attempt.prefix)
            if there is None or there.digest != manifest.digest:
                raise CheckpointError(f"{self.uri(step)}: another attempt has committed it meanwhile") from error
        self._damaged.discard(step)
        return self.uri(step)

    def latest(self) -> Checkpoint | None:
        """The newest intact checkpoint of this training, or None. Damaged ones are reported and passed over."""
        for step in reversed(self.steps()):
            try:
                manifest = load_manifest(self.storage, self.prefix_of(step))
                if manifest is None or not self.identity.is_alike(manifest):
                    continue
                if not self.identity.owns(manifest):
                    logger.warning(
                        "checkpoint of step %d was made by another version of the code and is passed over; "
                        "train.any_code_version=true would continue from it",
                        step,
                    )
                    continue
                for name in manifest.names():
                    manifest.read(self.storage, name)
                return Checkpoint(step, self.uri(step), manifest, self.storage)
            except (ManifestError, ObjectNotFound) as error:
                self._damaged.add(step)
                logger.warning("checkpoint of step %d is damaged (%s); trying the one before", step, error)
        return None

    def load(self, step: int) -> Checkpoint | None:
        """The committed checkpoint of a step, if it belongs to this training. Its files are not read yet."""
        manifest = load_manifest(self.storage, self.prefix_of(step))
        if manifest is None or not self.identity.owns(manifest):
            return None
        return Checkpoint(step, self.uri(step), manifest, self.storage)

    def prune(self, saved: int) -> None:
        """After the commit of step `saved`: remove what it makes superfluous, and what dead attempts left.

        Of this training, the newest `num_to_keep` up to `saved` stay, and every `keep_every_steps`th. Damaged ones do
        not count and go. Those of other trainings stay (`remove_others`).
        """
        stored = list(self._stored())
        committed = {step for step, _, name in stored if name == MANIFEST}
        own = sorted(step for step in committed if step <= saved and self._is_own(step))
        doomed = set(own[: -self.num_to_keep])
        if self.keep_every_steps:
            doomed = {step for step in doomed if step % self.keep_every_steps}
        for step in sorted((doomed - self.protected) | (self._damaged & committed)):
            self._remove(step)
        here = load_manifest(self.storage, self.prefix_of(saved))
        named = {f"{here.folder}/{file.name}" for file in here.files} if here else set()
        rubbish = [
            path
            for step, folder, name in stored
            if folder and (path := f"{self.prefix_of(step)}/data/{folder}/{name}") not in named
            if (step not in committed or step == saved)
            and (folder.rpartition("-")[2] < self.token or (folder.endswith(f"-{self.token}") and step <= saved))
        ]
        self.storage.delete(rubbish)

    def remove_others(self) -> None:
        """Remove the checkpoints of other trainings: the run that replaces theirs is complete."""
        for step in self.steps():
            if not self._is_own(step):
                self._remove(step)

    def _stored(self) -> Iterator[tuple[int, str | None, str]]:
        """(step, folder of the attempt, name) of every object."""
        for path, _ in self.storage.list(f"{self.prefix}/"):
            match = STORED.fullmatch(path.removeprefix(f"{self.prefix}/"))
            if match:
                yield int(match[1]), match[2], match[3]

    def _is_own(self, step: int) -> bool:
        try:
            return self.load(step) is not None
        except ManifestError:
            return False

    def _attempt(self, step: int) -> Attempt:
        identity = self.identity
        return Attempt(
            self.storage,
            "checkpoint",
            self.prefix_of(step),
            identity.settings,
            identity.inputs,
            identity.code,
            suffix=self.token,
        )

    def _remove(self, step: int) -> None:
        """The manifest first, so that nothing half-deleted is ever read."""
        self.storage.delete([f"{self.prefix_of(step)}/{MANIFEST}"])
        self.storage.delete([path for path, _ in self.storage.list(f"{self.prefix_of(step)}/")])


def _part(rank: int) -> str:
    return f"part-{rank:05d}.json"


def shares(sizes: Mapping[str, int], world_size: int) -> list[list[str]]:
    """The names dealt to the ranks so that each has about as much: largest first, to whoever has least.

    Graham, "Bounds on multiprocessing timing anomalies" (1969).
    """
    dealt: list[list[str]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = loads.index(min(loads))
        dealt[least].append(name)
        loads[least] += sizes[name]
    return dealt


def pack_tensors(tensors: Mapping[str, Any]) -> bytes:
    """Named tensors as the bytes of a safetensors file."""
    from safetensors.torch import save

    data: bytes = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    return data


def unpack_tensors(data: bytes) -> dict[str, Any]:
    """The tensors in the bytes of a safetensors file. Raises CheckpointError."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: dict[str, Any] = load(data)
    except SafetensorError as error:
        raise CheckpointError(f"not a safetensors file: {error}") from error
    return tensors
