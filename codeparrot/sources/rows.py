"""What a data set holds, before its texts are read: the words that Parquet and JSON lines share."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from io import RawIOBase
from typing import Any, Protocol

from pydantic import Field

from codeparrot.documents import ReadReason
from codeparrot.settings import Settings


class DamagedFile(Exception):
    """A file is not of its kind, is cut off or was changed; the message says how, on one line."""


class WrongColumns(Exception):
    """A file does not hold what it should; the message says what it holds, on one line."""


class Columns(Settings):
    """The names of the columns that hold what a document has."""

    repository: str = Field(min_length=1)
    path: str = Field(min_length=1)
    content: str = Field(min_length=1)
    revision: str | None = None
    """A commit or branch; null: unknown."""
    license: str | None = None
    """One licence, or a list of which all hold; null: unknown."""
    size: str | None = None
    """Bytes of `content`, so that choosing among rows of Parquet reads no content; null: they are counted."""

    def required(self) -> dict[str, str]:
        """Without these a row is no document: what it is called here, and the column."""
        return {"repository": self.repository, "path": self.path, "content": self.content}

    def described(self) -> dict[str, str]:
        """The columns that say what a row is, but for its size and content."""
        named = {"revision": self.revision, "license": self.license}
        names = {name: column for name, column in named.items() if column is not None}
        return {"repository": self.repository, "path": self.path, **names}


@dataclass(frozen=True, slots=True)
class Row:
    """One row, without its content."""

    location: bytes
    """Where it is in its file."""
    block: int
    """The part of the file, from 0, that is read for it."""
    about: Mapping[str, Any] | ReadReason
    """Repository, path, revision and licence as they stand there, text maybe as bytes; or why there is nothing."""
    size_bytes: int = 0


class RowFormat(Protocol):
    """A kind of file that holds rows."""

    def rows(self, file: RawIOBase, columns: Columns) -> Iterator[Row]:
        """All rows, in order. Raises DamagedFile and WrongColumns."""

    def contents(
        self, file: RawIOBase, column: str, locations: Collection[bytes], max_bytes: int
    ) -> Iterator[tuple[bytes, bytes | str | ReadReason]]:
        """The location and the content of these rows, or why not, in any order. Raises DamagedFile."""


def wrong_columns(missing: Collection[str], present: Collection[str]) -> WrongColumns:
    """What to raise if columns are missing."""
    shown = ", ".join(sorted(present)[:20]) or "none"
    return WrongColumns(f"has no column {', '.join(sorted(missing))}; its columns: {shown}")


def one_line(error: BaseException) -> str:
    """The message of a library's error, short enough for a line of ours."""
    return " ".join(str(error).split())[:300] or type(error).__name__
