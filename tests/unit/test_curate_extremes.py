"""Collecting and curating, in this process and without near neighbours' tasks, of what must not stop a run."""

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codeparrot.dedup import exact_duplicates
from codeparrot.documents import Document, from_parquet, make_document, to_parquet, to_table
from codeparrot.errors import EmptyCorpusError
from codeparrot.manifest import Attempt
from codeparrot.settings import validate
from codeparrot.sources import CollectSettings, choose, open_source, read, shards
from codeparrot.splits import CurateSettings
from codeparrot.storage import LocalStorage
from ray_jobs.curate_shard import Placement, judge_shard, write_shard
from ray_jobs.near_index import KEYS, from_index
from ray_jobs.verdicts import Verdicts, staying

PERMISSIVE = {
    "licenses": {"allow": None, "keep_unknown": True},
    "filters": {
        "max_line_length": None,
        "min_characters_per_token": None,
        "min_alphanumeric_fraction": None,
        "config_or_test_drop_probability": None,
        "no_statement_drop_probability": None,
        "max_few_assignments": None,
    },
    "near_dedup": {},
}
CHAIN = [f"line_{number} = call_{number}(argument)" for number in range(30)]


def made(path: str, content: str, repository: str = "r") -> Document:
    document = make_document(content, source="s", repository=repository, path=path, revision=None, license="MIT")
    assert isinstance(document, Document)
    return document


def curated(storage: LocalStorage, parts: Sequence[Sequence[Document]], **values: Any) -> dict[str, str]:
    """What exact duplicates leave of documents in these shards: content by path."""
    chosen = validate(CurateSettings, {**PERMISSIVE, **values}, "run.yaml")
    attempt = Attempt(storage, "collect", "raw", {}, {}, "code")
    files = [
        attempt.write(f"part-{number:05d}.parquet", to_parquet(to_table(part))) for number, part in enumerate(parts)
    ]
    raw, place = attempt.manifest(files, {}), {"uri": storage.uri, "folder": "curated/data/x"}
    names = raw.names("part-")
    judged = [judge_shard(name, raw=raw, settings=chosen, seed=1, problems=None, **place) for name in names]
    verdicts = Verdicts(judged)
    passed, candidates = staying(verdicts.reasons), verdicts.passing()
    for name, size, here in zip(names, verdicts.sizes, verdicts.by_shard(passed), strict=True):
        keys = from_index(storage.read(f"{place['folder']}/{KEYS}{name}"), size)
        assert keys.shape == (size, 25)
        assert not keys[~here].any()
    dropped, _ = exact_duplicates(verdicts.keys[candidates], verdicts.ranks[candidates])
    verdicts.reasons[candidates[dropped]] = "exact_duplicate"
    nowhere = np.zeros(len(passed), np.bool_)
    found: dict[str, str] = {}
    arrays = zip(names, *map(verdicts.by_shard, (verdicts.reasons, nowhere)), strict=True)
    for number, (name, *columns) in enumerate(arrays):
        placement = Placement(name, number, *columns)
        written = write_shard(placement, documents=raw, settings=chosen, seed=1, **place)
        counts = written.kept["train"].num_documents, written.rejected.rejected["num_documents"].total()
        assert sum(counts) == len(columns[0])
        for file in written.files:
            data = storage.read(f"{place['folder']}/{file.name}")
            if file.name.startswith("train/"):
                table = from_parquet(data)
                found.update(zip(table["path"].to_pylist(), table["content"].to_pylist(), strict=True))
            else:
                assert from_index(data, counts[0]).shape == (counts[0], 25)
    return found


def collected(
    folder: Path, files: Mapping[bytes, bytes], max_file_bytes: int = 1_000_000
) -> tuple[list[Document], dict[str, str]]:
    """Documents, and the reasons why others are none, of a folder that holds these files."""
    for name, data in files.items():
        path = folder / "repository" / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    source = {"kind": "directory", "path": str(folder), "license": "MIT"}
    wanted = validate(CollectSettings, {"sources": [source]}, "run.yaml")
    entries = choose(open_source(wanted.sources[0]).entries(), seed=1, max_bytes=None, max_file_bytes=max_file_bytes)
    results = [read(group, max_file_bytes) for group in shards(entries, wanted.shard_bytes)]
    reasons = {
        entry.path.removeprefix("repository/"): str(reason) for result in results for entry, reason in result.rejected
    }
    return [document for result in results for document in result.documents], reasons


def test_a_folder_without_files_is_an_error_and_not_an_empty_corpus() -> None:
    with pytest.raises(EmptyCorpusError, match="the sources offer no file"):
        choose([], seed=1, max_bytes=None, max_file_bytes=1)


def test_one_document_is_curated(storage: LocalStorage) -> None:
    assert curated(storage, [[made("a.py", "x = 1\n")]]) == {"a.py": "x = 1\n"}


def test_a_hundred_thousand_tiny_documents_are_curated(storage: LocalStorage) -> None:
    texts = [f"x = {number}\n" for number in range(50_000)]
    documents = [made(f"{number}.py", text) for number, text in enumerate(texts * 2)]
    kept = curated(storage, [documents[:70_000], documents[70_000:]])
    assert sorted(kept.values()) == sorted(texts)


def test_one_document_of_fifty_megabytes_is_curated(storage: LocalStorage, tmp_path: Path) -> None:
    content = b"".join(b"value_%d = compute(%d)\n" % (number, number) for number in range(1_600_000))
    assert len(content) > 50_000_000
    documents, reasons = collected(tmp_path / "code", {b"large.py": content, b"small.py": b"x = 1\n"}, 100_000_000)
    assert not reasons
    kept = curated(storage, [documents])
    assert {path.rpartition("/")[2]: len(text) for path, text in kept.items()} == {
        "large.py": len(content),
        "small.py": 6,
    }


def test_of_documents_that_are_all_the_same_one_stays_and_of_others_all(storage: LocalStorage) -> None:
    text = "\n".join(CHAIN) + "\n"
    same = [made(f"{number:04d}.py", text + "\n" * (number % 3)) for number in range(500)]
    assert curated(storage, [same[300:], same[:300]]) == {"0000.py": text}
    different = [made(f"{number}.py", f"{text}# {number}\n") for number in range(500)]
    assert curated(storage, [different]) == {each.path: each.content for each in different}


def test_odd_bytes_in_contents_and_names_become_documents_or_reasons(storage: LocalStorage, tmp_path: Path) -> None:
    right_to_left = "word = '\u05e9\u05dc\u05d5\u05dd\u200f'  # \u202eabc\u202c\n"
    files = {
        b"nul.py": b"x = '\0'\n",
        b"surrogate.py": b"# coding: utf-7\nx = '+2AA-'\n",
        b"escaped.py": b"x = '\\ud800'\r\n",
        b"cesu.py": b"x = '\xed\xa0\x80'\n",
        b"lines.py": b"x = 1\r\ny = 2\r\n",
        b"right.py": right_to_left.encode(),
        b"caf\xe9.py": b"x = 3\n",
        b"\xff\xfe.py": b"",
    }
    documents, reasons = collected(tmp_path / "code", files)
    assert reasons == {
        "nul.py": "binary",
        "surrogate.py": "bad_encoding",
        "cesu.py": "bad_encoding",
        r"\xff\xfe.py": "empty",
    }
    kept = curated(storage, [documents])
    assert {path.removeprefix("repository/"): text for path, text in kept.items()} == {
        "escaped.py": "x = '\\ud800'\n",
        "lines.py": "x = 1\ny = 2\n",
        "right.py": right_to_left,
        r"caf\xe9.py": "x = 3\n",
    }


@settings(max_examples=10)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from("abc")), min_size=1, max_size=20),
    st.randoms(),
    st.integers(1, 4),
)
def test_what_stays_depends_on_neither_the_order_nor_the_shards(
    pairs: list[tuple[int, str]], order: Any, num_shards: int
) -> None:
    documents = [made(f"{place}.py", f"x = {content}\n", name) for place, (content, name) in enumerate(pairs)]
    shuffled = order.sample(documents, len(documents))
    parts: Iterable[list[Document]] = (shuffled[start::num_shards] for start in range(num_shards))
    with tempfile.TemporaryDirectory() as name:
        storage = LocalStorage(name)
        expected = curated(storage, [documents])
        assert curated(storage, [part for part in parts if part]) == expected
    smallest = {text: min(each.id for each in documents if each.content == text) for text in expected.values()}
    assert {each.id for each in documents if each.path in expected} == {*smallest.values()}
