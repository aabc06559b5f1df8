"""Where every row comes from: an index beside the rows, and a record of each version of them that stays.

train/provenance-00000.parquet       one row for each piece of a document in the rows of that packed shard
train/provenance-remainder.parquet   likewise for what is left; its row is the one that would come next
packed/versions/DIGEST.parquet       which rows held which repository, for good: runs outlive the rows they saw
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from codeparrot.documents import from_parquet, to_parquet
from codeparrot.errors import ManifestError, ObjectNotFound
from codeparrot.manifest import Manifest
from codeparrot.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

Int64 = npt.NDArray[np.int64]

ORIGIN = ("source", "repository", "path", "revision", "license")
HELD = ("split", "repository", "row")
VERSIONS = "versions"
GAP_TOKENS = 1 << 17
"""Tokens between two documents that are rather read than asked for apart."""


@dataclass(frozen=True)
class Part:
    """The part of an encoded shard, from token `low` to `high`, that some pieces are read from."""

    shard: int
    low: int
    high: int
    pieces: Int64
    """Which."""


def parts(shard: Int64, begin: Int64, start: Int64, length: Int64) -> list[Part]:
    """What to read for pieces: each from the beginning of its document, so that its line can be told.

    Shapes (pieces,): the encoded shard, where the document begins in it, where the piece does in the document.
    """
    if not len(shard):
        return []
    place = (shard << 40) + begin  # no shard has a trillion tokens
    order = np.lexsort((start, place))
    reach = np.maximum.accumulate((place + start + length)[order])
    borders = np.flatnonzero(place[order][1:] > reach[:-1] + GAP_TOKENS) + 1
    found = []
    for pieces in np.split(order, borders):
        first = int(shard[pieces[0]])
        high = int((begin + start + length)[pieces].max())
        found.append(Part(first, int(begin[pieces[0]]), high, pieces))
    return found


def first_lines(tokens: npt.NDArray[Any], newlines: npt.NDArray[Any], begin: Int64, start: Int64) -> Int64:
    """The line, from 1, of its document that a piece begins in: shape (pieces,).

    `newlines`: line feeds in each token of the vocabulary; `begin`: where the documents do in `tokens`.
    """
    if not start.any():
        return np.ones_like(start)
    points, place = np.unique(np.concatenate([begin, begin + start]), return_inverse=True)
    between = np.add.reduceat(newlines[tokens], points, dtype=np.int64)
    before = np.cumsum(between) - between
    lines: Int64 = 1 + before[place[len(begin) :]] - before[place[: len(begin)]]
    return lines


def index_table(origins: "pa.Table", row: Int64, offset: Int64, length: Int64, start: Int64, line: Int64) -> "pa.Table":
    """The index of pieces; `origins` has a row for each."""
    import pyarrow as pa

    columns = {
        "row": pa.array(row, pa.int64()),
        "offset": pa.array(offset, pa.int32()),
        "num_tokens": pa.array(length, pa.int32()),
        "document_offset": pa.array(start, pa.int32()),
        "line": pa.array(line, pa.int32()),
    }
    return pa.table(columns | {name: origins[name] for name in ORIGIN})


def held(index: "pa.Table") -> "pa.Table":
    """Which repositories which rows hold."""
    return index.select(["repository", "row"]).group_by(["repository", "row"], use_threads=False).aggregate([])


def index_of(storage: Storage, packed: Manifest, split: str, row: int) -> list[dict[str, Any]]:
    """The pieces of one row, in order. Raises ManifestError if there is no such row, or no index."""
    num_rows = packed.counts["splits"][split]["num_rows"]
    if not 0 <= row < num_rows:
        raise ManifestError(f"the {split} split has no row {row}; its {num_rows:,} rows are numbered from 0")
    import pyarrow.compute as pc

    table = shard_index(storage, packed, split, f"{row // packed.counts['rows_per_shard']:05d}")
    found: list[dict[str, Any]] = table.filter(pc.equal(table["row"], row)).to_pylist()
    return found


def shard_index(
    storage: Storage, packed: Manifest, split: str, kind: str, columns: Sequence[str] | None = None
) -> "pa.Table":
    """The index of a packed shard (`kind`: its number, `00000`), or of the `remainder`. Raises ManifestError."""
    name = f"{split}/provenance-{kind}.parquet"
    if name not in packed.names():
        raise ManifestError(f"{packed.prefix} was packed without provenance; run `python -m ray_jobs.pack` again")
    return from_parquet(packed.read(storage, name), columns)


def whole_index(storage: Storage, packed: Manifest, split: str, columns: Sequence[str] | None = None) -> "pa.Table":
    """The index of a split: its shards in order, and then its remainder. Raises ManifestError."""
    import pyarrow as pa

    kinds = [name.removesuffix(".npy").rpartition("-")[2] for name in packed.names(f"{split}/rows-")]
    if f"{split}/remainder.npy" in packed.names():
        kinds.append("remainder")
    return pa.concat_tables([shard_index(storage, packed, split, kind, columns) for kind in kinds])


@dataclass(frozen=True)
class Version:
    """A version of packed rows, which may be gone."""

    num_rows: int
    """Of the train split."""
    rows_per_shard: int
    rows: Mapping[str, Mapping[str, Int64]]
    """By split and repository, of those that were asked for."""


def write_version(storage: Storage, packed: Manifest, tables: "Mapping[str, Sequence[pa.Table]]") -> None:
    """Keep, by split, which rows held which repository (`held`)."""
    import pyarrow as pa

    rows = [
        table.append_column("split", pa.array([split] * len(table), pa.string()))
        for split, found in tables.items()
        for table in found
    ]
    table = pa.concat_tables(rows).select(HELD).sort_by([(name, "ascending") for name in HELD])
    facts = {
        "num_rows": packed.counts["splits"]["train"]["num_rows"],
        "rows_per_shard": packed.counts["rows_per_shard"],
    }
    table = table.replace_schema_metadata({"codeparrot": json.dumps(facts, sort_keys=True)})
    storage.write(version_path(packed.prefix, packed.digest), to_parquet(table))


def version_path(prefix: str, digest: str) -> str:
    """Where the record of a version lies."""
    return f"{prefix}/{VERSIONS}/{digest[:16]}.parquet"


def read_version(storage: Storage, prefix: str, digest: str, repositories: Sequence[str]) -> Version | None:
    """What is known of a version; None if nothing is: it was packed before such records were kept."""
    import pyarrow.compute as pc

    try:
        data = storage.read(version_path(prefix, digest))
    except ObjectNotFound:
        return None
    table = from_parquet(data)
    facts = json.loads(table.schema.metadata[b"codeparrot"])
    rows: dict[str, dict[str, Int64]] = {}
    for name in repositories:
        mine = table.filter(pc.equal(table["repository"], name))
        for split in pc.unique(mine["split"]).to_pylist():
            here = mine.filter(pc.equal(mine["split"], split))
            rows.setdefault(split, {})[name] = here["row"].to_numpy()
    return Version(facts["num_rows"], facts["rows_per_shard"], rows)


def repositories_of(storage: Storage, prefix: str, digest: str) -> list[str]:
    """All repositories of a version, by name; none if nothing is known of it."""
    import pyarrow.parquet as pq

    try:
        data = storage.read(version_path(prefix, digest))
    except ObjectNotFound:
        return []
    table = pq.read_table(io.BytesIO(data), columns=["repository"])
    return sorted(set(table["repository"].to_pylist()))
