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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, field_validator

from codeparrot.documents import ReadReason
from codeparrot.errors import SourceError
from codeparrot.sources.archive_files import FORMATS, contents, listed, offered, suffix_of
from codeparrot.sources.entry import Entry, printable
from codeparrot.sources.members import DamagedArchive, TooMuchUnpacked
from codeparrot.sources.selection import SelectionSettings

logger = logging.getLogger(__name__)


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
        if suffix_of(path) is None:
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
                files = listed(reader.path, settings.max_unpacked_bytes, self._warn)
            except TooMuchUnpacked:
                limit = f"{settings.max_unpacked_bytes:,} bytes"
                raise SourceError(f"{where} unpacks to more than {limit}; raise max_unpacked_bytes") from None
        found = offered(files, settings, self._like(reader, digest))
        if not found:
            raise SourceError(f"{where} holds no file that matches {', '.join(settings.include)}")
        return found

    def _reader(self) -> "ArchiveReader":
        path = self.settings.path.expanduser().absolute()
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a file")
        return ArchiveReader(self.settings.name, path, status.st_size)

    def _warn(self, count: int, why: str) -> None:
        name, path = self.settings.name, self.settings.path
        logger.warning("source %r: archive %s: passed over %d members that %s", name, path, count, why)

    def _like(self, reader: "ArchiveReader", digest: str) -> Entry:
        suffix = suffix_of(reader.path) or ""
        own_name = printable(os.fsencode(reader.path.name))[: -len(suffix)]
        return Entry(
            source=self.settings.name,
            repository=self.settings.repository or own_name or "archive",
            path="",
            revision=self.settings.revision or f"sha256:{digest}",
            license=self.settings.license,
            size_bytes=0,
            stamp=digest,
            location=b"",
            reader=reader,
        )


@dataclass(frozen=True)
class ArchiveReader:
    """Reads members, which entries name by their place in the archive and their checksum."""

    source: str
    path: Path
    size_bytes: int
    """Of the archive when it was listed."""

    def read(self, entries: Sequence[Entry], max_file_bytes: int) -> Iterator[bytes | ReadReason]:
        """Each file, in one pass over the archive; what is damaged is unreadable.

        Raises SourceError if the archive is gone, or is another one now.
        """
        with _translated(self.source, self.path) as where:
            if self.path.stat().st_size != self.size_bytes:
                raise SourceError(f"{where} has changed since it was listed; run again")
            yield from contents(self.path, entries, max_file_bytes)


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
