"""Archives at a URL: every node that needs one fetches it into its cache, checks it and reads it there."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from codeparrot.documents import ReadReason
from codeparrot.errors import SourceError
from codeparrot.sources.archive_files import contents
from codeparrot.sources.entry import Entry


class Fetched(Protocol):
    """An archive: small, equal to others of the same place, and all that a node needs to know to fetch it."""

    def path(self) -> Path:
        """Where this node has it. Raises SourceError if it cannot be fetched."""


@dataclass(frozen=True)
class FetchedReader:
    """Reads members, which entries name by their place in the archive and their checksum."""

    source: str
    archive: Fetched

    def read(self, entries: Sequence[Entry], max_file_bytes: int) -> Iterator[bytes | ReadReason]:
        """Each file, in one pass over the archive; what is damaged is unreadable. Raises SourceError."""
        path = self.archive.path()
        try:
            yield from contents(path, entries, max_file_bytes)
        except OSError as error:
            raise SourceError(f"source {self.source!r}: cannot read {path}: {error.strerror}") from error
