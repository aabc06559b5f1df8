"""Zip files: listed by their directory, read member by member."""

import stat
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from codeparrot.documents import ReadReason
from codeparrot.sources.members import PIECE_BYTES, DamagedArchive, Member, TooMuchUnpacked

ENCRYPTED = 0x1
UTF_8 = 0x800
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Of the others the library unpacks whole blocks of any size at once."""
DAMAGE = (zipfile.BadZipFile, EOFError, OSError, struct.error, zlib.error, ValueError, LookupError, RuntimeError)
"""What the standard library raises where an archive is damaged, or asks for more than it can."""


class ZipFormat:
    """Zip files."""

    def members(self, path: Path, max_bytes: int) -> Iterator[Member]:
        """All members. Reading one gives at most the size that it has here, so a size that lies gets nothing past."""
        total = 0
        with _opened(path) as archive:
            for number, info in enumerate(archive.infolist()):
                total += info.file_size
                if total > max_bytes:
                    raise TooMuchUnpacked
                is_readable = not info.flag_bits & ENCRYPTED and info.compress_type in METHODS
                yield Member(number, _name(info), info.file_size, info.CRC, _is_file(info), is_readable)

    def contents(
        self, path: Path, numbers: Collection[int], max_file_bytes: int
    ) -> Iterator[tuple[int, bytes | ReadReason]]:
        """The content of these members; one that is damaged is unreadable."""
        with _opened(path) as archive:
            for number in numbers:
                try:
                    yield number, _content(archive, archive.infolist()[number], max_file_bytes)
                except DAMAGE:
                    yield number, ReadReason.UNREADABLE


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo, max_file_bytes: int) -> bytes | ReadReason:
    if info.file_size > max_file_bytes:
        return ReadReason.TOO_LARGE
    if info.compress_type not in METHODS:
        return ReadReason.UNREADABLE
    with archive.open(info) as file:
        data = b"".join(iter(partial(file.read, PIECE_BYTES), b""))
    return data if len(data) == info.file_size else ReadReason.UNREADABLE


def _name(info: zipfile.ZipInfo) -> bytes:
    """The name's bytes: the library takes those that are not marked as UTF-8 for the code page of DOS."""
    name = info.orig_filename
    return name.encode("utf-8" if info.flag_bits & UTF_8 else "cp437")


def _is_file(info: zipfile.ZipInfo) -> bool:
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 if it was not packed on a Unix
    return not info.is_dir() and kind in (0, stat.S_IFREG)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    with path.open("rb") as file:
        try:
            archive = zipfile.ZipFile(file)
        except DAMAGE as error:
            raise DamagedArchive(" ".join(str(error).split()) or type(error).__name__) from error
        with archive:
            yield archive


ZIP = ZipFormat()
