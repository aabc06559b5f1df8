"""Rows of data sets as documents: what both sources that read them share."""

import json
import logging
import pickle
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codeparrot.documents import ReadReason
from codeparrot.sources import choose, json_rows, parquet_rows, read, shards
from codeparrot.storage import LocalStorage
from tests.unit.row_doubles import LIMIT, SUFFIXES, contents, entries_of, outcome, put, row, scattered

TEXTS = st.text(st.characters(codec="utf-8"), max_size=30) | st.sampled_from(
    ("# -*- coding: latin-1 -*-\n'\u00e9'", "\ufeffx = 1\r\n", "a\rb", "\0", " \n", "#" * 41)
)
NAMES = st.text("ab/._\u00e9", min_size=1, max_size=6).map(lambda name: f"{name}.py")


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows that differ in their paths."""
    paths = draw(st.lists(NAMES, min_size=1, max_size=12, unique=True))
    licenses = st.sampled_from(("mit", "gpl-2.0", "other", None))
    return [row(path, draw(TEXTS | st.none()), license=draw(licenses), repo_name=draw(NAMES)) for path in paths]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_row_that_is_wanted_is_a_document(tmp_path: Path, suffix: str) -> None:
    rows = [row("b.py", "b = 1\r\n"), row("deep/a.py", license="apache-2.0", ref="v1"), row("notes.txt")]
    documents, rejected = outcome(put(tmp_path / f"part{suffix}", rows).parent)
    assert not rejected
    assert [(each.repository, each.path, each.content, each.license, each.revision) for each in documents] == [
        ("o/r", "b.py", "b = 1\n", "MIT", "main"),
        ("o/r", "deep/a.py", "x = 1\n", "Apache-2.0", "v1"),
    ]


@settings(max_examples=40)
@given(tables(), st.sampled_from(SUFFIXES), st.integers(1, 4), st.integers(0, 9))
def test_neither_order_nor_number_nor_kind_of_files_changes_the_result(
    rows: list[dict[str, Any]], suffix: str, num_files: int, seed: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        put(Path(name, "one/part.json"), rows)
        scattered(Path(name, "other"), rows, suffix, num_files, seed)
        expected = outcome(f"{name}/one", limit=40)
        assert outcome(f"{name}/other", limit=40) == expected
        documents, rejected = expected
        assert len(documents) + rejected.total() == len(rows)


@settings(max_examples=40)
@given(st.permutations(range(6)), st.sampled_from((".parquet", ".json.gz")), st.integers(1, 3), st.data())
def test_of_rows_with_one_repository_and_path_the_same_one_stays(
    order: list[int], suffix: str, num_files: int, data: st.DataObject
) -> None:
    abouts = [("mit", "v1"), ("mit", "v2"), ("other", "v3"), ("apache-2.0", "v2"), (None, None), (None, "v9")]
    rows = [row(content=f"x = {number}\n", license=about[0], ref=about[1]) for number, about in enumerate(abouts)]
    with tempfile.TemporaryDirectory() as name:
        scattered(Path(name), [rows[number] for number in order], suffix, num_files, data.draw(st.integers(0, 9)))
        (document,) = outcome(name)[0]
    assert (document.content, document.license, document.revision) == ("x = 1\n", "MIT", "v2")


def test_rows_that_are_passed_over_for_others_are_counted_in_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "a.json", [row(), row("b.py")])
    put(tmp_path / "b.parquet", [row(), row(), row(repo_name="o/other")])
    with caplog.at_level(logging.WARNING):
        assert len(entries_of(tmp_path)) == 3
    assert [record.getMessage() for record in caplog.records] == [
        "source 'bigquery': passed over 2 rows whose repository and path are those of another row"
    ]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_text_is_not_decoded_as_it_says_that_it_once_was(tmp_path: Path, suffix: str) -> None:
    text = "# -*- coding: latin-1 -*-\nx = '\u00e9'\n"
    assert contents(put(tmp_path / f"a{suffix}", [row(content=text)]).parent) == {"a.py": text}


def test_bytes_in_a_column_are_decoded_as_a_file_would_be(tmp_path: Path) -> None:
    data = "# -*- coding: latin-1 -*-\nx = '\u00e9'\n".encode("latin-1")
    table = pa.table({"repo_name": ["o/r"], "path": ["a.py"], "content": [data]})
    pq.write_table(table, tmp_path / "a.parquet")
    columns = {"repository": "repo_name", "path": "path", "content": "content"}
    assert contents(tmp_path, columns=columns) == {"a.py": data.decode("latin-1")}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_row_that_cannot_be_a_document_is_counted_with_its_reason(tmp_path: Path, suffix: str) -> None:
    rows = {
        "limit.py": "#" * 100,
        "big.py": "#" * 101,
        "wide.py": "\u00e9" * 51,
        "none.py": None,
        "nul.py": "x = '\0'",
        "blank.py": " \n",
        "": "x = 1\n",
    }
    put(tmp_path / f"a{suffix}", [row(path, content) for path, content in rows.items()] + [row(repo_name=None)])
    result = read(entries_of(tmp_path), 100)
    assert [document.path for document in result.documents] == ["limit.py"]
    assert {entry.path: reason for entry, reason in result.rejected} == {
        "big.py": ReadReason.TOO_LARGE,
        "wide.py": ReadReason.TOO_LARGE,
        "none.py": ReadReason.NO_TEXT,
        "nul.py": ReadReason.BINARY,
        "blank.py": ReadReason.EMPTY,
        "row 6": ReadReason.UNREADABLE,
        "row 7": ReadReason.UNREADABLE,
    }


def test_what_only_json_can_hold_is_counted_too(tmp_path: Path) -> None:
    lines = [json.dumps(row(path, content)) for path, content in {"a.py": 5, "b.py": ["x"], "c.py": "\ud800"}.items()]
    lines += ["{", "[1]", "", "[" * 100_000, json.dumps(row("d.py")), json.dumps({"repo_name": "o/r", "path": "e.py"})]
    (tmp_path / "a.json").write_text("\n".join(lines))  # without a line end at the end
    documents, rejected = outcome(tmp_path)
    assert [document.path for document in documents] == ["d.py"]
    assert rejected == {"no_text": 3, "bad_encoding": 1, "unreadable": 3}


def test_text_in_parquet_that_is_not_utf_8_is_counted_or_written_printably(tmp_path: Path) -> None:
    def text(*values: bytes) -> pa.Array:
        return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())

    columns = {name: text(b"x", b"y") for name in ("repo_name", "ref", "license")}
    table = {**columns, "path": text(b"caf\xe9.py", b"b.py"), "content": text(b"x = 1\n", b"'\xe9'")}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    documents, rejected = outcome(tmp_path)
    assert [document.path for document in documents] == ["caf\\xe9.py"]
    assert rejected == {"bad_encoding": 1}


def test_a_line_that_is_too_long_is_counted_without_being_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "MAX_LINE_BYTES", 1000)
    rows = [row("a.py"), row("long.py", "#" * 5000), row("b.py", "b = 1\n"), row("end.py", "#" * 998)]
    put(tmp_path / "a.json.gz", rows)
    documents, rejected = outcome(tmp_path)
    assert [(document.path, document.content) for document in documents] == [("a.py", "x = 1\n"), ("b.py", "b = 1\n")]
    assert rejected == {"too_large": 2}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("mit", "MIT"),
        ("apache-2.0", "Apache-2.0"),
        ("gpl-2.0", "GPL-2.0-only"),
        ("bsd-3-clause", "BSD-3-Clause"),
        ("other", None),
        (None, None),
        (["MIT"], "MIT"),
        (["MIT", "Apache-2.0", "MIT"], "Apache-2.0 AND MIT"),
        (["MIT OR Apache-2.0", "ISC"], "ISC AND (MIT OR Apache-2.0)"),
        (["MIT", "no-license"], None),
        ([], None),
        ([None, "ISC"], "ISC"),
        (17, None),
        (["MIT", 17], None),
    ],
)
def test_licences_become_one_expression_of_which_all_must_hold(tmp_path: Path, found: Any, expected: str) -> None:
    put(tmp_path / "a.json", [row(license=found)])
    assert [entry.license for entry in entries_of(tmp_path)] == [expected]
    if isinstance(found, list) and 17 not in found:
        lists = pa.array([found], pa.list_(pa.string()))
        table = pa.Table.from_pylist([row()]).set_column(3, "license", lists)
        pq.write_table(table, tmp_path / "a.parquet")
        assert [entry.license for entry in entries_of(tmp_path, files=["*.parquet"])] == [expected]


def test_a_licence_of_the_recipe_wins_over_that_of_a_row_and_that_of_a_file_over_both(tmp_path: Path) -> None:
    put(tmp_path / "a.parquet", [row(), row("b.py", "# SPDX-License-Identifier: ISC\n")])
    documents, _ = outcome(tmp_path, license="LicenseRef-Own")
    assert [document.license for document in documents] == ["LicenseRef-Own", "ISC"]


def test_include_exclude_and_folders_of_others_are_as_in_a_folder(tmp_path: Path) -> None:
    names = ("a/x.py", "a/x_pb2.py", "a/x.pyi", "build/y.py", "venv/lib/z.py", "a/node_modules/b/c.py")
    put(tmp_path / "a.parquet", [row(name) for name in names])
    found = entries_of(tmp_path, include=["*.py", "*.pyi"], exclude=["*_pb2.py", "build/*"])
    assert [entry.path for entry in found] == ["a/x.py", "a/x.pyi"]


@pytest.mark.parametrize("size", ["12345", 12345, 12345.0])
def test_a_size_may_be_a_number_or_a_text_and_is_measured_if_there_is_none(tmp_path: Path, size: object) -> None:
    table = pa.Table.from_pylist([row()])
    pq.write_table(table.set_column(5, "size", pa.array([size])), tmp_path / "a.parquet")
    assert [entry.size_bytes for entry in entries_of(tmp_path)] == [12345]
    pq.write_table(table.drop_columns(["size"]), tmp_path / "a.parquet")
    assert [entry.size_bytes for entry in entries_of(tmp_path)] == [6]
    put(tmp_path / "a.parquet", [row(size=None)])
    assert [entry.size_bytes for entry in entries_of(tmp_path)] == [0]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_part_of_the_entries_is_read_in_their_order(tmp_path: Path, suffix: str) -> None:
    rows = [row(f"{number}.py", f"x = {number}\n") for number in range(50)]
    found = entries_of(scattered(tmp_path, rows, suffix, 3, 0))
    some = pickle.loads(pickle.dumps(random.Random(0).sample(list(found), 20)))
    assert [f"{each.path} {each.content}" for each in read(some, LIMIT).documents] == [
        f"{entry.path} x = {entry.path[:-3]}\n" for entry in some
    ]


def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many bytes of files have been read since it was asked last."""
    sizes: list[int] = []
    real = LocalStorage.read

    def counting(storage: LocalStorage, path: str, start: int = 0, stop: int | None = None) -> bytes:
        data = real(storage, path, start, stop)
        sizes.append(len(data))
        return data

    def asked() -> int:
        total = sum(sizes)
        sizes.clear()
        return total

    monkeypatch.setattr(LocalStorage, "read", counting)
    return asked


def noise(num_bytes: int, seed: int) -> str:
    return random.Random(seed).randbytes(num_bytes // 2).hex()


def test_listing_parquet_reads_no_content_and_a_task_only_its_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(f"{number}.py", noise(20_000, number), repo_name=f"o/{number % 7}") for number in range(300)]
    for number in range(2):
        put(tmp_path / f"{number}.parquet", rows[number::2], rows_per_group=10)
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    read_bytes = counted(monkeypatch)
    found = entries_of(tmp_path)
    assert read_bytes() < total / 10
    groups = shards(choose(found, seed=0, max_bytes=None, max_file_bytes=LIMIT), 500_000)
    assert len(groups) > 10
    for group in groups:
        assert len(read(group, LIMIT).documents) == len(group)
    assert read_bytes() < 2.5 * total  # some groups of rows are in two shards; and the footer is read by each


def test_contents_of_a_large_row_group_are_asked_for_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_rows, "BUFFER_BYTES", 10_000)
    put(tmp_path / "a.parquet", [row(f"{number}.py", noise(2_000, number)) for number in range(4000)], 4000)
    found = entries_of(tmp_path)
    read_bytes = counted(monkeypatch)
    assert len(read(found[:1], LIMIT).documents) == 1
    assert read_bytes() < (tmp_path / "a.parquet").stat().st_size / 2  # pages up to the one that holds it


def test_rows_of_unpacked_json_are_read_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "BUFFER_BYTES", 10_000)
    put(tmp_path / "a.json", [row(f"{number}.py", noise(20_000, number)) for number in range(50)])
    found = entries_of(tmp_path)
    read_bytes = counted(monkeypatch)
    assert len(read([found[1], found[-1]], LIMIT).documents) == 2
    assert read_bytes() < 200_000
