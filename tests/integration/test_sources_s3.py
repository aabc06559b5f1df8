"""Exports in an object store as a source: read in ranges, by tasks of Ray, and never mixed with a newer one."""

import io
import json
import pickle
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from codeparrot.documents import from_parquet
from codeparrot.errors import SourceError
from codeparrot.local_store import LocalStore
from codeparrot.manifest import load_manifest
from codeparrot.s3 import S3Storage
from codeparrot.sources import read
from codeparrot.storage import Storage
from tests.integration.conftest import Machine
from tests.unit.row_doubles import LIMIT, contents, entries_of, failure, packed, row


def rows(text: str) -> list[dict[str, Any]]:
    return [row(f"{number}.py", f"{text} = {number}\n", repo_name=f"o/{number % 9}") for number in range(300)]


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=20)
    return sink.getvalue()


def lines(rows: list[dict[str, Any]]) -> bytes:
    return packed(".gz", "".join(json.dumps(row) + "\n" for row in rows).encode())


def export(storage: Storage, text: str) -> dict[str, str]:
    """An export of three files, of both kinds; what their rows hold, by path."""
    everything = rows(text)
    storage.write("export/a/000000000000.parquet", parquet(everything[0::3]))
    storage.write("export/b/000000000001.parquet", parquet(everything[1::3]))
    storage.write("export/c/000000000000.json.gz", lines(everything[2::3]))
    storage.write("export/README.txt", b"not a part of it")
    return {row["path"]: row["content"] for row in everything}


def test_an_export_in_an_object_store_is_read_where_it_is(s3: LocalStore) -> None:
    storage = S3Storage("s3://codeparrot/source", "codeparrot", "source")
    expected = export(storage, "x")
    files = ["*.parquet", "*.json.gz"]
    assert contents("s3://codeparrot/source/export", files=files) == expected
    found = pickle.loads(pickle.dumps(list(entries_of("s3://codeparrot/source/export", files=files))))
    identities = [entry.identity() for entry in found]
    export(storage, "y")
    with pytest.raises(SourceError, match=r"parquet has changed since it was listed; run again"):
        read(found, LIMIT)
    assert not set(identities) & {
        entry.identity() for entry in entries_of("s3://codeparrot/source/export", files=files)
    }
    assert "export s3://codeparrot/nothing holds no file" in failure("s3://codeparrot/nothing")
    assert "bucket 'absent' does not exist" in failure("s3://absent/x")
    storage.write("export/a/000000000000.parquet", b"PAR1")
    assert "s3://codeparrot/source/export/a/000000000000.parquet is damaged: " in failure(
        "s3://codeparrot/source/export", files=files
    )


def test_tasks_of_ray_read_an_export_of_the_store(machine: Machine) -> None:
    source = {"kind": "bigquery", "uri": "s3://codeparrot/micro/export", "files": ["*.parquet", "*.json.gz"]}
    machine.values["collect"] = {"sources": [source], "shard_bytes": 1000}
    with machine.storage() as storage:
        expected = export(storage, "x")
    machine.run("collect")
    with machine.storage() as storage:
        manifest = load_manifest(storage, "raw")
        assert manifest is not None
        assert len(manifest.files) > 1
        tables = [from_parquet(manifest.read(storage, file.name), ["path", "content"]) for file in manifest.files]
    assert {row["path"]: row["content"] for table in tables for row in table.to_pylist()} == expected
