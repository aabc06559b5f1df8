"""Which rows a step trains on, and where they come from.

Position p of the stream (row i of step s is p = s * global_batch_size + i) is row perm(seed, epoch)(p mod n) of
epoch p div n: a pure function, so the data position of a run is one integer, every row comes exactly once per
epoch, resuming costs O(1), and the number of workers changes nothing. Batches run over the border of an epoch.

The permutation is a Feistel network over the next power of four, walked until it lands in range (Black and
Rogaway, "Ciphers with Arbitrary Finite Domains", 2002, section 3): O(1) memory for any number of rows.
"""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from codeparrot.errors import EmptyCorpusError, ManifestError
from codeparrot.manifest import Manifest
from codeparrot.storage import Storage, sha256_hex

if TYPE_CHECKING:
    import torch

NUM_ROUNDS = 6
UInt64 = npt.NDArray[np.uint64]


def permute(indices: UInt64, num_rows: int, *, seed: int, epoch: int) -> UInt64:
    """The images of `indices` (each < num_rows) under the permutation of this epoch: shape of `indices`."""
    half = np.uint64(max(1, (max(1, num_rows - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = _round_keys(seed, epoch)
    values = _feistel(indices.astype(np.uint64), half, mask, keys)
    outside = values >= num_rows
    while outside.any():
        values[outside] = _feistel(values[outside], half, mask, keys)
        outside = values >= num_rows
    return values


def _feistel(values: UInt64, half: np.uint64, mask: np.uint64, keys: UInt64) -> UInt64:
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half) | right


def _mix(values: UInt64) -> UInt64:
    """The finaliser of SplitMix64 (Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


@lru_cache(maxsize=8)
def _round_keys(seed: int, epoch: int) -> UInt64:
    digest = hashlib.blake2b(f"{seed}\0{epoch}".encode(), digest_size=8 * NUM_ROUNDS).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def global_batch(step: int, *, global_batch_size: int, num_rows: int, seed: int) -> npt.NDArray[np.int64]:
    """The row numbers of one step, in order: shape (global_batch_size,)."""
    first = step * global_batch_size
    positions = np.arange(first, first + global_batch_size, dtype=np.uint64)
    rows = np.empty(global_batch_size, dtype=np.int64)
    epochs = positions // np.uint64(num_rows)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        rows[here] = permute(positions[here] % np.uint64(num_rows), num_rows, seed=seed, epoch=int(epoch))
    return rows


def rank_rows(batch: npt.NDArray[np.int64], rank: int, world_size: int) -> npt.NDArray[np.int64]:
    """The rows of a batch that one rank trains on: every world_size-th, so that ranks together see all."""
    return batch[rank::world_size]


class PackedRows:
    """One split of a packed corpus, rows by number.

    Shards are fetched when first used into a local cache, verified against their hash, and memory-mapped. The
    cache is shared by the processes of a machine and keyed by hash, so it never holds the wrong bytes.
    """

    def __init__(self, storage: Storage, manifest: Manifest, split: str, cache: Path | None = None) -> None:
        self._storage = storage
        self._manifest = manifest
        self._names = manifest.names(f"{split}/rows-")
        counts: dict[str, Any] = manifest.counts["splits"][split]
        self.num_rows = int(counts["num_rows"])
        self.max_seq_len = int(manifest.counts["max_seq_len"])
        self._rows_per_shard = int(manifest.counts["rows_per_shard"])
        self._cache = cache or default_cache()
        self._open: dict[int, npt.NDArray[Any]] = {}
        if self.num_rows == 0:
            raise EmptyCorpusError(
                f"the {split} split has {counts['tokens_in']} tokens, less than one row of {self.max_seq_len}; "
                "add code or lower pack.max_seq_len"
            )

    def rows(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Token ids of these rows: shape (len(indices), max_seq_len)."""
        out = np.empty((len(indices), self.max_seq_len), dtype=np.int64)
        for place, index in enumerate(indices):
            shard, row = divmod(int(index), self._rows_per_shard)
            out[place] = self._shard(shard)[row]
        return out

    def tensor(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> "torch.Tensor":
        """The same as a tensor of int64."""
        import torch

        return torch.from_numpy(self.rows(indices))

    def _shard(self, index: int) -> npt.NDArray[Any]:
        if index not in self._open:
            self._open[index] = np.load(self._fetch(self._names[index]), mmap_mode="r", allow_pickle=False)
        return self._open[index]

    def _fetch(self, name: str) -> Path:
        file = self._manifest.file(name)
        local = self._cache / f"{file.sha256}.npy"
        try:
            if not local.exists() or sha256_hex(local.read_bytes()) != file.sha256:
                self._cache.mkdir(parents=True, exist_ok=True)
                _replace(local, self._manifest.read(self._storage, name))
        except OSError as error:
            raise ManifestError(
                f"cannot cache {name} in {self._cache}: {error.strerror}; set CODEPARROT_CACHE to another folder"
            ) from error
        return local


def _replace(path: Path, data: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(data)
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


def default_cache() -> Path:
    """`CODEPARROT_CACHE`, or a folder of this user in the system's temporary folder."""
    default = Path(tempfile.gettempdir()) / f"codeparrot-cache-{os.getuid()}"
    return Path(os.environ.get("CODEPARROT_CACHE") or default)
