import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.errors import ManifestError
from codeparrot.manifest import (
    Attempt,
    Manifest,
    canonical,
    changed_settings,
    load_manifest,
    require_manifest,
    write_file,
)
from codeparrot.storage import LocalStorage, Storage
from tests.unit.doubles import DyingStorage, Killed

SETTINGS = {"seed": 1, "names": ("a", "b")}
INPUTS = {"raw": "0f" * 32}


def attempt(
    storage: Storage,
    *,
    settings: Mapping[str, Any] = SETTINGS,
    inputs: Mapping[str, str] = INPUTS,
    code: str = "c0de",
    time: float = 0.0,
) -> Attempt:
    return Attempt(storage, "curate", "curated", settings, inputs, code, clock=lambda: time)


def make(storage: Storage, text: bytes, **changes: Any) -> Manifest:
    """One whole attempt, as a stage does it: clear, write, commit."""
    work = attempt(storage, **changes)
    work.clear(load_manifest(storage, "curated"))
    files = [work.write(name, text) for name in ("b/00001", "a/00000")]
    return work.commit(files, {"num_documents": 2})


def test_there_is_no_output_before_the_first_commit(storage: LocalStorage) -> None:
    work = attempt(storage)
    work.write("a", b"text")
    assert load_manifest(storage, "curated") is None


def test_what_was_committed_is_loaded_and_its_files_read(storage: LocalStorage) -> None:
    committed = make(storage, b"text")
    loaded = require_manifest(storage, "curated", "curate")
    assert loaded == replace(committed, settings={"seed": 1, "names": ["a", "b"]})
    assert loaded.digest == committed.digest
    assert loaded.names() == ["a/00000", "b/00001"]
    assert loaded.names("b/") == ["b/00001"]
    assert loaded.read(storage, "a/00000") == b"text"
    assert loaded.counts == {"num_documents": 2}


def test_a_missing_output_names_the_stage_to_run(storage: LocalStorage) -> None:
    with pytest.raises(ManifestError, match=r"store/curated has no manifest.json; run `python -m ray_jobs.curate`"):
        require_manifest(storage, "curated", "curate")


def test_time_and_duration_stand_in_the_manifest_and_not_in_the_digest(storage: LocalStorage) -> None:
    times = iter((100.0, 102.5, 1000.0, 1001.0))
    made = []
    for _ in range(2):
        work = Attempt(storage, "curate", "curated", SETTINGS, INPUTS, "c0de", clock=lambda: next(times))
        made.append(work.commit([work.write("a", b"text")], {}))
    assert [(manifest.seconds, manifest.created) for manifest in made] == [
        (2.5, "1970-01-01T00:01:42Z"),
        (1.0, "1970-01-01T00:16:41Z"),
    ]
    assert made[0].digest == made[1].digest


@pytest.mark.parametrize(
    ("name", "text", "counts"), [("a", b"other", {}), ("b", b"text", {}), ("a", b"text", {"num_documents": 3})]
)
def test_the_digest_follows_the_content(storage: LocalStorage, name: str, text: bytes, counts: dict[str, int]) -> None:
    first, second = attempt(storage), attempt(storage)
    before = first.commit([first.write("a", b"text")], {}).digest
    assert second.commit([second.write(name, text)], counts).digest != before


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {**SETTINGS, "seed": 2}},
        {"settings": {**SETTINGS, "other": None}},
        {"inputs": {"raw": "1f" * 32}},
        {"inputs": {}},
        {"code": "c0df"},
    ],
)
def test_the_fingerprint_changes_with_settings_inputs_and_code(storage: LocalStorage, change: dict[str, Any]) -> None:
    committed = make(storage, b"text")
    assert attempt(storage).up_to_date(committed)
    assert not attempt(storage, **change).up_to_date(committed)


def test_the_fingerprint_does_not_change_with_time_or_the_order_of_keys(storage: LocalStorage) -> None:
    committed = make(storage, b"text")
    later = attempt(storage, time=1e9, settings=dict(reversed(SETTINGS.items())))
    assert later.up_to_date(committed)
    assert later.folder != attempt(storage).folder


def test_nothing_is_up_to_date_with_no_output(storage: LocalStorage) -> None:
    assert not attempt(storage).up_to_date(None)


def test_killed_before_any_change_the_output_is_the_previous_or_the_new_one_whole(tmp_path: Path) -> None:
    seen = []
    for num_changes in range(100):
        folder = str(tmp_path / str(num_changes))
        make(LocalStorage(folder), b"old")
        try:
            make(DyingStorage(folder, num_changes), b"new", code="new")
        except Killed:
            killed = True
        else:
            killed = False
        storage = LocalStorage(folder)
        manifest = require_manifest(storage, "curated", "curate")
        texts = {manifest.read(storage, name) for name in manifest.names()}
        assert len(manifest.names()) == 2
        assert texts == ({b"old"} if manifest.code == "c0de" else {b"new"})
        seen.append(texts)
        make(storage, b"third", code="third")
        assert len(list(storage.list("curated/"))) == 3
        if not killed:
            break
    assert seen == [{b"old"}] * 3 + [{b"new"}] * 3


def test_a_commit_removes_the_output_it_replaces_and_what_dead_attempts_left(storage: LocalStorage) -> None:
    make(storage, b"old")
    attempt(storage, code="dead").write("a/00000", b"dead")
    manifest = make(storage, b"new")
    paths = sorted(manifest.path(name) for name in manifest.names())
    assert [path for path, _ in storage.list("curated/")] == [*paths, "curated/manifest.json"]


def test_clear_without_an_output_removes_everything(storage: LocalStorage) -> None:
    attempt(storage).write("a", b"dead")
    storage.write("other/data/a", b"")
    attempt(storage).clear(None)
    assert [path for path, _ in storage.list()] == ["other/data/a"]


@given(st.integers(0, 3), st.integers(0, 7))
def test_a_flipped_bit_is_noticed(tmp_path_factory: pytest.TempPathFactory, byte: int, bit: int) -> None:
    storage = LocalStorage(str(tmp_path_factory.getbasetemp() / "flipped"))
    manifest = make(storage, b"text")
    damaged = bytearray(b"text")
    damaged[byte] ^= 1 << bit
    storage.write(manifest.path("a/00000"), bytes(damaged))
    with pytest.raises(ManifestError, match="is damaged: its SHA-256"):
        manifest.read(storage, "a/00000")
    assert manifest.read(storage, "b/00001") == b"text"


def test_a_cut_or_a_missing_file_is_noticed(storage: LocalStorage) -> None:
    manifest = make(storage, b"text")
    assert manifest.missing(storage) == []
    storage.write(manifest.path("a/00000"), b"tex")
    with pytest.raises(ManifestError, match=r"is damaged.*; delete curated/manifest.json to make it again"):
        manifest.read(storage, "a/00000")
    assert manifest.missing(storage) == ["a/00000"]
    storage.delete([manifest.path("a/00000")])
    with pytest.raises(ManifestError, match=r"is gone; delete curated/manifest.json to make it again"):
        manifest.read(storage, "a/00000")
    assert manifest.missing(storage) == ["a/00000"]


def test_a_file_that_the_manifest_does_not_name_is_an_error(storage: LocalStorage) -> None:
    with pytest.raises(ManifestError, match="names no file 'c'"):
        make(storage, b"text").read(storage, "c")


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe", b"null", b"[]", b"3", b'"text"', b"{}", b'{"files": 1}', b'{"files": ["a"], "format": 1}'],
)
def test_json_that_is_no_manifest_is_an_error(storage: LocalStorage, data: bytes) -> None:
    storage.write("curated/manifest.json", data)
    with pytest.raises(ManifestError, match=r"curated/manifest.json is damaged or of another version; delete it"):
        load_manifest(storage, "curated")


def test_a_manifest_cut_short_anywhere_is_an_error(storage: LocalStorage) -> None:
    make(storage, b"text")
    text = storage.read("curated/manifest.json")
    for size in range(0, len(text), 7):
        storage.write("curated/manifest.json", text[:size])
        with pytest.raises(ManifestError):
            load_manifest(storage, "curated")


@pytest.mark.parametrize("key", ["stage", "files", "format", "counts", "folder"])
def test_a_manifest_without_one_of_its_keys_is_an_error(storage: LocalStorage, key: str) -> None:
    make(storage, b"text")
    values = json.loads(storage.read("curated/manifest.json"))
    del values[key]
    storage.write("curated/manifest.json", json.dumps(values).encode())
    with pytest.raises(ManifestError):
        load_manifest(storage, "curated")


@pytest.mark.parametrize("change", [{"format": 2}, {"format": None}, {"unknown": 1}])
def test_a_manifest_of_another_version_is_an_error(storage: LocalStorage, change: dict[str, Any]) -> None:
    make(storage, b"text")
    values = json.loads(storage.read("curated/manifest.json")) | change
    storage.write("curated/manifest.json", json.dumps(values).encode())
    with pytest.raises(ManifestError, match="another version"):
        load_manifest(storage, "curated")


def test_a_file_may_be_written_by_a_process_that_knows_only_the_folder(storage: LocalStorage) -> None:
    work = attempt(storage)
    manifest = work.commit([write_file(storage, work.folder, "a", b"text")], {})
    assert manifest.read(storage, "a") == b"text"
    assert manifest.file("a").size_bytes == 4


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.none() | st.booleans())))
def test_canonical_json_does_not_depend_on_the_order_of_keys(value: dict[str, Any]) -> None:
    assert canonical(value) == canonical(dict(reversed(value.items())))
    assert json.loads(canonical(value)) == value
    assert canonical(value).isascii()


def test_changed_settings_are_told_one_by_one() -> None:
    old = {"a": {"b": 0.05, "same": 1}, "c": [1], "gone": True}
    new = {"a": {"b": 0.1, "same": 1}, "c": [1, 2], "new": {"x": None}}
    assert changed_settings(old, new) == [
        "a.b: 0.05 -> 0.1",
        "c: [1] -> [1, 2]",
        "gone: true -> null",
        'new: null -> {"x": null}',
    ]
    assert changed_settings(old, old) == []
