"""Archives that are damaged, cut off, changed, or meant to do harm."""

import contextlib
import gzip
import os
import random
import tarfile
import tempfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codeparrot.documents import ReadReason
from codeparrot.errors import ConfigError, SourceError
from codeparrot.sources import Entry, read
from tests.unit.archive_doubles import LIMIT, SUFFIXES, X, add, entries_of, failure, flagged, pack


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


def test_what_lies_behind_the_end_of_a_tar_counts_too(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "r.tgz", "wb", compresslevel=1) as file:
        info = tarfile.TarInfo("a.py")
        file.write(info.tobuf() + b"\0" * 10240 + b"\0" * 1_000_000)
    assert entries_of(tmp_path / "r.tgz", max_unpacked_bytes=2_000_000)
    assert "unpacks to more than 1,000,000 bytes" in failure(tmp_path / "r.tgz", max_unpacked_bytes=1_000_000)


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
