"""Real data sets in every format, for the tests of sources."""

import gzip
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from codeparrot.documents import Document
from codeparrot.errors import SourceError
from codeparrot.settings import validate
from codeparrot.sources import CollectSettings, Entry, open_source, read

LIMIT = 1_000_000
Rows = Sequence[Mapping[str, Any]]
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("repo_name", "path", "ref", "license", "content")] + [("size", pa.int64())]
)
SUFFIXES = (".parquet", ".json", ".jsonl.gz", ".json.zst", ".jsonl.bz2")
"""One of each kind. The `bigquery` source of a test reads them all."""


def row(path: str = "a.py", content: Any = "x = 1\n", **about: Any) -> dict[str, Any]:
    """A row as the export of BigQuery has it."""
    size = len(content.encode("utf-8", "surrogatepass")) if isinstance(content, str) else 0
    values = {"repo_name": "o/r", "path": path, "ref": "main", "license": "mit", "content": content, "size": size}
    return values | about


def put(path: Path, rows: Rows, rows_per_group: int = 3) -> Path:
    """A file of the kind that the end of its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        columns = [name for name in SCHEMA.names if not rows or name in rows[0]]
        table = pa.Table.from_pylist([*rows], schema=pa.schema([SCHEMA.field(name) for name in columns]))
        pq.write_table(table, path, row_group_size=rows_per_group)
    else:
        path.write_bytes(packed(path.suffix, "".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


def packed(suffix: str, data: bytes) -> bytes:
    """As files with this end of their names hold the data."""
    if suffix == ".gz":
        return gzip.compress(data, mtime=0)
    codec = {".zst": "zstd", ".bz2": "bz2"}.get(suffix)
    if codec is None:
        return data
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(data)
    return bytes(sink.getvalue())


def scattered(folder: Path, rows: Rows, suffix: str, num_files: int, seed: int) -> Path:
    """The rows in some order, in so many files, of which some may be empty."""
    shuffled = random.Random(seed).sample([*rows], len(rows))
    for number in range(num_files):
        put(folder / f"part-{number:05d}{suffix}", shuffled[number::num_files])
    return folder


def entries_of(place: Path | str, **settings: Any) -> Sequence[Entry]:
    values = {"kind": "bigquery", "uri": str(place), "files": ["*"], **settings}
    if values["kind"] == "huggingface":
        del values["files"]
        values["dataset"] = values.pop("uri")
    return open_source(validate(CollectSettings, {"sources": [values]}, "run.yaml").sources[0]).entries()


def outcome(place: Path | str, limit: int = LIMIT, **settings: Any) -> tuple[list[Document], Counter[str]]:
    """The documents in the order of their ids, and how many rows were rejected why."""
    result = read(entries_of(place, **settings), limit)
    return sorted(result.documents, key=lambda each: each.id), Counter(str(reason) for _, reason in result.rejected)


def contents(place: Path | str, **settings: Any) -> dict[str, str]:
    documents, rejected = outcome(place, **settings)
    assert not rejected
    return {document.path: document.content for document in documents}


def failure(place: Path | str, **settings: Any) -> str:
    with pytest.raises(SourceError) as caught:
        entries_of(place, **settings)
    message = str(caught.value)
    assert message.startswith(f"source '{settings.get('name', settings.get('kind', 'bigquery'))}': ")
    assert "\n" not in message
    return message
