"""An entry: a file that a source offers, before it is read."""

import os
import stat
from dataclasses import dataclass
from fnmatch import fnmatchcase

from codeparrot.documents import ReadReason


@dataclass(frozen=True)
class Entry:
    """One file on offer."""

    source: str
    repository: str
    path: str
    """Within the source, with `/`; printable UTF-8 whatever the file's name is."""
    revision: str | None
    license: str | None
    size_bytes: int
    modified_ns: int
    location: bytes
    """Absolute path on this machine, as the file system spells it."""


def read_entry(entry: Entry, max_file_bytes: int) -> bytes | ReadReason:
    """The bytes of a regular file of at most `max_file_bytes`, or why not.

    Opened without following a symbolic link and without waiting for a writer, so that neither a link put in its
    place nor a named pipe can do harm.
    """
    try:
        descriptor = os.open(entry.location, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
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


def matches(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether the path, or its last part, matches one of the globs (`*` also crosses `/`)."""
    name = path.rsplit("/", 1)[-1]
    return any(fnmatchcase(path, pattern) or fnmatchcase(name, pattern) for pattern in patterns)
