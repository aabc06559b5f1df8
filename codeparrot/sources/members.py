"""What an archive holds, before any of it is read: the words that tar and zip files share."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from codeparrot.documents import ReadReason

PIECE_BYTES = 1 << 16
"""No more is ever asked of a decompressor at once."""


class DamagedArchive(Exception):
    """An archive is no archive, is cut off or was changed; the message says how, on one line."""


class TooMuchUnpacked(Exception):
    """An archive unpacks to more than it may."""


@dataclass(frozen=True)
class Member:
    """One thing that an archive holds."""

    number: int
    """Its place in the archive, from 0."""
    name: bytes
    size_bytes: int
    """Of its content, as the archive says; reading gives no more."""
    crc32: int
    """Of its content, so that damage is seen when it is read, wherever it is."""
    is_file: bool
    """A regular one: no link, no folder, no device."""
    is_readable: bool = True
    """Neither encrypted nor packed in a way that is not known here."""


class Format(Protocol):
    """A kind of archive file. Both functions raise OSError if it cannot be opened."""

    def members(self, path: Path, max_bytes: int) -> Iterator[Member]:
        """All members, in order.

        Raises DamagedArchive, and TooMuchUnpacked as soon as more than `max_bytes` would have to be unpacked.
        """

    def contents(
        self, path: Path, numbers: Collection[int], max_file_bytes: int
    ) -> Iterator[tuple[int, bytes | ReadReason]]:
        """The number and the content of these members, or why not, in any order. Raises DamagedArchive."""
