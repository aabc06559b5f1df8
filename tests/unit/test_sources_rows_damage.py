"""Files of data sets that are damaged, cut off, changed, or something else."""

import contextlib
import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codeparrot.errors import SourceError
from codeparrot.sources import Entry, read, table
from codeparrot.sources.data_files import DataFile
from codeparrot.sources.rows import Columns
from codeparrot.sources.selection import SelectionSettings
from codeparrot.storage import LocalStorage
from tests.unit.row_doubles import LIMIT, SUFFIXES, contents, entries_of, failure, outcome, packed, put, row

COMPRESSED = (".jsonl.gz", ".json.zst", ".jsonl.bz2")
ROWS = [row(f"{number}.py", f"x = {number}\n" * 50) for number in range(20)]


@pytest.mark.parametrize("suffix", [".parquet", *COMPRESSED])
@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_named(tmp_path: Path, suffix: str, part: float) -> None:
    path = put(tmp_path / f"a{suffix}", ROWS)
    os.truncate(path, int(path.stat().st_size * part))
    assert f"{path.as_uri()} is damaged: " in failure(tmp_path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=60)
@given(st.data())
def test_a_byte_that_changes_costs_rows_or_a_message_and_never_more(suffix: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = put(Path(name, f"a{suffix}"), ROWS)
        raw = bytearray(path.read_bytes())
        before = entries_of(name)
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(raw)
        assert len([*read(before, LIMIT).documents, *read(before, LIMIT).rejected]) == len(ROWS)
        with contextlib.suppress(SourceError):
            documents, _ = outcome(name)
            assert len({document.id for document in documents}) == len(documents)


def test_where_only_contents_are_damaged_the_rows_of_that_group_cannot_be_read(tmp_path: Path) -> None:
    path = put(tmp_path / "a.parquet", ROWS, rows_per_group=5)
    column = pq.read_metadata(path).row_group(1).column(4)
    raw = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    raw[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(raw)
    documents, rejected = outcome(tmp_path)
    assert rejected == {"unreadable": 5}
    assert {document.path for document in documents} == {entry["path"] for entry in [*ROWS[:5], *ROWS[10:]]}


def test_after_a_failure_nobody_waits_for_the_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(12):
        put(tmp_path / f"{number:02d}.json", ROWS)
    real = table._entries

    def endless(settings: SelectionSettings, columns: Columns, file: DataFile) -> Iterator[Entry]:
        if file.name == "01.json":
            raise SourceError("source 'bigquery': failed")
        return itertools.cycle(real(settings, columns, file)) if file.name > "01" else real(settings, columns, file)

    monkeypatch.setattr(table, "_entries", endless)
    assert failure(tmp_path) == "source 'bigquery': failed"


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz"])
@pytest.mark.parametrize("text", ["no JSON at all\n", '["x",\n 1]', "<html>\n</html>\n", "5\nnull\n"])
def test_what_is_not_json_lines_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(packed(Path(name).suffix, text.encode()))
    assert failure(tmp_path).endswith(f"{name} is damaged: none of its lines is a JSON object")


def test_what_is_not_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(json.dumps(row()).encode())
    assert "a.parquet is damaged: " in failure(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"")
    assert "a.parquet is damaged: " in failure(tmp_path)


@pytest.mark.parametrize("missing", ["repo_name", "path", "content", "license", "ref"])
def test_columns_of_parquet_that_are_missing_are_named_with_those_that_are_there(tmp_path: Path, missing: str) -> None:
    rows = [{name: value for name, value in row().items() if name != missing}]
    put(tmp_path / "a.parquet", rows)
    there = ", ".join(sorted(rows[0]))
    assert failure(tmp_path).endswith(f"a.parquet has no column {missing}; its columns: {there}")


@pytest.mark.parametrize("missing", ["repo_name", "path", "content"])
def test_columns_that_no_line_of_json_has_are_named(tmp_path: Path, missing: str) -> None:
    rows = [{name: value for name, value in row().items() if name != missing}] * 2
    put(tmp_path / "a.json.gz", rows)
    assert f"a.json.gz has no column {missing}; its columns: " in failure(tmp_path)


def test_columns_that_json_leaves_out_where_they_are_null_are_no_error(tmp_path: Path) -> None:
    bare = {name: row()[name] for name in ("repo_name", "path", "content")}
    put(tmp_path / "a.json", [row("b.py"), bare])
    assert [entry.license for entry in entries_of(tmp_path)] == ["MIT", None]


@pytest.mark.parametrize("column", ["repo_name", "path", "content", "license"])
def test_a_column_that_holds_no_text_is_named(tmp_path: Path, column: str) -> None:
    table = pa.Table.from_pylist([row()])
    numbers = table.set_column(table.schema.get_field_index(column), column, pa.array([1.5]))
    pq.write_table(numbers, tmp_path / "a.parquet")
    assert failure(tmp_path).endswith(f"a.parquet has no text in column {column}, but double")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_data_set_without_rows_says_so(tmp_path: Path, suffix: str) -> None:
    put(tmp_path / f"a{suffix}", [])
    assert failure(tmp_path).endswith("holds no row that matches *.py")
    put(tmp_path / f"b{suffix}", [row()])
    assert contents(tmp_path) == {"a.py": "x = 1\n"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_has_changed_since_it_was_listed_is_no_part_of_the_corpus(tmp_path: Path, suffix: str) -> None:
    path = put(tmp_path / f"a{suffix}", ROWS)
    found = entries_of(tmp_path)
    put(path, [*ROWS, row("new.py")])
    with pytest.raises(SourceError, match="has changed since it was listed; run again"):
        read(found, LIMIT)
    path.unlink()
    with pytest.raises(SourceError, match="cannot be read: No such file"):
        read(found, LIMIT)


def test_lines_that_have_changed_in_a_file_of_the_same_size_cannot_be_read(tmp_path: Path) -> None:
    path = put(tmp_path / "a.json", ROWS)
    found = entries_of(tmp_path)
    path.write_text(path.read_text().replace("x = 7", "x = 8"))
    assert [(entry.path, str(reason)) for entry, reason in read(found, LIMIT).rejected] == [("7.py", "unreadable")]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_that_differ_only_in_a_byte_are_not_the_same_and_copies_are(tmp_path: Path, suffix: str) -> None:
    identities = []
    for folder, text in (("one", "x = 1\n"), ("two", "x = 2\n"), ("three", "x = 1\n")):
        path = put(tmp_path / folder / f"a{suffix}", [row(content=text)])
        os.utime(path, ns=(0, 0))
        identities.append(entries_of(path.parent)[0].identity())
    assert identities[0] != identities[1]
    assert identities[0] == identities[2]


def test_a_store_that_fails_while_contents_are_read_ends_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for suffix in SUFFIXES:
        put(tmp_path / suffix[1:] / f"a{suffix}", ROWS)
        found = entries_of(tmp_path / suffix[1:])
        with monkeypatch.context() as patch:
            patch.setattr(LocalStorage, "read", lambda *arguments: b"")
            with pytest.raises(SourceError, match="has become shorter since it was listed"):
                read(found, LIMIT)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_pipe_is_named_and_not_waited_for(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"pipe{suffix}")
    assert failure(tmp_path).endswith(f"pipe{suffix} is not a file")
