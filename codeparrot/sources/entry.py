"""An entry: a file that a source offers, before it is read; and how files of a folder are read."""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from codeparrot.documents import ReadReason


class Reader(Protocol):
    """How the entries of a source are read: small, since every task gets it, and equal for entries of one place."""

    def read(self, entries: "Sequence[Entry]", max_file_bytes: int) -> Iterator[bytes | str | ReadReason]:
        """For each entry, in this order, its bytes if they are at most `max_file_bytes`, or why not.

        A text where text is what lies there: nothing is to be decoded any more.
        Raises SourceError if the place that holds them cannot be read at all.
        """


@dataclass(frozen=True)
class FileReader:
    """Reads files of a folder, whose locations are absolute paths."""

    def read(self, entries: "Sequence[Entry]", max_file_bytes: int) -> Iterator[bytes | ReadReason]:
        """Each file, or why not."""
        for entry in entries:
            yield _read_file(entry.location, max_file_bytes)


FILES = FileReader()


@dataclass(frozen=True, slots=True)
class Entry:
    """One file on offer."""

    source: str
    repository: str
    path: str
    """Within the source, with `/`; printable UTF-8 whatever the file's name is."""
    revision: str | None
    license: str | None
    size_bytes: int
    stamp: int | str
    """Another one if the content is another: when the file was modified, in ns, or a hash; 0 if `revision` tells."""
    location: bytes
    """Where its reader finds it, such as the absolute path on this machine as the file system spells it."""
    reader: Reader = FILES
    place: str = ""
    """What is read in one go has one place: a source's entries get into shards in the order of their places."""
    stars: int | None = None
    """Of its repository, if the source knows: no part of what it is, since they change every day."""
    updated: datetime | None = None
    """When its repository was last changed, if the source knows."""

    def identity(self) -> tuple[str | int | None, ...]:
        """What it is, wherever it lies: part of the fingerprint of the stage that reads it."""
        what = (self.source, self.repository, self.path, self.revision, self.license)
        return (*what, self.size_bytes, self.stamp)


def _read_file(location: bytes, max_file_bytes: int) -> bytes | ReadReason:
    """The bytes of a regular file of at most `max_file_bytes`, or why not.

    Opened without following a symbolic link and without waiting for a writer, so that neither a link put in its
    place nor a named pipe can do harm.
    """
    try:
        descriptor = os.open(location, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ReadReason.UNREADABLE
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return ReadReason.NOT_REGULAR
        if status.st_size > max_file_bytes:
            return ReadReason.TOO_LARGE
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(max_file_bytes + 1)
    except OSError:
        return ReadReason.UNREADABLE
    finally:
        os.close(descriptor)
    return data if len(data) <= max_file_bytes else ReadReason.TOO_LARGE


def printable(path: bytes) -> str:
    """A file name as valid UTF-8: bytes that are not are written as `\\xNN`."""
    return path.decode("utf-8", "backslashreplace")
