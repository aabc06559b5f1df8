import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from codeparrot.errors import (
    AccessDenied,
    ConfigError,
    ObjectNotFound,
    PreconditionFailed,
    StorageError,
)
from codeparrot.settings import validate
from codeparrot.storage import LocalStorage, StorageSettings, open_storage, parse_uri, sha256_hex


def stored_files(storage: LocalStorage) -> list[str]:
    return sorted(path.relative_to(storage.root).as_posix() for path in storage.root.rglob("*") if path.is_file())


def test_what_is_written_is_read(storage: LocalStorage) -> None:
    storage.write("a/b/c.bin", b"\0\xff")
    assert storage.read("a/b/c.bin") == b"\0\xff"


def test_a_write_replaces_the_whole_object(storage: LocalStorage) -> None:
    storage.write("a", b"a long text")
    storage.write("a", b"short")
    assert storage.read("a") == b"short"


@given(st.integers(0, 12), st.none() | st.integers(0, 12))
def test_a_range_is_a_slice(tmp_path_factory: pytest.TempPathFactory, start: int, stop: int | None) -> None:
    storage = LocalStorage(str(tmp_path_factory.getbasetemp() / "ranges"))
    storage.write("a", b"0123456789")
    assert storage.read("a", start, stop) == b"0123456789"[start:stop]


def test_a_missing_object_is_named(storage: LocalStorage) -> None:
    with pytest.raises(ObjectNotFound, match="store/a/b does not exist"):
        storage.read("a/b")


def test_only_if_absent_writes_what_is_absent(storage: LocalStorage) -> None:
    storage.write("lease", b"first", only_if_absent=True)
    assert storage.read("lease") == b"first"


def test_only_if_absent_refuses_what_exists_and_leaves_it(storage: LocalStorage) -> None:
    storage.write("lease", b"first")
    with pytest.raises(PreconditionFailed, match="lease exists already"):
        storage.write("lease", b"second", only_if_absent=True)
    assert storage.read("lease") == b"first"
    assert stored_files(storage) == ["lease"]


def test_one_of_many_conditional_writers_wins(storage: LocalStorage) -> None:
    start, winners = threading.Barrier(8), []

    def compete(number: int) -> None:
        start.wait()
        try:
            storage.write("lease", bytes([number]) * 1000, only_if_absent=True)
        except PreconditionFailed:
            return
        winners.append(number)

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = winners
    assert storage.read("lease") == bytes([winner]) * 1000


def test_a_listing_is_sorted_by_path_and_gives_sizes(storage: LocalStorage) -> None:
    for path, size in (("b", 1), ("a/2", 2), ("a/10", 3), ("a/c/x", 0), ("a-b", 5)):
        storage.write(path, bytes(size))
    assert list(storage.list()) == [("a-b", 5), ("a/10", 3), ("a/2", 2), ("a/c/x", 0), ("b", 1)]


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("a/", ["a/1", "a/b/2"]),
        ("a", ["a/1", "a/b/2", "ab/3"]),
        ("a/b", ["a/b/2"]),
        ("a/b/", ["a/b/2"]),
        ("a/1", ["a/1"]),
        ("c", []),
        ("c/d/", []),
    ],
)
def test_a_prefix_is_a_beginning_of_a_path_as_on_s3(storage: LocalStorage, prefix: str, expected: list[str]) -> None:
    for path in ("a/1", "a/b/2", "ab/3", "b"):
        storage.write(path, b"")
    assert [path for path, _ in storage.list(prefix)] == expected


def test_a_half_written_object_is_not_listed(storage: LocalStorage) -> None:
    storage.write("a/whole", b"")
    (storage.root / "a" / ".half.0a1b2c3d.tmp").write_bytes(b"")
    assert [path for path, _ in storage.list()] == ["a/whole"]


def test_delete_ignores_what_is_missing_and_leaves_no_empty_folder(storage: LocalStorage) -> None:
    storage.write("a/b/c", b"")
    storage.write("a/d", b"")
    storage.delete(["a/b/c", "a/b/never"])
    assert sorted(path.name for path in storage.root.rglob("*")) == ["a", "d"]
    storage.delete(["a/d"])
    assert storage.root.is_dir()
    assert not list(storage.root.iterdir())


def test_a_write_survives_deletes_next_to_it(storage: LocalStorage) -> None:
    """Deleting the last object of a folder removes it, which may happen between making it and using it."""
    done = threading.Event()

    def disturb() -> None:
        while not done.is_set():
            storage.delete(["a/b/other"])

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(300):
            storage.write("a/b/mine", b"x")
            storage.delete(["a/b/mine"])
    finally:
        done.set()
        thread.join()


def test_a_path_through_a_file_is_a_storage_error(storage: LocalStorage) -> None:
    storage.write("a", b"")
    for conditional in (False, True):
        with pytest.raises(StorageError, match=r"store/a/b: File exists"):
            storage.write("a/b", b"", only_if_absent=conditional)


def test_no_temporary_file_stays_when_a_write_fails(storage: LocalStorage) -> None:
    storage.write("folder/file", b"")
    with pytest.raises(StorageError):
        storage.write("folder", b"a file in the place of a folder")
    assert stored_files(storage) == ["folder/file"]


FILL = """
import resource, signal, sys
from codeparrot.errors import StoreFull
from codeparrot.storage import LocalStorage

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
storage = LocalStorage(sys.argv[1])
storage.write("fits", bytes(1000))
storage.write("replaced", b"before")
for conditional in (False, True):
    try:
        storage.write("large" if conditional else "replaced", bytes(1001), only_if_absent=conditional)
    except StoreFull as error:
        print(error)
assert storage.read("replaced") == b"before"
"""


def test_a_full_disk_is_store_full_and_leaves_the_object_and_no_temporary_file(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    done = subprocess.run([sys.executable, "-c", FILL, str(tmp_path)], capture_output=True, text=True, check=True)
    messages = done.stdout.splitlines()
    assert messages == [
        f"no space left to write {storage.uri}/{name}; free some and run again" for name in ("replaced", "large")
    ]
    assert stored_files(storage) == ["fits", "replaced"]


def test_a_forbidden_folder_is_access_denied(forbidden_folder: Path) -> None:
    storage = LocalStorage(str(forbidden_folder / "secret"))
    with pytest.raises(AccessDenied, match="secret"):
        storage.read("code.py")
    with pytest.raises(AccessDenied, match="secret"):
        storage.write("code.py", b"")
    with pytest.raises(AccessDenied, match="no permission to read and write"):
        storage.check()


def test_check_makes_the_folder(tmp_path: Path) -> None:
    LocalStorage(str(tmp_path / "a" / "b")).check()
    assert (tmp_path / "a" / "b").is_dir()


def test_check_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="File exists"):
        LocalStorage(str(tmp_path / "file")).check()


def test_arrow_sees_the_same_place(storage: LocalStorage) -> None:
    storage.write("a", b"text")
    filesystem, base = storage.filesystem()
    with filesystem.open_input_file(f"{base}/a") as file:
        assert file.read() == b"text"


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("s3://bucket", ("s3", "bucket", "")),
        ("s3://bucket/", ("s3", "bucket", "")),
        ("s3://bucket/a/b/", ("s3", "bucket", "a/b")),
        ("/some/folder", ("file", "/some/folder", "")),
        ("folder", ("file", "folder", "")),
        ("file:///some/a%20folder", ("file", "/some/a folder", "")),
        ("file://localhost/some/folder", ("file", "/some/folder", "")),
    ],
)
def test_a_uri_names_a_bucket_or_a_folder(uri: str, parts: tuple[str, str, str]) -> None:
    assert parse_uri(uri) == parts


@pytest.mark.parametrize(
    "uri", ["", "s3://", "s3:///prefix", "gs://bucket/x", "http://host", "file://folder", "file:", "s3://[bad"]
)
def test_any_other_uri_is_refused_by_name(uri: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_uri(uri)
    assert repr(uri) in str(caught.value)
    assert "s3://BUCKET/PREFIX" in str(caught.value)


def test_a_wrong_uri_is_reported_together_with_other_problems() -> None:
    with pytest.raises(ConfigError) as caught:
        validate(StorageSettings, {"uri": "gs://bucket", "colour": "red"}, "run.yaml")
    assert str(caught.value).startswith("run.yaml: 2 problems\n  uri: cannot use 'gs://bucket'; write s3://")


def test_settings_keep_the_uri_as_it_is_written() -> None:
    assert StorageSettings(uri="s3://bucket/x/").uri == "s3://bucket/x/"
    with pytest.raises(ValidationError):
        StorageSettings(uri="")


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_folder_opens_as_a_local_store(tmp_path: Path, form: str) -> None:
    storage = open_storage(form.format(tmp_path))
    assert isinstance(storage, LocalStorage)
    assert storage.root == tmp_path
    assert storage.uri == tmp_path.as_uri()


def test_the_uri_of_a_store_opens_the_same_store(tmp_path: Path) -> None:
    first = LocalStorage(str(tmp_path / "a folder#1?"))
    second = open_storage(first.uri)
    assert isinstance(second, LocalStorage)
    assert second.root == first.root


def test_a_relative_folder_is_bound_to_the_working_directory_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = LocalStorage("store")
    monkeypatch.chdir(os.sep)
    storage.write("a", b"")
    assert (tmp_path / "store" / "a").exists()


def test_sha256_is_the_one_of_the_standard() -> None:
    assert sha256_hex(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
