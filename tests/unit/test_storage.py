import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

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
    StoreFull,
    StoreUnreachable,
)
from codeparrot.settings import validate
from codeparrot.storage import LocalStorage, StorageSettings, open_storage, parse_uri, persist, sha256_hex


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


def test_a_tag_is_of_what_an_object_holds(storage: LocalStorage) -> None:
    tag = storage.write("a", b"first")
    assert storage.read_tagged("a") == (b"first", tag)
    other = storage.write("a", b"second", if_match=tag)
    assert storage.read_tagged("a") == (b"second", other)
    assert storage.write("b", b"third", only_if_absent=True) == storage.read_tagged("b")[1]
    assert len({tag, other, storage.read_tagged("b")[1]}) == 3


def test_a_missing_object_has_no_tag(storage: LocalStorage) -> None:
    with pytest.raises(ObjectNotFound, match="store/a/b does not exist"):
        storage.read_tagged("a/b")


def test_if_match_refuses_what_was_changed_and_leaves_it(storage: LocalStorage) -> None:
    tag = storage.write("a/lease", b"first")
    storage.write("a/lease", b"of another")
    with pytest.raises(PreconditionFailed, match="a/lease was changed by another writer"):
        storage.write("a/lease", b"second", if_match=tag)
    assert storage.read("a/lease") == b"of another"
    assert stored_files(storage) == ["a/lease"]


def test_if_match_refuses_what_is_gone(storage: LocalStorage) -> None:
    tag = storage.write("a/lease", b"first")
    storage.delete(["a/lease"])
    with pytest.raises(PreconditionFailed):
        storage.write("a/lease", b"second", if_match=tag)
    assert stored_files(storage) == []


def test_if_match_fits_what_is_the_same_again(storage: LocalStorage) -> None:
    tag = storage.write("a", b"first")
    storage.write("a", b"second")
    storage.write("a", b"first")
    storage.write("a", b"third", if_match=tag)
    assert storage.read("a") == b"third"


def test_one_of_many_writers_who_saw_the_same_wins_every_time(storage: LocalStorage) -> None:
    """Each round, all threads have seen the same object; stores of their own share nothing but the folder."""
    num_threads, num_rounds = 6, 10
    wins: list[tuple[int, int]] = []
    round_ends = threading.Barrier(num_threads)
    storage.write("lease", b"at first")

    def compete(number: int) -> None:
        mine = LocalStorage(str(storage.root))
        for turn in range(num_rounds):
            _, tag = mine.read_tagged("lease")
            round_ends.wait()
            try:
                mine.write("lease", b"%d of round %d" % (number, turn), if_match=tag)
            except PreconditionFailed:
                pass
            else:
                wins.append((turn, number))
            round_ends.wait()

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [turn for turn, _ in wins] == list(range(num_rounds))
    assert storage.read("lease") == b"%d of round %d" % (wins[-1][1], num_rounds - 1)
    assert stored_files(storage) == ["lease"]


def test_nothing_is_lost_when_writers_try_again(storage: LocalStorage) -> None:
    storage.write("count", b"0")

    def count() -> None:
        done = 0
        while done < 10:
            value, tag = storage.read_tagged("count")
            with contextlib.suppress(PreconditionFailed):
                storage.write("count", b"%d" % (int(value) + 1), if_match=tag)
                done += 1

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert storage.read("count") == b"40"


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


def test_sweep_removes_what_is_half_written_under_a_prefix_and_nothing_else(storage: LocalStorage) -> None:
    for path in ("a/b/whole", "a/.hidden", "a/visible.tmp", "other/whole"):
        storage.write(path, b"")
    for folder in ("a", "a/b", "other"):
        (storage.root / folder / ".half.0a1b2c3d.tmp").write_bytes(b"")
    storage.sweep("a/")
    assert stored_files(storage) == [
        "a/.hidden",
        "a/b/whole",
        "a/visible.tmp",
        "other/.half.0a1b2c3d.tmp",
        "other/whole",
    ]
    storage.sweep("")
    assert "other/.half.0a1b2c3d.tmp" not in stored_files(storage)


def test_sweep_finds_what_a_killed_writer_leaves(storage: LocalStorage) -> None:
    kill = "import os, signal; os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)"
    write = f"from codeparrot.storage import LocalStorage; LocalStorage({str(storage.root)!r}).write('a/b', b'x')"
    done = subprocess.run([sys.executable, "-c", f"{kill}; {write}"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(stored_files(storage)) == 1
    assert list(storage.list()) == []
    storage.sweep("a/")
    assert stored_files(storage) == []


def test_there_is_nothing_to_sweep_where_nothing_is(storage: LocalStorage) -> None:
    storage.sweep("never/")
    assert not storage.root.exists()


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
    conditions: list[dict[str, Any]] = [{}, {"only_if_absent": True}, {"if_match": "tag"}]
    for condition in conditions:
        with pytest.raises(StorageError, match=r"store/a/b: File exists"):
            storage.write("a/b", b"", **condition)


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
tag = storage.write("replaced", b"before")
for path, condition in (("replaced", {}), ("large", {"only_if_absent": True}), ("replaced", {"if_match": tag})):
    try:
        storage.write(path, bytes(1001), **condition)
    except StoreFull as error:
        print(error)
assert storage.read("replaced") == b"before"
"""


def test_a_full_disk_is_store_full_and_leaves_the_object_and_no_temporary_file(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    done = subprocess.run([sys.executable, "-c", FILL, str(tmp_path)], capture_output=True, text=True, check=True)
    messages = done.stdout.splitlines()
    assert messages == [
        f"no space left to write {storage.uri}/{name}; free some and run again"
        for name in ("replaced", "large", "replaced")
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


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert LocalStorage("~/store").root == tmp_path / "store"


class Action:
    """Something that fails a few times before it succeeds, and when it was called."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.num_calls = 0

    def __call__(self) -> str:
        self.num_calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses made; they take no time but on the clock."""
    made: list[float] = []
    monkeypatch.setattr("codeparrot.storage.time.sleep", made.append)
    monkeypatch.setattr("codeparrot.storage.time.monotonic", lambda: 1000 + sum(made))
    return made


def test_what_succeeds_is_not_repeated(pauses: list[float], caplog: pytest.LogCaptureFixture) -> None:
    action = Action()
    assert persist(action, 600, "a test waits") == "done"
    assert (action.num_calls, pauses, caplog.messages) == (1, [], [])


def test_what_fails_is_tried_again_with_growing_pauses_and_one_warning(
    pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    action = Action(StoreUnreachable("nobody answers"), *[StorageError("busy")] * 9)
    assert persist(action, 600, "a test waits") == "done"
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5, 5])
    assert caplog.messages == ["a test waits: nobody answers; trying again for up to 600 s"]


def test_what_goes_on_failing_is_given_up_in_time_with_its_last_error(pauses: list[float]) -> None:
    action = Action(*[StoreUnreachable("nobody answers")] * 100, StorageError("never seen"))
    action.errors[6] = StoreFull("full")
    with pytest.raises(StoreFull):
        persist(action, 10, "a test waits")
    assert sum(pauses) == pytest.approx(6.3)


def test_without_patience_what_fails_is_tried_once(pauses: list[float], caplog: pytest.LogCaptureFixture) -> None:
    action = Action(StoreUnreachable("nobody answers"))
    with pytest.raises(StoreUnreachable):
        persist(action, 0, "a test waits")
    assert (action.num_calls, pauses, caplog.messages) == (1, [], [])


@pytest.mark.parametrize("answer", [ObjectNotFound("gone"), PreconditionFailed("changed"), KeyError("a bug")])
def test_an_answer_is_no_failure(pauses: list[float], answer: Exception) -> None:
    action = Action(answer)
    with pytest.raises(type(answer)):
        persist(action, 600, "a test waits")
    assert (action.num_calls, pauses) == (1, [])


def test_sha256_is_the_one_of_the_standard() -> None:
    assert sha256_hex(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
