import os
import random
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.documents import ReadReason
from codeparrot.errors import ConfigError, EmptyCorpusError, SourceError
from codeparrot.manifest import canonical
from codeparrot.settings import validate
from codeparrot.sources import CollectSettings, Entry, choose, open_source, read, shards
from codeparrot.sources.entry import FileReader

LIMIT = 1_000_000


def entries_of(folder: Path, **settings: Any) -> Sequence[Entry]:
    values = {"sources": [{"kind": "directory", "path": str(folder), **settings}]}
    return open_source(validate(CollectSettings, values, "run.yaml").sources[0]).entries()


def packages(*names: str, **settings: Any) -> Sequence[Entry]:
    values = {"sources": [{"kind": "packages", "distributions": names or ("*",), **settings}]}
    return open_source(validate(CollectSettings, values, "run.yaml").sources[0]).entries()


def file(folder: Path, name: str, data: bytes = b"x = 1\n") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def entry(number: int, size_bytes: int) -> Entry:
    return Entry("s", f"r{number % 3}", f"{number}.py", None, None, size_bytes, 0, b"/nowhere/%d.py" % number)


def reasons(folder: Path, **settings: Any) -> dict[str, ReadReason]:
    return {entry.path: reason for entry, reason in read(entries_of(folder, **settings), LIMIT).rejected}


def test_a_folder_offers_its_files_each_subfolder_a_repository(tmp_path: Path) -> None:
    file(tmp_path, "corpus/one/a/x.py", b"x = 1\r\n")
    file(tmp_path, "corpus/two/y.py")
    file(tmp_path, "corpus/z.py")
    file(tmp_path, "corpus/two/notes.txt")
    documents = read(entries_of(tmp_path / "corpus", revision="v1", license="MIT"), LIMIT).documents
    assert {(document.repository, document.path) for document in documents} == {
        ("one", "one/a/x.py"),
        ("two", "two/y.py"),
        ("corpus", "z.py"),
    }
    first = min(documents, key=lambda document: document.path)
    assert (first.content, first.revision, first.license, first.language, first.source) == (
        "x = 1\n",
        "v1",
        "MIT",
        "Python",
        "directory",
    )


def test_a_folder_may_be_one_repository(tmp_path: Path) -> None:
    file(tmp_path, "one/x.py")
    assert [entry.repository for entry in entries_of(tmp_path, repository="mine")] == ["mine"]


def test_exclude_wins_over_include(tmp_path: Path) -> None:
    for name in ("a/x.py", "a/x_pb2.py", "a/x.pyi", "build/y.py"):
        file(tmp_path, name)
    found = entries_of(tmp_path, include=["*.py", "*.pyi"], exclude=["*_pb2.py", "build/*"])
    assert sorted(entry.path for entry in found) == ["a/x.py", "a/x.pyi"]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"source 'directory': folder .*/missing does not exist"):
        entries_of(tmp_path / "missing")


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"a\.py is not a folder"):
        entries_of(file(tmp_path, "a.py"))


def test_a_folder_without_a_matching_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"holds no file that matches \*\.py"):
        entries_of(tmp_path)
    file(tmp_path, "notes.txt")
    with pytest.raises(SourceError, match=r"holds no file that matches \*\.py"):
        entries_of(tmp_path)


@pytest.mark.parametrize("path", ["a" * 300, "a\0b", "~no-such-user/code"])
def test_a_path_that_cannot_be_a_folder_is_an_error(path: str) -> None:
    with pytest.raises(SourceError, match="cannot read folder"):
        entries_of(Path(path))


def test_a_forbidden_folder_is_an_error(forbidden_folder: Path) -> None:
    with pytest.raises(SourceError, match="no permission to read folder"):
        entries_of(forbidden_folder / "secret")
    with pytest.raises(SourceError, match="Permission denied"):
        entries_of(forbidden_folder / "secret" / "inner")


def test_symbolic_links_are_not_followed_and_a_loop_ends(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    file(corpus, "one/x.py")
    file(tmp_path, "outside/secret.py")
    (corpus / "one" / "loop").symlink_to(corpus)
    (corpus / "outside").symlink_to(tmp_path / "outside")
    (corpus / "one" / "link.py").symlink_to(tmp_path / "outside" / "secret.py")
    (corpus / "one" / "self.py").symlink_to("self.py")
    assert [entry.path for entry in entries_of(corpus)] == ["one/x.py"]


def test_sockets_and_pipes_are_not_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file(tmp_path, "x.py")
    os.mkfifo(tmp_path / "pipe.py")
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.py")
        assert [entry.path for entry in entries_of(tmp_path)] == ["x.py"]


def test_a_file_name_that_is_not_utf_8_is_read_and_written_printably(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9/\xff.py")).write_bytes(b"x = 1\n")
    (document,) = read(entries_of(tmp_path), LIMIT).documents
    assert (document.repository, document.path) == ("caf\\xe9", "caf\\xe9/\\xff.py")
    assert document.id.encode()


def test_a_huge_one_line_file_is_too_large(tmp_path: Path) -> None:
    with (tmp_path / "huge.py").open("wb") as huge:
        huge.truncate(50_000_000)
    file(tmp_path, "limit.py", b"#" * LIMIT)
    file(tmp_path, "over.py", b"#" * (LIMIT + 1))
    assert reasons(tmp_path) == {"huge.py": ReadReason.TOO_LARGE, "over.py": ReadReason.TOO_LARGE}


def test_every_file_that_cannot_be_a_document_is_counted_with_its_reason(tmp_path: Path) -> None:
    file(tmp_path, "empty.py", b"")
    file(tmp_path, "blank.py", b" \n\t\n")
    file(tmp_path, "binary.py", b"\x7fELF\0")
    file(tmp_path, "latin.py", b"x = '\xe9'\n")
    file(tmp_path, "good.py")
    assert reasons(tmp_path) == {
        "empty.py": ReadReason.EMPTY,
        "blank.py": ReadReason.EMPTY,
        "binary.py": ReadReason.BINARY,
        "latin.py": ReadReason.BAD_ENCODING,
    }


def test_a_forbidden_file_is_unreadable(forbidden_folder: Path) -> None:
    secret = replace(entry(1, 6), location=os.fsencode(forbidden_folder / "secret" / "code.py"))
    assert read([secret], LIMIT).rejected == [(secret, ReadReason.UNREADABLE)]


def test_a_file_that_has_gone_since_the_listing_is_unreadable(tmp_path: Path) -> None:
    path = file(tmp_path, "x.py")
    found = entries_of(tmp_path)
    path.unlink()
    assert read(found, LIMIT).rejected == [(found[0], ReadReason.UNREADABLE)]


def test_a_link_put_in_the_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    path = file(tmp_path, "corpus/x.py")
    found = entries_of(tmp_path / "corpus")
    path.unlink()
    path.symlink_to(file(tmp_path, "secret.py"))
    assert read(found, LIMIT).rejected == [(found[0], ReadReason.UNREADABLE)]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_folder_put_in_the_place_of_a_file_does_not_hang(tmp_path: Path, make: Any) -> None:
    path = file(tmp_path, "x.py")
    found = entries_of(tmp_path)
    path.unlink()
    make(path)
    assert read(found, LIMIT).rejected == [(found[0], ReadReason.NOT_REGULAR)]


def test_a_file_that_has_grown_since_the_listing_is_too_large(tmp_path: Path) -> None:
    path = file(tmp_path, "x.py")
    found = entries_of(tmp_path)
    path.write_bytes(b"#" * 101)
    assert read(found, 100).rejected == [(found[0], ReadReason.TOO_LARGE)]


def test_the_installed_distributions_are_a_corpus_with_licences() -> None:
    found = packages("hypothesis", "packaging", include=["*.py"], exclude=["*/_parser.py"])
    assert {entry.repository for entry in found} == {"hypothesis", "packaging"}
    assert not [entry for entry in found if entry.path.endswith("/_parser.py")]
    result = read(found[:20], LIMIT)
    assert len(result.documents) + len(result.rejected) == 20
    assert {document.license for document in result.documents} == {"MPL-2.0"}
    assert all(document.revision for document in result.documents)


def test_distributions_can_be_excluded() -> None:
    found = packages("hypothesis", "packagin*", exclude_distributions=["hypo*"])
    assert {entry.repository for entry in found} == {"packaging"}


def test_a_distribution_that_is_not_installed_is_an_error() -> None:
    with pytest.raises(SourceError, match="not installed here: no-such-package"):
        packages("hypothesis", "no-such-package")


@pytest.mark.parametrize("glob", ["hypothesi?", "[h]ypothesis", "hypothes*"])
def test_a_glob_is_no_plain_name(glob: str) -> None:
    assert {entry.repository for entry in packages(glob)} == {"hypothesis"}


def test_no_matching_file_is_an_error() -> None:
    with pytest.raises(SourceError, match="no installed distribution has a matching file"):
        packages("no-such-*")


def distribution(folder: Path, name: str, version: str, metadata: str | None = None) -> None:
    info = f"{name}-{version}.dist-info"
    file(folder, f"{name}.py", f"version = '{version}'\n".encode())
    file(folder, f"{info}/RECORD", f"{name}.py,,\n{info}/RECORD,,\n../../bin/{name}.py,,\nabsent.py,,\n".encode())
    if metadata != "":
        text = metadata or f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nLicense: MIT, BSD\n"
        file(folder, f"{info}/METADATA", text.encode())


def test_what_a_broken_uninstallation_left_behind_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(tmp_path, "whole", "1.0")
    distribution(tmp_path, "broken", "1.0", metadata="")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert [(entry.repository, entry.path, entry.license) for entry in packages()] == [("whole", "whole.py", None)]


@pytest.mark.parametrize("finder", ["importlib.metadata", "importlib_metadata"])
def test_either_library_s_view_of_what_was_left_behind_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finder: str
) -> None:
    """The second replaces the first's finder in a process that imports it, and raises where the first gives None."""
    distribution(tmp_path, "broken", "1.0", metadata="")
    path_distribution = pytest.importorskip(finder).PathDistribution(tmp_path / "broken-1.0.dist-info")
    monkeypatch.setattr("codeparrot.sources.packages.distributions", lambda: [path_distribution])
    with pytest.raises(SourceError, match="no installed distribution has a matching file"):
        packages()


def test_of_two_installations_the_one_that_python_imports_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(tmp_path / "first", "my_package", "2.0")
    distribution(tmp_path / "second", "my_package", "1.0")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "first"), str(tmp_path / "second")])
    (found,) = packages("my-package")
    assert (found.revision, found.repository) == ("2.0", "my-package")
    assert read([found], LIMIT).documents[0].content == "version = '2.0'\n"


SIZES = st.lists(st.integers(0, 100), min_size=1, max_size=40)


@given(SIZES, st.integers(0, 5), st.integers(100, 500) | st.none(), st.randoms())
def test_the_choice_does_not_depend_on_the_order_of_the_entries(
    sizes: list[int], seed: int, max_bytes: int | None, order: random.Random
) -> None:
    entries = [entry(number, size) for number, size in enumerate(sizes)]
    shuffled = order.sample(entries, len(entries))
    chosen = choose(entries, seed=seed, max_bytes=max_bytes, max_file_bytes=100)
    assert chosen == choose(shuffled, seed=seed, max_bytes=max_bytes, max_file_bytes=100)
    assert chosen == sorted(chosen, key=lambda entry: (entry.source, entry.repository, entry.path))


@given(SIZES, st.integers(100, 500), st.integers(50, 100))
def test_the_choice_is_as_large_as_it_may_be_and_no_larger(sizes: list[int], max_bytes: int, limit: int) -> None:
    entries = [entry(number, size) for number, size in enumerate(sizes)]
    chosen = choose(entries, seed=0, max_bytes=max_bytes, max_file_bytes=limit)
    total = sum(entry.size_bytes for entry in chosen if entry.size_bytes <= limit)
    assert total <= max_bytes
    left_out = [entry.size_bytes for entry in entries if entry not in chosen]
    assert all(total + size > max_bytes for size in left_out)
    assert all(size <= limit for size in left_out)


def test_without_a_limit_everything_is_chosen() -> None:
    entries = [entry(number, 10) for number in range(20)]
    assert {*choose(entries, seed=0, max_bytes=None, max_file_bytes=5)} == {*entries}


def test_another_seed_chooses_otherwise() -> None:
    entries = [entry(number, 10) for number in range(100)]
    first, second = ({*choose(entries, seed=seed, max_bytes=500, max_file_bytes=100)} for seed in (0, 1))
    assert len(first) == len(second) == 50
    assert 10 < len(first & second) < 40


def test_nothing_to_choose_is_an_error() -> None:
    with pytest.raises(EmptyCorpusError, match=r"check collect\.sources"):
        choose([], seed=0, max_bytes=None, max_file_bytes=1)


@given(SIZES, st.integers(1, 200))
def test_shards_hold_every_entry_in_order_and_are_neither_empty_nor_too_large(
    sizes: list[int], shard_bytes: int
) -> None:
    entries = [entry(number, size) for number, size in enumerate(sizes)]
    groups = shards(entries, shard_bytes)
    assert [entry for group in groups for entry in group] == entries
    assert all(groups)
    assert all(sum(entry.size_bytes for entry in group) <= shard_bytes for group in groups if len(group) > 1)


def test_what_an_entry_is_does_not_depend_on_where_it_lies_and_has_one_spelling() -> None:
    """Another spelling would make every corpus again."""
    one = entry(1, 10)
    assert canonical([one.identity()]) == b'[["s","r1","1.py",null,null,10,0]]'
    assert replace(one, location=b"/elsewhere", reader=FileReader()).identity() == one.identity()
    for other in ({"revision": "v1"}, {"license": "MIT"}, {"size_bytes": 11}, {"stamp": 1}, {"path": "2.py"}):
        assert replace(one, **other).identity() != one.identity()


def test_no_entries_make_no_shards() -> None:
    assert shards([], 10) == []


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"sources": []}, "sources: "),
        ({"sources": [{"kind": "ftp"}]}, "sources.0: "),
        ({"sources": [{"kind": "packages"}, {"kind": "packages"}]}, "two sources share a name: packages, packages"),
        ({"sources": [{"kind": "directory"}]}, "sources.0.directory.path: required key is missing"),
        ({"sources": [{"kind": "git"}]}, "sources.0.git.url: required key is missing"),
        ({"sources": [{"kind": "archive"}]}, "sources.0.archive.path: required key is missing"),
        ({"sources": [{"kind": "git", "url": "x", "name": ""}]}, "sources.0.git.name: "),
        ({"sources": [{"kind": "packages"}], "max_bytes": 0}, "max_bytes: must be > 0, got 0"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(CollectSettings, values, "run.yaml")
    assert problem in str(caught.value)
