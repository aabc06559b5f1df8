"""What a node keeps of archives elsewhere has a limit; what was not used for longest goes."""

import os
import time
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.errors import SourceError
from codeparrot.sources.archive_files import entry_of
from codeparrot.sources.entry import Entry
from codeparrot.sources.fetched import FetchedReader, files_of
from codeparrot.sources.kept import LIMIT, TARBALLS, CannotKeep, kept, remember, remembered
from tests.unit.archive_doubles import pack

SECONDS = count(1)
MINUTE = 60
NAMES = [f"{letter}.tar.gz" for letter in "abcdef"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CODEPARROT_CACHE", str(tmp_path))
    monkeypatch.setenv(LIMIT, "250")
    return tmp_path / TARBALLS


def use(name: str, size: int = 100) -> bool:
    """Whether it had to be fetched. Times of files are told apart by our own clock, since disks round theirs."""
    fetched = []

    def fetch(path: Path) -> None:
        path.write_bytes(bytes(size))
        fetched.append(path)

    path = kept(TARBALLS, name, fetch)
    assert time.time() - path.stat().st_mtime < MINUTE, "it was used now"
    now = next(SECONDS)
    os.utime(path, (now, now))
    return bool(fetched)


def held(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.suffix == ".gz"}


def test_what_was_not_used_for_longest_makes_room(cache: Path) -> None:
    assert [use("a.tar.gz"), use("b.tar.gz"), use("a.tar.gz"), use("c.tar.gz")] == [True, True, False, True]
    assert held(cache) == {"a.tar.gz", "c.tar.gz"}
    assert use("b.tar.gz")


def test_one_that_is_larger_than_the_limit_is_kept_until_the_next_comes(cache: Path) -> None:
    use("a.tar.gz")
    use("large.tar.gz", size=1000)
    assert held(cache) == {"large.tar.gz"}
    use("b.tar.gz")
    assert held(cache) == {"b.tar.gz"}


def test_answers_and_clones_stay(cache: Path) -> None:
    remember(TARBALLS, "answer.json", b"1" * 1000)
    kept(TARBALLS, "clone", lambda path: path.mkdir())
    for name in NAMES:
        use(name)
    assert remembered(TARBALLS, "answer.json") == b"1" * 1000
    assert (cache / "clone").is_dir()
    assert held(cache) == {*NAMES[-2:]}


@pytest.mark.parametrize("limit", ["all", "-1", "1e9"])
def test_a_limit_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setenv(LIMIT, limit)
    with pytest.raises(
        CannotKeep, match=f"CODEPARROT_CACHE_BYTES is a number of bytes such as 50000000000, not '{limit}'"
    ):
        use("a.tar.gz")


@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=20))
def test_what_is_held_is_what_was_used_last(names: list[str]) -> None:
    prefix = f"{next(SECONDS)}-"
    for name in names:
        use(prefix + name)
    last = list(dict.fromkeys(reversed(names)))[:2]
    folder = Path(os.environ["CODEPARROT_CACHE"]) / TARBALLS
    assert {name for name in held(folder) if name.startswith(prefix)} == {prefix + name for name in last}


def test_an_archive_that_goes_before_it_is_read_is_fetched_again(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.tar", {"a.py": b"x = 1\n"})
    found = files_of("here", archive, 1_000_000)
    like = Entry("s", "r", "", None, None, 0, 0, b"")
    entries = [entry_of(path, member, like) for path, member in found.items()]
    gone = [tmp_path / "gone.tar", tmp_path / "gone.tar", archive]

    class Going:
        def path(self) -> Path:
            return gone.pop(0)

    assert [*FetchedReader("s", Going()).read(entries, 100)] == [b"x = 1\n"]
    gone += [tmp_path / "gone.tar"] * 3
    with pytest.raises(SourceError, match=r"source 's': cannot read .*gone.tar: No such file"):
        [*FetchedReader("s", Going()).read(entries, 100)]
