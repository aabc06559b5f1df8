"""Tar files, plain or compressed: one pass from the beginning, never more of it in memory than a file may have."""

import bz2
import gzip
import io
import lzma
import sys
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import IO, Protocol, cast

from codeparrot.documents import ReadReason
from codeparrot.sources.members import PIECE_BYTES, DamagedArchive, Member, TooMuchUnpacked

DAMAGE = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError, LookupError, RecursionError)
"""What the standard library raises where an archive is damaged."""


class Unpacked(Protocol):
    """A plain tar, as the standard library's decompressors show it."""

    def read(self, size: int, /) -> bytes: ...

    def seek(self, position: int, /) -> int: ...


class _Forward(io.RawIOBase):
    """An unpacked tar that is read forwards, in small pieces, up to `max_bytes` of it.

    So a header that claims to be huge or to lie behind itself (a loop) ends in an error.
    """

    def __init__(self, inner: Unpacked, max_bytes: int) -> None:
        self._inner = inner
        self._max_bytes = max_bytes
        self._position = 0
        self.last = b""

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or position < self._position:
            raise tarfile.ReadError("a header that points backwards")
        self._advance(position)
        self._inner.seek(position)  # which reads on where the tar is compressed
        return position

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= PIECE_BYTES:
            raise tarfile.ReadError("a header that is too large")
        self.last = self._inner.read(size)
        self._advance(self._position + len(self.last))
        return self.last

    def _advance(self, position: int) -> None:
        self._position = position
        if position > self._max_bytes:
            raise TooMuchUnpacked


@dataclass(frozen=True)
class TarFormat:
    """Tar files that one function opens."""

    open: Callable[[IO[bytes]], Unpacked]

    def members(self, path: Path, max_bytes: int) -> Iterator[Member]:
        """All members; raises DamagedArchive also for what lies behind them."""
        with path.open("rb") as file, _damage_named():
            forward = _Forward(self.open(file), max_bytes)
            total = 0
            for number, info, tar in _walk(forward):
                total += info.size  # a sparse file unpacks to more than lies in the archive
                if total > max_bytes:
                    raise TooMuchUnpacked
                name = info.name.encode("utf-8", "surrogateescape")
                yield Member(number, name, info.size, _crc32(tar, info), info.isreg())
            if forward.last.count(0) != tarfile.BLOCKSIZE:  # the library takes a bad header for the end, too
                raise tarfile.ReadError("it is cut off, or a header is damaged")
            while forward.read(PIECE_BYTES):  # so that the compression's checksum is looked at
                pass

    def contents(
        self, path: Path, numbers: Collection[int], max_file_bytes: int
    ) -> Iterator[tuple[int, bytes | ReadReason]]:
        """The content of these members, in the order of the archive, as far as it is not damaged."""
        wanted = set(numbers)
        with path.open("rb") as file, _damage_named():
            for number, info, tar in _walk(_Forward(self.open(file), sys.maxsize)):
                if number in wanted:
                    wanted.remove(number)
                    yield number, _content(tar, info, max_file_bytes)
                if not wanted:
                    return


def _walk(forward: _Forward) -> Iterator[tuple[int, tarfile.TarInfo, tarfile.TarFile]]:
    with tarfile.TarFile(fileobj=cast("IO[bytes]", forward), encoding="utf-8", errors="surrogateescape") as tar:
        number = 0
        while (info := tar.next()) is not None:
            if info.size < 0:
                raise tarfile.ReadError("a file of negative size")
            yield number, info, tar
            tar.members = []  # type: ignore[attr-defined] # or it would remember all of them
            number += 1


def _pieces(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[bytes]:
    file = tar.extractfile(info) if info.isreg() else None
    return iter(partial(file.read, PIECE_BYTES), b"") if file else iter(())


def _crc32(tar: tarfile.TarFile, info: tarfile.TarInfo) -> int:
    """Of a tar itself there is none, and that of its compression stands at the end, where no reader comes to."""
    return reduce(lambda crc32, piece: zlib.crc32(piece, crc32), _pieces(tar, info), 0)


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo, max_file_bytes: int) -> bytes | ReadReason:
    return ReadReason.TOO_LARGE if info.size > max_file_bytes else b"".join(_pieces(tar, info))


@contextmanager
def _damage_named() -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        raise DamagedArchive(" ".join(str(error).split()) or type(error).__name__) from error


def _plain(file: IO[bytes]) -> Unpacked:
    return file


PLAIN = TarFormat(_plain)
GZIP = TarFormat(partial(gzip.open, mode="rb"))
BZIP2 = TarFormat(partial(bz2.open, mode="rb"))
XZ = TarFormat(partial(lzma.open, mode="rb"))
