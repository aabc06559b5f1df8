"""What the first pass of curation says of documents, as columns: of one shard, and of all, as the driver holds it.

A document takes about 75 bytes: its path, numbers for names that repeat, 16 bytes of its key. Its text, and its keys
for near duplicates, stay in the store.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from codeparrot.dedup import KEY_BYTES, ranks
from codeparrot.documents import document_id
from codeparrot.manifest import File
from codeparrot.shingles import Hashes, Indices

if TYPE_CHECKING:
    import pyarrow as pa

Reasons = npt.NDArray[np.object_]
"""Why each document goes; None: it stays."""
ID = ("source", "repository", "path")


@dataclass(frozen=True)
class Judged:
    """The first pass over one shard."""

    documents: "pa.Table"
    """The columns that decide which of duplicates stays (`codeparrot.dedup.PREFERENCE`)."""
    reasons: Reasons
    keys: bytes
    """Equal for exact duplicates, `KEY_BYTES` for each document."""
    contamination: dict[int, dict[str, int]]
    """Of documents that share runs of words with problems of benchmarks: how many with which."""
    redacted: dict[int, Counter[str]]
    """Of documents in which anything was redacted: how many values of which kind."""
    file: File | None
    """The shard as it was judged, if that is not as it was collected."""


class Ids(Sequence[str]):
    """The ids of documents, made when they are asked for."""

    def __init__(self, documents: "pa.Table") -> None:
        self._columns = [documents[name] for name in ID]

    def __len__(self) -> int:
        return len(self._columns[0])

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return document_id(*(column[int(index)].as_py() for column in self._columns))


class Verdicts:
    """What is known of all documents, in the order of shards and rows."""

    def __init__(self, shards: Sequence[Judged]) -> None:
        import pyarrow as pa

        self.documents: Any = pa.concat_tables([shard.documents for shard in shards]).unify_dictionaries()
        self.ids = Ids(self.documents)
        self.reasons: Reasons = np.concatenate([shard.reasons for shard in shards])
        self.keys: Hashes = np.frombuffer(b"".join(shard.keys for shard in shards), np.uint64)
        self.keys = self.keys.reshape(-1, KEY_BYTES // 8)
        self.sizes = [len(shard.reasons) for shard in shards]
        """Documents of each shard."""
        self._starts: Indices = np.cumsum([0, *self.sizes])
        self.contamination = self._by_index([shard.contamination for shard in shards])
        self.redacted = self._by_index([shard.redacted for shard in shards])

    def _by_index(self, shards: Sequence[dict[int, Any]]) -> dict[int, Any]:
        pairs = zip(self._starts.tolist(), shards, strict=False)
        return {start + row: value for start, shard in pairs for row, value in shard.items()}

    @cached_property
    def ranks(self) -> Indices:
        """The place of every document in the order of preference."""
        return ranks(self.documents)

    def passing(self) -> Indices:
        """The documents that nothing rejects so far."""
        return passing(self.reasons)

    def by_shard(self, values: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
        """What belongs to the documents of each shard, of values for all documents."""
        return iter(np.split(values, self._starts[1:-1]))

    def some_ids(self, indices: Indices) -> Sequence[str]:
        """The ids of these documents."""
        return Ids(self.documents.select(ID).take(indices))

    def repositories(self, indices: Indices) -> list[str]:
        """Those of these documents, each once."""
        found: list[str] = self.documents["repository"].take(indices).unique().to_pylist()
        return found

    def are_of(self, repositories: frozenset[str]) -> npt.NDArray[np.bool_]:
        """Whether each document is of one of these repositories."""
        import pyarrow as pa
        import pyarrow.compute as pc

        names = self.documents["repository"].cast(pa.string())
        found: npt.NDArray[np.bool_] = pc.is_in(names, pa.array(sorted(repositories), pa.string())).to_numpy()
        return found

    def are(self, ids: frozenset[str]) -> npt.NDArray[np.bool_]:
        """Whether each document is one of these."""
        return np.fromiter((name in ids for name in self.ids), np.bool_, len(self.ids))


def staying(reasons: Reasons) -> npt.NDArray[np.bool_]:
    """Whether nothing rejects each document so far."""
    return np.fromiter((reason is None for reason in reasons), np.bool_, len(reasons))


def passing(reasons: Reasons) -> Indices:
    """The indices of those that nothing rejects so far."""
    return np.flatnonzero(staying(reasons))
