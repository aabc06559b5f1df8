"""The `archive` source: the files in a tar or zip file, which is read and never extracted.

A folder that holds everything (`project-1.2/`, as forges pack it) is left out of the paths, so that they are those of
the project, whatever its version. Of two members with one name the last counts, as if they were extracted in order.
Links, devices and folders are passed over; so are, with a warning, names that lead out of the archive, and members
that are encrypted or packed by other methods than zip's common two (stored, deflated). Without a `revision`, that of
every document is the SHA-256 of the archive.

The archive must be visible, under the same path, on every node that collects. A compressed tar is read from its
beginning for every shard, a zip only where the shard's files are: for tens of gigabytes a zip is faster.
"""

import errno
import hashlib
import logging
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, field_validator

from codeparrot.documents import ReadReason
from codeparrot.errors import SourceError
from codeparrot.sources.entry import Entry, printable
from codeparrot.sources.members import DamagedArchive, Format, Member, TooMuchUnpacked
from codeparrot.sources.selection import SelectionSettings
from codeparrot.sources.tar_files import BZIP2, GZIP, PLAIN, XZ
from codeparrot.sources.zip_files import ZIP

logger = logging.getLogger(__name__)

FORMATS: dict[str, Format] = {
    ".tar": PLAIN,
    ".tar.gz": GZIP,
    ".tgz": GZIP,
    ".tar.bz2": BZIP2,
    ".tar.xz": XZ,
    ".zip": ZIP,
}
"""By the end of a file's name. Zstandard is not in the standard library of every Python that this runs on."""


class ArchiveSettings(SelectionSettings):
    """A tar or zip file."""

    kind: Literal["archive"]
    path: Path
    """The file: .tar, .tar.gz, .tgz, .tar.bz2, .tar.xz or .zip; relative paths start at the working directory."""
    name: str = Field(default="archive", min_length=1)
    """How this source is called in the corpus."""
    repository: str | None = Field(default=None, min_length=1)
    """The repository's name in the corpus; null: the name of the archive, without its suffix."""
    revision: str | None = None
    """A commit or date to record with every document; null: the SHA-256 of the archive."""
    max_unpacked_bytes: PositiveInt = 50_000_000_000
    """An archive that unpacks to more is refused."""

    @field_validator("path")
    @classmethod
    def _has_a_known_suffix(cls, path: Path) -> Path:
        if _suffix(path) is None:
            raise ValueError(f"the name ends with none of {', '.join(FORMATS)}")
        return path


class ArchiveSource:
    """Lists an archive."""

    def __init__(self, settings: ArchiveSettings) -> None:
        self.settings = settings

    def entries(self) -> Sequence[Entry]:
        """Every file of the archive that is wanted."""
        settings = self.settings
        with _translated(settings.name, settings.path) as where:
            reader = self._reader()
            with reader.path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            try:
                members = self._usable(FORMATS[reader.suffix].members(reader.path, settings.max_unpacked_bytes))
            except TooMuchUnpacked:
                limit = f"{settings.max_unpacked_bytes:,} bytes"
                raise SourceError(f"{where} unpacks to more than {limit}; raise max_unpacked_bytes") from None
        found = [
            self._entry(reader, digest, path, member)
            for path, member in _without_common_folder(members)
            if settings.takes(path)
        ]
        if not found:
            raise SourceError(f"{where} holds no file that matches {', '.join(settings.include)}")
        return found

    def _reader(self) -> "ArchiveReader":
        path = self.settings.path.expanduser().absolute()
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a file")
        suffix = _suffix(path)
        assert suffix is not None, "the settings are checked"
        return ArchiveReader(self.settings.name, path, suffix, status.st_size)

    def _usable(self, members: Iterable[Member]) -> dict[str, Member]:
        """Those that are files under a name within the archive, by that name; of two with one name the last."""
        found: dict[str, Member] = {}
        num_outside = num_unreadable = 0
        for member in members:
            path = _within(member.name)
            if not path:
                num_outside += member.is_file
                continue
            found.pop(path, None)
            if member.is_file and member.is_readable:
                found[path] = member
            elif member.is_file:
                num_unreadable += 1
        self._warn(num_outside, "have names that lead out of it")
        self._warn(num_unreadable, "are encrypted, or packed by an unusual method")
        return found

    def _warn(self, count: int, why: str) -> None:
        if count:
            name, path = self.settings.name, self.settings.path
            logger.warning("source %r: archive %s: passed over %d members that %s", name, path, count, why)

    def _entry(self, reader: "ArchiveReader", digest: str, path: str, member: Member) -> Entry:
        own_name = printable(os.fsencode(reader.path.name))[: -len(reader.suffix)]
        return Entry(
            source=self.settings.name,
            repository=self.settings.repository or own_name or "archive",
            path=path,
            revision=self.settings.revision or f"sha256:{digest}",
            license=self.settings.license,
            size_bytes=member.size_bytes,
            stamp=digest,
            location=b"%d %d" % (member.number, member.crc32),
            reader=reader,
        )


@dataclass(frozen=True)
class ArchiveReader:
    """Reads members, which entries name by their place in the archive and their checksum."""

    source: str
    path: Path
    suffix: str
    size_bytes: int
    """Of the archive when it was listed."""

    def read(self, entries: Sequence[Entry], max_file_bytes: int) -> Iterator[bytes | ReadReason]:
        """Each file, in one pass over the archive; what is damaged is unreadable.

        Raises SourceError if the archive is gone, or is another one now.
        """
        wanted = dict(map(_place, entries))
        contents: dict[int, bytes | ReadReason] = {}
        with _translated(self.source, self.path) as where:
            if self.path.stat().st_size != self.size_bytes:
                raise SourceError(f"{where} has changed since it was listed; run again")
            with suppress(DamagedArchive, TooMuchUnpacked):
                contents.update(FORMATS[self.suffix].contents(self.path, wanted, max_file_bytes))
        for number, crc32 in wanted.items():
            content = contents.pop(number, ReadReason.UNREADABLE)
            is_damaged = isinstance(content, bytes) and zlib.crc32(content) != crc32
            yield ReadReason.UNREADABLE if is_damaged else content


def _place(entry: Entry) -> tuple[int, int]:
    """The number of the member in the archive, and its checksum."""
    number, crc32 = map(int, entry.location.split())
    return number, crc32


@contextmanager
def _translated(source: str, path: Path) -> Iterator[str]:
    where = f"source {source!r}: archive {path}"
    try:
        yield where
    except DamagedArchive as error:
        raise SourceError(f"{where} is damaged: {error}") from error
    except (OSError, RuntimeError, ValueError) as error:  # no such user's home; a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise SourceError(f"{where} cannot be read: {reason}") from error


def _suffix(path: Path) -> str | None:
    return next((suffix for suffix in FORMATS if path.name.lower().endswith(suffix)), None)


def _within(name: bytes) -> str | None:
    """A member's name as a path in the archive, or None if extracting it could write elsewhere."""
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if name.startswith(b"/") or b".." in parts or b"\0" in name:
        return None
    return printable(b"/".join(parts))


def _without_common_folder(members: dict[str, Member]) -> list[tuple[str, Member]]:
    """Paths and members, sorted by path; a folder that holds all of them is left out."""
    tops = {path.partition("/")[0] if "/" in path else None for path in members}
    top = tops.pop() if len(tops) == 1 else None
    start = len(top) + 1 if top else 0
    return [(path[start:], member) for path, member in sorted(members.items())]
