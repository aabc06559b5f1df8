"""Packed rows by number, through a bounded cache of shards on the local disk.

Shards are fetched ahead of their use by a thread, verified against their hash, and memory-mapped. The cache is shared
by the processes of a machine and keyed by hash, so it never holds the wrong bytes: a damaged file is fetched again.
On a full disk the shards stay in memory.
"""

import io
import logging
import os
import re
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from codeparrot.boundaries import positions, row_starts, segments
from codeparrot.data_order import DataOrder, MixedOrder
from codeparrot.errors import EmptyCorpusError, ManifestError
from codeparrot.manifest import File, Manifest
from codeparrot.objectives import Arrays
from codeparrot.storage import NO_SPACE, Storage, alone, default_cache, make_private, persist, sha256_hex

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

CACHED = re.compile(r"[0-9a-f]{64}\.(npy|lock)")
TEMPORARY = ".codeparrot-tmp"
RETRY_SECONDS = 600.0
CACHE_BYTES = 10_000_000_000
BESIDE = {"starts": "document boundaries", "lengths": "the lengths of its rows"}
"""What was written of a shard beside its rows."""


class PackedRows:
    """One split of a packed corpus, rows by number."""

    def __init__(
        self,
        storage: Storage,
        manifest: Manifest,
        split: str,
        cache: Path | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._storage = storage
        self._manifest = manifest
        self.files = [manifest.file(name) for name in manifest.names(f"{split}/rows-")]
        counts: dict[str, Any] = manifest.counts["splits"][split]
        self.num_rows = int(counts["num_rows"])
        self.max_seq_len = int(manifest.counts["max_seq_len"])
        self.rows_per_shard = int(manifest.counts["rows_per_shard"])
        self._cache = cache or default_cache()
        self.cache_bytes = cache_bytes
        self._open: dict[int, npt.NDArray[Any]] = {}
        self._starts: dict[int, npt.NDArray[Any]] = {}
        self._lengths: dict[int, npt.NDArray[Any]] = {}
        self.has_padding = bool(counts.get("tokens_padding"))
        self._locks = [threading.Lock() for _ in self.files]
        self.wanted: list[int] = []
        self.family: Sequence[PackedRows] = [self]
        """All that share the cache: what one of them wants, none may evict."""
        self._ahead: threading.Thread | None = None
        if self.num_rows == 0:
            raise EmptyCorpusError(
                f"the {split} split has {counts['tokens_in']} tokens, less than one row of {self.max_seq_len}; "
                "add code or lower pack.max_seq_len"
            )

    def order(self, seed: int, window_shards: int) -> DataOrder:
        """The order in which to train on these rows. Raises ManifestError if the cache is too small for it."""
        require_cache([self], window_shards)
        return DataOrder(seed, self.num_rows, self.rows_per_shard, window_shards)

    def bytes_ahead(self, window_shards: int) -> int:
        """Of the shards that the cache must hold."""
        largest = sorted((file.size_bytes for file in self.files), reverse=True)
        return sum(largest[: 2 * window_shards + 1])  # a short shard shifts the windows after it

    def rows(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Token ids of these rows: shape (len(indices), max_seq_len)."""
        out = np.empty((len(indices), self.max_seq_len), dtype=np.int64)
        for place, index in enumerate(indices):
            shard, row = divmod(int(index), self.rows_per_shard)
            out[place] = self._shard(shard)[row]
        return out

    def tensor(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> "torch.Tensor":
        """The same as a tensor of int64."""
        import torch

        return torch.from_numpy(self.rows(indices))

    def starts(self, index: int) -> npt.NDArray[np.int64]:
        """Where documents begin in a row (`codeparrot.boundaries`): shape (starts,), the first is 0.

        Raises ManifestError if the rows were packed without boundaries.
        """
        shard, row = divmod(int(index), self.rows_per_shard)
        return row_starts(self._beside(shard, "starts", self._starts), row, self.max_seq_len)

    def lengths(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """How many tokens of these rows are no padding, which fills their ends: shape (len(indices),).

        Raises ManifestError if the rows were packed without their lengths.
        """
        if not self.has_padding:
            return np.full(len(indices), self.max_seq_len)
        places = (divmod(int(index), self.rows_per_shard) for index in indices)
        return np.array([self._beside(shard, "lengths", self._lengths)[row] for shard, row in places], np.int64)

    def _beside(self, shard: int, what: str, kept: dict[int, npt.NDArray[Any]]) -> npt.NDArray[Any]:
        if shard not in kept:
            name = self.files[shard].name.replace("/rows-", f"/{what}-")
            if name not in self._manifest.names():
                raise ManifestError(
                    f"{self._manifest.prefix} was packed without {BESIDE[what]}; run `python -m ray_jobs.pack` again"
                )
            kept[shard] = np.load(io.BytesIO(self._fetch(self._manifest.file(name))), allow_pickle=False)
        return kept[shard]

    def positions(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The position of each token of these rows in its piece of a document: shape (len(indices), max_seq_len)."""
        found = [positions(self.starts(int(index)), self.max_seq_len) for index in indices]
        return np.array(found, dtype=np.int64).reshape(-1, self.max_seq_len)

    def segments(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Which piece each token belongs to, counted from 0 in each row: shape (len(indices), max_seq_len)."""
        found = [segments(self.starts(int(index)), self.max_seq_len) for index in indices]
        return np.array(found, dtype=np.int64).reshape(-1, self.max_seq_len)

    def prefetch(self, shards: Sequence[int]) -> None:
        """Fetch these shards in the background, in this order; others may leave the cache."""
        if self.want(shards):
            self.fetch_wanted()

    def want(self, shards: Sequence[int]) -> bool:
        """Remember which shards are needed next; whether they are others than before."""
        changed = list(shards) != self.wanted
        if changed:
            self.wanted = list(shards)
        return changed

    def fetch_wanted(self) -> None:
        """Fetch what is wanted, in the background."""
        for opened in (self._open, self._starts, self._lengths):
            for shard in set(opened) - set(self.wanted):
                del opened[shard]
        self._ahead = threading.Thread(target=self._fetch_ahead, args=(self.wanted,), name="prefetch", daemon=True)
        self._ahead.start()

    def _fetch_ahead(self, shards: list[int]) -> None:
        self._make_room(shards)
        for shard in shards:
            if shards is not self.wanted:
                return
            try:
                self._shard(shard)
            except Exception as error:  # noqa: BLE001 - whoever needs the shard tries again, and tells
                logger.warning("could not fetch %s ahead of its use: %s", self.files[shard].name, error)

    def _make_room(self, shards: list[int]) -> None:
        sizes = {self.files[shard].sha256: self.files[shard].size_bytes for shard in shards}
        room = sum(size for sha256, size in sizes.items() if not (self._cache / f"{sha256}.npy").exists())
        try:
            keep = {part.files[shard].sha256 for part in self.family for shard in part.wanted}
            evict(self._cache, self.cache_bytes - room, keep=keep)
        except OSError as error:
            logger.warning("cannot delete shards in %s: %s", self._cache, error.strerror)

    def _shard(self, index: int) -> npt.NDArray[Any]:
        found = self._open.get(index)
        if found is None:
            with self._locks[index]:
                found = self._open.get(index)
                if found is None:
                    found = self._open[index] = self._load(self.files[index])
        return found

    def _load(self, file: File) -> npt.NDArray[Any]:
        path = self._cache / f"{file.sha256}.npy"
        try:
            make_private(self._cache)
            with alone(path.with_suffix(".lock")):  # one process of this machine fetches it, the others wait
                if not path.exists() or sha256_hex(path.read_bytes()) != file.sha256:
                    _replace(path, self._fetch(file))
                os.utime(path)
                found: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise ManifestError(
                    f"cannot cache {file.name} in {self._cache}: {error.strerror}; set CODEPARROT_CACHE to another "
                    "folder"
                ) from error
            logger.warning("no space to cache shards in %s; keeping them in memory", self._cache)
            found = np.load(io.BytesIO(self._fetch(file)), allow_pickle=False)
        return found

    def _fetch(self, file: File) -> bytes:
        return persist(lambda: self._manifest.read(self._storage, file.name), RETRY_SECONDS, "training waits for data")


class MixedRows:
    """The rows of several corpora, numbered through: those of the second follow those of the first."""

    def __init__(self, parts: Sequence[PackedRows], weights: Sequence[int]) -> None:
        self._parts = parts
        self._weights = tuple(weights)
        self._first_row = np.cumsum([0, *(part.num_rows for part in parts)])
        self._first_shard = np.cumsum([0, *(len(part.files) for part in parts)])
        self.num_rows = int(self._first_row[-1])
        self.max_seq_len = parts[0].max_seq_len
        for part in parts:
            part.family = parts

    @property
    def has_padding(self) -> bool:
        """Whether some rows end in padding."""
        return any(part.has_padding for part in self._parts)

    def order(self, seed: int, window_shards: int) -> MixedOrder:
        """The order in which to train on these rows. Raises ManifestError if the cache is too small for it."""
        require_cache(self._parts, window_shards)
        orders = [DataOrder(seed, part.num_rows, part.rows_per_shard, window_shards) for part in self._parts]
        return MixedOrder(seed, tuple(orders), self._weights)

    def tensor(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> "torch.Tensor":
        """Token ids of these rows: shape (len(indices), max_seq_len), int64."""
        import torch

        out = np.empty((len(indices), self.max_seq_len), dtype=np.int64)
        for part, here, numbers in self._by_part(indices):
            out[here] = part.rows(numbers)
        return torch.from_numpy(out)

    def lengths(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """How many tokens of these rows are no padding: shape (len(indices),)."""
        out = np.empty(len(indices), dtype=np.int64)
        for part, here, numbers in self._by_part(indices):
            out[here] = part.lengths(numbers)
        return out

    def positions(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The position of each token in its piece of a document: shape (len(indices), max_seq_len)."""
        out = np.empty((len(indices), self.max_seq_len), dtype=np.int64)
        for part, here, numbers in self._by_part(indices):
            out[here] = part.positions(numbers)
        return out

    def _by_part(
        self, indices: Sequence[int] | npt.NDArray[np.int64]
    ) -> Iterator[tuple[PackedRows, npt.NDArray[np.bool_], npt.NDArray[np.int64]]]:
        """(corpus, which of the rows are in it, their numbers there)."""
        numbers = np.asarray(indices, dtype=np.int64)
        corpora = np.searchsorted(self._first_row, numbers, side="right") - 1
        for corpus, part in enumerate(self._parts):
            here = corpora == corpus
            yield part, here, numbers[here] - self._first_row[corpus]

    def prefetch(self, shards: Sequence[int]) -> None:
        """Fetch these shards in the background; others may leave the cache."""
        corpora = np.searchsorted(self._first_shard, shards, side="right") - 1
        wanted: list[list[int]] = [[] for _ in self._parts]
        for corpus, shard in zip(corpora.tolist(), shards, strict=True):
            wanted[corpus].append(int(shard - self._first_shard[corpus]))
        changed = [part for part, shards_of_it in zip(self._parts, wanted, strict=True) if part.want(shards_of_it)]
        for part in changed:
            part.fetch_wanted()


Rows = PackedRows | MixedRows


def batch_of(
    rows: Rows,
    indices: Sequence[int] | npt.NDArray[np.int64],
    device: str,
    ask: Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64] | None], Arrays],
    *,
    within_documents: bool = False,
) -> "tuple[torch.Tensor, ...]":
    """What an objective asks of these rows, on the device.

    `ask`: takes their token ids, (B, T), and if there is padding in the corpus the rows' lengths without it, (B,).
    `within_documents`: the lengths in any case, and in the end positions that start anew with each document, (B, T).
    Raises ManifestError if the rows were packed without what is asked for.
    """
    import torch

    lengths = rows.lengths(indices) if rows.has_padding or within_documents else None
    batch = [torch.from_numpy(array) for array in ask(rows.tensor(indices).numpy(), lengths)]
    if within_documents:
        batch.append(torch.from_numpy(rows.positions(indices)))
    if device.startswith("cuda"):
        batch = [tensor.pin_memory() for tensor in batch]
    return tuple(tensor.to(device, non_blocking=True) for tensor in batch)


def require_cache(parts: Sequence[PackedRows], window_shards: int) -> None:
    """Raise ManifestError if the cache cannot hold what is fetched ahead."""
    needed, cache_bytes = sum(part.bytes_ahead(window_shards) for part in parts), parts[0].cache_bytes
    if needed > cache_bytes:
        raise ManifestError(
            f"train.cache_bytes: {cache_bytes:,} is too small for two windows of {window_shards} shards "
            f"({needed:,} bytes); raise it, or lower train.shuffle_shards"
        )


def evict(folder: Path, max_bytes: int, keep: Collection[str]) -> None:
    """Delete the least recently used shards beyond `max_bytes`, but none of those to keep.

    A process that has a deleted file open goes on reading it; one that is opening it is waited for.
    """
    files = []
    for path in cached(folder):
        if path.suffix != ".npy":
            continue
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        files.append((status.st_mtime_ns, path, status.st_size))
    total = sum(size for _, _, size in files)
    for _, path, size in sorted(files):
        if total > max_bytes and path.stem not in keep:
            with alone(path.with_suffix(".lock")):
                path.unlink(missing_ok=True)
            total -= size


def _replace(path: Path, data: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=TEMPORARY)
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(data)
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


def cached(folder: Path) -> list[Path]:
    """The files in a cache folder that were put there as such, whole or cut off."""
    return [path for path in folder.glob("*") if CACHED.fullmatch(path.name) or path.name.endswith(TEMPORARY)]
