import contextlib
import gzip
import io
import logging
import os
import random
import stat
import tarfile
import tempfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codeparrot.documents import ReadReason
from codeparrot.errors import ConfigError, SourceError
from codeparrot.settings import validate
from codeparrot.sources import CollectSettings, Entry, open_source, read, tar_files
from codeparrot.sources.archive import FORMATS
from tests.unit.trees import TREES, outcome, write

LIMIT = 1_000_000
X = b"x = 1\n"
SUFFIXES = sorted(FORMATS)
MODES = {".tar": "w:", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}


def entries_of(path: Path, **settings: Any) -> Sequence[Entry]:
    values = {"sources": [{"kind": "archive", "path": str(path), **settings}]}
    return open_source(validate(CollectSettings, values, "run.yaml").sources[0]).entries()


def pack(path: Path, files: Mapping[str, bytes] | Sequence[tuple[str, bytes]]) -> Path:
    """An archive of the kind that the name of `path` says."""
    pairs = files.items() if isinstance(files, Mapping) else files
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in pairs:
                archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
        return path
    with tarfile.open(path, MODES[next(suffix for suffix in MODES if path.name.endswith(suffix))]) as tar:  # type: ignore[call-overload]
        for name, data in pairs:
            add(tar, name, data)
    return path


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **about: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in about.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def contents(path: Path, **settings: Any) -> dict[str, str]:
    result = read(entries_of(path, **settings), LIMIT)
    assert not result.rejected
    return {document.path: document.content for document in result.documents}


def failure(path: Path, **settings: Any) -> str:
    with pytest.raises(SourceError) as caught:
        entries_of(path, **settings)
    message = str(caught.value)
    assert message.startswith(f"source 'archive': archive {path} ")
    assert "\n" not in message
    return message


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
    found = random.Random(0).sample(list(entries_of(path)), 20)
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


def flagged(path: Path, old: bytes, new: bytes) -> None:
    """Change every header of a zip file in place."""
    data = path.read_bytes()
    assert len(old) == len(new)
    assert old in data
    path.write_bytes(data.replace(old, new))


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


def peak(action: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


BOMB = 200_000_000


def bomb(path: Path) -> Path:
    """A few hundred kilobytes that unpack to BOMB bytes of one file."""
    zeros = b"#" * 1_000_000
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("bomb.py", "w") as file:
            for _ in range(BOMB // len(zeros)):
                file.write(zeros)
        return path
    info = tarfile.TarInfo("bomb.py")
    info.size = BOMB
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(info.tobuf())
        for _ in range(BOMB // len(zeros)):
            file.write(zeros)
        file.write(b"\0" * 10240)
    return path


@pytest.mark.parametrize("suffix", [".tgz", ".zip"])
def test_a_bomb_is_neither_unpacked_into_memory_nor_beyond_the_limit(tmp_path: Path, suffix: str) -> None:
    path = bomb(tmp_path / f"bomb{suffix}")
    assert path.stat().st_size < 2_000_000
    message = f"unpacks to more than {BOMB - 1:,} bytes; raise max_unpacked_bytes"
    assert message in failure(path, max_unpacked_bytes=BOMB - 1)
    found: list[Entry] = []
    assert peak(lambda: found.extend(entries_of(path))) < 4_000_000
    results: list[Any] = []
    assert peak(lambda: results.append(read(found, LIMIT))) < 4_000_000
    assert results[0].rejected == [(found[0], ReadReason.TOO_LARGE)]


def test_a_size_that_lies_in_a_zip_gets_no_more_unpacked(tmp_path: Path) -> None:
    path = bomb(tmp_path / "bomb.zip")
    flagged(path, BOMB.to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    (entry,) = entries_of(path, max_unpacked_bytes=1000)
    assert entry.size_bytes == 1000
    results: list[Any] = []
    assert peak(lambda: results.append(read([entry], LIMIT))) < 4_000_000
    assert results[0].rejected == [(entry, ReadReason.UNREADABLE)]


def test_a_size_that_lies_the_other_way_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "r.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.py", b"#" * 77777, zipfile.ZIP_DEFLATED)
    flagged(path, (77777).to_bytes(4, "little"), (99999).to_bytes(4, "little"))
    (entry,) = entries_of(path)
    assert read([entry], LIMIT).rejected == [(entry, ReadReason.UNREADABLE)]


def test_a_sparse_file_counts_with_what_it_unpacks_to(tmp_path: Path) -> None:
    holes = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s.py"}
    with tarfile.open(tmp_path / "r.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "s.py", b"0\n".ljust(512, b"\0"), pax_headers={**holes, "GNU.sparse.realsize": str(5_000_000)})
    assert "unpacks to more than 4,999,999 bytes" in failure(tmp_path / "r.tar", max_unpacked_bytes=4_999_999)
    (entry,) = entries_of(tmp_path / "r.tar")
    assert read([entry], LIMIT).rejected == [(entry, ReadReason.TOO_LARGE)]


def test_a_huge_header_is_not_read_into_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type = tarfile.GNUTYPE_LONGNAME
    info.size = BOMB
    with gzip.open(tmp_path / "r.tgz", "wb", compresslevel=1) as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(BOMB // 1_000_000):
            file.write(b"a" * 1_000_000)
    messages: list[str] = []
    assert peak(lambda: messages.append(failure(tmp_path / "r.tgz"))) < 4_000_000
    assert messages[0].endswith("is damaged: a header that is too large")


def test_a_header_that_leads_back_ends(tmp_path: Path) -> None:
    header = bytearray(tarfile.TarInfo("a.py").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (2**96 - 512).to_bytes(12, "big")  # -512, in base 256
    total = sum(header[:148]) + sum(header[156:]) + 8 * 32
    header[148:156] = b"%06o\0 " % total
    (tmp_path / "r.tar").write_bytes(bytes(header) * 3 + b"\0" * 1024)
    assert "is damaged: a file of negative size" in failure(tmp_path / "r.tar")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_archive_that_is_cut_off_anywhere_is_an_error(tmp_path: Path, suffix: str) -> None:
    noise = random.Random(0)
    path = pack(tmp_path / f"r{suffix}", {f"{number}.py": noise.randbytes(700) for number in range(3)})
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0")) if suffix == ".tar" else len(whole)  # of a tar's zeros a few may go
    for size in (0, 1, 100, *range(511, end, 97), end - 1):
        path.write_bytes(whole[:size])
        assert " is damaged: " in failure(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_something_else_under_the_name_of_an_archive_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"r{suffix}"
    path.write_bytes(b"<html>not found</html>" * 100)
    assert " is damaged: " in failure(path)


def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path = pack(tmp_path / "r.tar", {"a.py": X, "b.py": X, "c.py": X})
    flagged(path, b"b.py\0", b"B.py\0")
    assert failure(path).endswith("is damaged: it is cut off, or a header is damaged")


def test_a_damaged_checksum_at_the_end_is_found_by_listing(tmp_path: Path) -> None:
    path = pack(tmp_path / "r.tgz", {"a.py": X})
    data = bytearray(path.read_bytes())
    data[-8] ^= 1  # of the CRC
    path.write_bytes(data)
    assert "CRC check failed" in failure(path)


def test_damage_that_only_reading_finds_rejects_what_it_hits(tmp_path: Path) -> None:
    noise = random.Random(0)
    files = {f"{number}.py": b"# " + noise.randbytes(400).hex().encode() for number in range(9)}
    for name in ("r.zip", "r.tgz"):
        path = pack(tmp_path / name, files)
        found = entries_of(path)
        data = bytearray(path.read_bytes())
        data[len(data) // 2 : len(data) // 2 + 40] = b"\xff" * 40
        path.write_bytes(data)
        result = read(found, LIMIT)
        assert 0 < len(result.rejected) < 9
        assert {reason for _, reason in result.rejected} == {ReadReason.UNREADABLE}
        assert all(each.content.encode() == files[each.path] for each in result.documents)


def test_an_archive_that_is_gone_or_another_one_when_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = pack(tmp_path / "r.tar", {"a.py": X})
    found = entries_of(path)
    path.write_bytes(path.read_bytes() + b"\0" * 512)
    with pytest.raises(SourceError, match=r"archive .*r\.tar has changed since it was listed; run again"):
        read(found, LIMIT)
    path.unlink()
    with pytest.raises(SourceError, match=r"archive .*r\.tar cannot be read: No such file or directory"):
        read(found, LIMIT)


def test_an_archive_that_is_not_there_or_no_file_is_an_error(tmp_path: Path) -> None:
    assert failure(tmp_path / "none.zip").endswith("cannot be read: No such file or directory")
    (tmp_path / "folder.zip").mkdir()
    assert failure(tmp_path / "folder.zip").endswith("cannot be read: it is not a file")
    os.mkfifo(tmp_path / "pipe.tgz")
    assert failure(tmp_path / "pipe.tgz").endswith("cannot be read: it is not a file")
    assert "cannot be read" in failure(Path("~no-such-user/r.zip"))
    assert "cannot be read" in failure(Path("a\0b.zip"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_archive_without_a_matching_file_is_an_error(tmp_path: Path, suffix: str) -> None:
    message = r" holds no file that matches *.py"
    assert failure(pack(tmp_path / f"r{suffix}", {"notes.txt": X})).endswith(message)
    if suffix != ".zip":
        assert failure(pack(tmp_path / f"r{suffix}", {})).endswith(message)


@pytest.mark.parametrize("name", ["r", "r.gz", "r.tar.zst", "r.rar", "r.tar.gz.part"])
def test_an_archive_of_another_kind_is_a_wrong_setting(name: str) -> None:
    with pytest.raises(ConfigError, match=r"sources\.0\.archive\.path: the name ends with none of \.tar, \.tar\.gz"):
        entries_of(Path(name))


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=60)
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6))
def test_whatever_is_damaged_nothing_but_an_error_of_ours_comes_out(
    suffix: str, changes: list[tuple[int, int]]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = pack(Path(name, f"r{suffix}"), {"a.py": X * 50, "b/" + "c" * 150 + ".py": X, "d.py": X})
        data = bytearray(path.read_bytes().rstrip(b"\0") if suffix == ".tar" else path.read_bytes())
        for place, value in changes:
            data[place % len(data)] = value
        path.write_bytes(data + b"\0" * 1024 if suffix == ".tar" else data)
        with contextlib.suppress(SourceError):
            read(entries_of(path), LIMIT)


def test_crc_32_alone_would_not_tell_two_zips_apart(tmp_path: Path) -> None:
    """Two contents of one size with one CRC-32, as an adversary makes them."""
    first, second = b"plumless", b"buckeroo"
    assert zlib.crc32(first) == zlib.crc32(second)
    identities = {
        entries_of(pack(tmp_path / "r.zip", {"a.py": data}), revision="v1")[0].identity() for data in (first, second)
    }
    assert len(identities) == 2
