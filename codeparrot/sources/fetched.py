"""Archives at a URL: every node that needs one fetches it into its cache, checks it and reads it there."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from codeparrot.documents import ReadReason
from codeparrot.errors import SourceError
from codeparrot.sources.archive_files import contents, listed
from codeparrot.sources.entry import Entry
from codeparrot.sources.members import DamagedArchive, Member

logger = logging.getLogger(__name__)


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
        for is_last in (False, False, True):
            path = self.archive.path()
            try:
                yield from contents(path, entries, max_file_bytes)
                return
            except OSError as error:
                if isinstance(error, FileNotFoundError) and not is_last:
                    continue  # another process needed its room a moment ago
                raise SourceError(f"source {self.source!r}: cannot read {path}: {error.strerror}") from error


def files_of(where: str, path: Path, max_unpacked_bytes: int) -> dict[str, Member]:
    """The files of a fetched archive by path. Raises TooMuchUnpacked, and SourceError if it is damaged."""

    def warn(count: int, why: str) -> None:
        logger.warning("%s: passed over %d members that %s", where, count, why)

    try:
        return listed(path, max_unpacked_bytes, warn)
    except (DamagedArchive, OSError) as error:
        raise SourceError(f"{where}: {path} is damaged ({error}); delete it, and it is fetched again") from error
