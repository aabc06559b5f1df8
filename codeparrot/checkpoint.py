"""Checkpoints: a step's whole state, committed at once, verified when loaded.

    runs/tiny/checkpoints/step-00000120/manifest.json
    runs/tiny/checkpoints/step-00000120/data/9b1c.../model.safetensors, optimizer.safetensors,
                                                     train_state.json, metrics.jsonl

A checkpoint is an output like any other (`codeparrot.manifest`): files first, the manifest with their hashes
last. Its fingerprint names the training that it belongs to (settings that shape the result, and the data), so
that a run whose settings changed never resumes from the wrong one. There are no random states to keep: every
random choice is keyed by (seed, step, rank).
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from codeparrot.errors import CheckpointError, ManifestError, ObjectNotFound
from codeparrot.manifest import MANIFEST, Attempt, Manifest, load_manifest
from codeparrot.storage import Storage

logger = logging.getLogger(__name__)

STEP = re.compile(r"step-(\d{8,})/(.+)")


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint and its verified bytes."""

    step: int
    uri: str
    files: Mapping[str, bytes]


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(
        self,
        storage: Storage,
        run_prefix: str,
        *,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        num_to_keep: int,
    ) -> None:
        """`settings` and `inputs` identify the training; checkpoints of another are ignored, then replaced."""
        self._storage = storage
        self._prefix = f"{run_prefix}/checkpoints"
        self._settings = settings
        self._inputs = inputs
        self._num_to_keep = num_to_keep

    def _attempt(self, step: int) -> Attempt:
        prefix = f"{self._prefix}/step-{step:08d}"
        return Attempt(self._storage, "checkpoint", prefix, self._settings, self._inputs, code="")

    def uri(self, step: int) -> str:
        """Where the checkpoint of a step lies."""
        return f"{self._storage.uri}/{self._prefix}/step-{step:08d}"

    def steps(self) -> list[int]:
        """The steps of all committed checkpoints, whichever training they belong to, ascending."""
        return [step for step, committed in self._stored().items() if committed]

    def _stored(self) -> dict[int, bool]:
        """Every step of which anything is stored, ascending, and whether it is committed."""
        found: dict[int, bool] = {}
        for path, _ in self._storage.list(f"{self._prefix}/"):
            match = STEP.fullmatch(path.removeprefix(f"{self._prefix}/"))
            if match:
                step = int(match[1])
                found[step] = found.get(step, False) or match[2] == MANIFEST
        return dict(sorted(found.items()))

    def save(self, step: int, files: Mapping[str, bytes]) -> str:
        """Commit a checkpoint and remove those that it makes superfluous; returns its URI."""
        attempt = self._attempt(step)
        attempt.commit([attempt.write(name, data) for name, data in files.items()], {"step": step})
        self._prune(step)
        return self.uri(step)

    def latest(self) -> Checkpoint | None:
        """The newest intact checkpoint of this training, or None. Damaged ones are reported and passed over."""
        for step in reversed(self.steps()):
            try:
                manifest = self._own(step)
                if manifest is not None:
                    files = {file.name: manifest.read(self._storage, file.name) for file in manifest.files}
                    return Checkpoint(step, self.uri(step), files)
            except (ManifestError, ObjectNotFound) as error:
                logger.warning("checkpoint of step %d is damaged (%s); trying the one before", step, error)
        return None

    def _own(self, step: int) -> Manifest | None:
        """The manifest of a step, if it belongs to this training."""
        attempt = self._attempt(step)
        manifest = load_manifest(self._storage, attempt.prefix)
        return manifest if attempt.up_to_date(manifest) else None

    def _prune(self, saved: int) -> None:
        """Remove other trainings' checkpoints, and what is older than the newest `num_to_keep` up to `saved`.

        Own ones of a later step stay and do not count: `latest` passed them over, so they are damaged.
        """
        own = []
        for step, committed in self._stored().items():
            try:
                mine = self._own(step) is not None
            except ManifestError:
                mine = False
            if mine and step <= saved:
                own.append(step)
            elif not mine and (committed or step < saved):
                self._remove(step)
        for step in own[: -self._num_to_keep]:
            self._remove(step)

    def _remove(self, step: int) -> None:
        """The manifest first, so that nothing half-deleted is ever read."""
        prefix = f"{self._prefix}/step-{step:08d}"
        self._storage.delete([f"{prefix}/{MANIFEST}"])
        self._storage.delete([path for path, _ in self._storage.list(f"{prefix}/")])


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
