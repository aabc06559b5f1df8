import logging
import os
import pickle
import random
import stat
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from codeparrot.documents import ReadReason
from codeparrot.sources import read, tar_files
from tests.unit.archive_doubles import LIMIT, SUFFIXES, X, add, contents, entries_of, pack
from tests.unit.trees import TREES, outcome, write


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_files_of_an_archive_become_documents(tmp_path: Path, suffix: str) -> None:
    path = pack(tmp_path / f"project{suffix}", {"b.py": b"b = 1\r\n", "deep/er/a.py": X, "notes.txt": X})
    found = entries_of(path, license="MIT")
    documents = read(found, LIMIT).documents
    assert [(each.repository, each.path, each.content, each.license) for each in documents] == [
        ("project", "b.py", "b = 1\n", "MIT"),
        ("project", "deep/er/a.py", "x = 1\n", "MIT"),
    ]
    assert {str(each.revision)[:7] for each in documents} == {"sha256:"}


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=20)
@given(files=TREES)
def test_an_archive_gives_what_a_folder_of_the_same_files_gives(suffix: str, files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        write(Path(name, "plain"), files)
        path = pack(Path(name, f"r{suffix}"), files)
        assert outcome("archive", path=str(path)) == outcome("directory", path=f"{name}/plain")


@pytest.mark.parametrize("suffix", [".tar.gz", ".zip"])
def test_a_part_of_the_entries_is_read_in_their_order(tmp_path: Path, suffix: str) -> None:
    path = pack(tmp_path / f"r{suffix}", {f"{number}.py": b"x = %d\n" % number for number in range(50)})
    found = pickle.loads(pickle.dumps(random.Random(0).sample(list(entries_of(path)), 20)))
    assert [f"{each.path} {each.content}" for each in read(found, LIMIT).documents] == [
        f"{entry.path} x = {entry.path[:-3]}\n" for entry in found
    ]


def test_a_shard_takes_one_pass_over_a_compressed_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = entries_of(pack(tmp_path / "r.tgz", {f"{number}.py": X for number in range(50)}))
    opened: list[object] = []
    real = tar_files._walk

    def counted(forward: tar_files._Forward) -> Any:
        opened.append(forward)
        return real(forward)

    monkeypatch.setattr(tar_files, "_walk", counted)
    assert len(read(found, LIMIT).documents) == 50
    assert len(opened) == 1


@pytest.mark.parametrize("suffix", [".tar", ".zip"])
def test_a_folder_that_holds_everything_is_left_out_of_the_paths(tmp_path: Path, suffix: str) -> None:
    path = pack(tmp_path / f"r{suffix}", {"r-1.0/setup.py": X, "r-1.0/r/a.py": X, "r-1.0/README": X})
    assert set(contents(path)) == {"setup.py", "r/a.py"}
    assert set(contents(path, include=["r/*"])) == {"r/a.py"}
    path = pack(tmp_path / f"s{suffix}", {"r-1.0/setup.py": X, "README": X})
    assert set(contents(path)) == {"r-1.0/setup.py"}


def test_include_exclude_and_folders_of_others_are_as_in_a_folder(tmp_path: Path) -> None:
    names = ("a/x.py", "a/x_pb2.py", "a/x.pyi", "build/y.py", "venv/lib/z.py", "a/node_modules/b/c.py")
    path = pack(tmp_path / "r.zip", dict.fromkeys(names, X))
    found = entries_of(path, include=["*.py", "*.pyi"], exclude=["*_pb2.py", "build/*"])
    assert [entry.path for entry in found] == ["a/x.py", "a/x.pyi"]


def test_what_it_is_called_can_be_set(tmp_path: Path) -> None:
    path = pack(tmp_path / "r.tar", {"a.py": X}).rename(tmp_path / "R-1.2.Tar")
    assert {entry.repository for entry in entries_of(path)} == {"R-1.2"}
    (entry,) = entries_of(path, repository="mine", revision="v1", name="ours")
    assert (entry.source, entry.repository, entry.revision) == ("ours", "mine", "v1")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("revision", [None, "v1"])
def test_archives_that_differ_only_in_a_byte_are_not_the_same(
    tmp_path: Path, suffix: str, revision: str | None
) -> None:
    path = tmp_path / f"r{suffix}"
    identities = []
    for data in (b"x = 1\n", b"x = 2\n", b"x = 1\n"):
        pack(path, {"a.py": data})
        os.utime(path, ns=(0, 0))
        identities.append(entries_of(path, revision=revision)[0].identity())
    assert identities[0] != identities[1]
    if suffix not in (".tar.gz", ".tgz"):  # which hold the time of packing
        assert identities[0] == identities[2]


def test_a_copy_elsewhere_is_the_same(tmp_path: Path) -> None:
    path = pack(tmp_path / "r.tgz", {"a.py": X})
    copy = tmp_path / "other/r.tgz"
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    assert entries_of(path)[0].identity() == entries_of(copy)[0].identity()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_two_members_with_one_name_the_last_counts(tmp_path: Path, suffix: str) -> None:
    path = pack(tmp_path / f"r{suffix}", [("a.py", b"a = 1\n"), ("b.py", X), ("./a.py", b"a = 2\n")])
    assert contents(path) == {"a.py": "a = 2\n", "b.py": "x = 1\n"}


def test_a_file_that_a_later_member_replaces_by_a_link_is_none(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "r.tar", "w") as tar:
        add(tar, "a.py", X)
        add(tar, "b.py", X)
        add(tar, "a.py", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    assert contents(tmp_path / "r.tar") == {"b.py": "x = 1\n"}


def test_links_devices_and_folders_are_passed_over(tmp_path: Path) -> None:
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
    with tarfile.open(tmp_path / "r.tar", "w") as tar:
        add(tar, "a.py", X)
        for number, kind in enumerate(kinds):
            add(tar, f"{number}.py", type=kind, linkname="a.py")
    with zipfile.ZipFile(tmp_path / "r.zip", "w") as archive:
        archive.writestr("a.py", X)
        archive.mkdir("folder.py")
        for number, mode in enumerate((stat.S_IFLNK, stat.S_IFIFO, stat.S_IFDIR)):
            info = zipfile.ZipInfo(f"{number}.py")
            info.external_attr = (mode | 0o777) << 16
            archive.writestr(info, "a.py")
    for name in ("r.tar", "r.zip"):
        assert contents(tmp_path / name) == {"a.py": "x = 1\n"}


@pytest.mark.parametrize("suffix", [".tar", ".zip"])
def test_names_that_lead_out_of_the_archive_are_passed_over_with_one_warning(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    outside = ["/etc/evil.py", "../evil.py", "a/../../evil.py", "..", "//evil.py"]
    path = pack(tmp_path / f"r{suffix}", dict.fromkeys(["a..b/c.py", "d.py", *outside], X))
    with caplog.at_level(logging.WARNING):
        assert contents(path) == {"a..b/c.py": "x = 1\n", "d.py": "x = 1\n"}
    assert [record.getMessage() for record in caplog.records] == [
        f"source 'archive': archive {path}: passed over 5 members that have names that lead out of it"
    ]
    assert not list(tmp_path.rglob("evil.py"))


def test_a_name_with_a_nul_byte_is_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "r.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "a.py", X)
        add(tar, "short", X, pax_headers={"path": "a\0b.py"})
    assert contents(tmp_path / "r.tar") == {"a.py": "x = 1\n"}


def test_a_file_name_that_is_not_utf_8_is_written_printably(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "r.tar", "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
        add(tar, os.fsdecode(b"caf\xe9/\xff.py"), X)
        add(tar, "\u00e9.py", X)
    raw = pack(tmp_path / "r.zip", {"caf_/_.py": X, "__.py": X}).read_bytes()
    (tmp_path / "r.zip").write_bytes(
        raw.replace(b"caf_/_.py", b"caf\xe9/\xff.py").replace(b"__.py", "\u00e9.py".encode())
    )
    for archive in ("r.tar", "r.zip"):
        assert set(contents(tmp_path / archive)) == {"caf\\xe9/\\xff.py", "\u00e9.py"}


@pytest.mark.parametrize("suffix", [".tar.xz", ".zip"])
def test_every_file_that_cannot_be_a_document_is_counted_with_its_reason(tmp_path: Path, suffix: str) -> None:
    files = {
        "big.py": b"#" * 101,
        "limit.py": b"#" * 100,
        "nul.py": b"x = '\0'",
        "empty.py": b"",
        "latin.py": b"'\xe9'",
    }
    result = read(entries_of(pack(tmp_path / f"r{suffix}", files)), 100)
    assert {entry.path: reason for entry, reason in result.rejected} == {
        "big.py": ReadReason.TOO_LARGE,
        "nul.py": ReadReason.BINARY,
        "empty.py": ReadReason.EMPTY,
        "latin.py": ReadReason.BAD_ENCODING,
    }
    assert [document.path for document in result.documents] == ["limit.py"]


def test_members_that_are_encrypted_or_packed_otherwise_are_passed_over_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with zipfile.ZipFile(tmp_path / "r.zip", "w") as archive:
        for name, method in {"a.py": zipfile.ZIP_STORED, "b.py": zipfile.ZIP_BZIP2, "c.py": zipfile.ZIP_LZMA}.items():
            archive.writestr(name, X, method)
        archive.writestr("secret.py", X)
        archive.infolist()[-1].flag_bits |= 0x1  # as the directory at the end tells it
    with caplog.at_level(logging.WARNING):
        assert contents(tmp_path / "r.zip") == {"a.py": "x = 1\n"}
    (record,) = caplog.records
    assert record.getMessage().endswith(
        "r.zip: passed over 3 members that are encrypted, or packed by an unusual method"
    )
