"""Data sets as sources: every row of their files may be a document.

Listing is one pass over the columns that say what a row is: of Parquet nothing else is read if a column holds the size,
JSON lines are read whole. A task then reads contents from the row groups that hold its rows; compressed JSON lines it
reads from their beginning, for every raw shard anew, so Parquet, or a larger `collect.shard_bytes`, is better for
files of gigabytes. Rows get into shards block by block, in the order in which the blocks lie in files. The process that
lists holds all rows that are wanted without their contents: about 350 bytes each, 900 while it chooses, so 4.5 GB for
five million. A line of JSON is at most 32 MiB; a longer one is too large.

Of rows with one repository and path one stays, whatever the order of rows and files: one with a licence, then that of
the greatest revision. A row without repository or path, or without a content that could be a document, is counted with
its reason. A file that is damaged ends the stage when it is listed; where only contents are damaged, the rows of that
row group are unreadable.
"""

import logging
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from typing import Any

from codeparrot.documents import ReadReason
from codeparrot.errors import SourceError, StorageError
from codeparrot.licenses import all_of
from codeparrot.sources.data_files import DataFile, UnreachableFile
from codeparrot.sources.entry import Entry, Reader, printable
from codeparrot.sources.rows import Columns, DamagedFile, Row, WrongColumns
from codeparrot.sources.selection import SelectionSettings

logger = logging.getLogger(__name__)

NUM_LISTED_AT_ONCE = 8


@dataclass(frozen=True)
class RowReader:
    """Reads rows of one file, which entries name by their place in it."""

    source: str
    file: DataFile
    content: str
    """The column that holds it."""

    def read(self, entries: Sequence[Entry], max_file_bytes: int) -> Iterator[bytes | str | ReadReason]:
        """The content of each row, in one pass over the file; what is damaged is unreadable.

        Raises SourceError if the file is gone, or is another one now.
        """
        contents: dict[bytes, bytes | str | ReadReason] = {}
        wanted = [entry.location for entry in entries]
        with _translated(self.source, self.file), suppress(DamagedFile):
            contents.update(self.file.format.contents(self.file.open(), self.content, wanted, max_file_bytes))
        for location in wanted:
            yield contents.pop(location, ReadReason.UNREADABLE)


@dataclass(frozen=True)
class NothingThere:
    """The reader of rows that cannot be documents, as their listing has shown."""

    reason: ReadReason

    def read(self, entries: Sequence[Entry], max_file_bytes: int) -> Iterator[bytes | str | ReadReason]:  # noqa: ARG002
        """The reason, for each."""
        return (self.reason for _ in entries)


def entries_of(settings: SelectionSettings, columns: Columns, files: Iterable[DataFile]) -> list[Entry]:
    """An entry for every row that is wanted, and for every row that cannot be told. Raises SourceError."""
    found: dict[tuple[str, str], Entry] = {}
    num_others = 0
    for entry in _listed(settings, columns, files):
        other = found.setdefault((entry.repository, entry.path), entry)
        if other is not entry:
            num_others += 1
            found[entry.repository, entry.path] = max(other, entry, key=_preference)
    if num_others:
        text = "source %r: passed over %d rows whose repository and path are those of another row"
        logger.warning(text, settings.name, num_others)
    return list(found.values())


def _preference(entry: Entry) -> tuple[bool, str, str, int]:
    """Of two that are equal in all of this, the first stays."""
    return entry.license is not None, entry.revision or "", entry.license or "", entry.size_bytes


def _listed(settings: SelectionSettings, columns: Columns, files: Iterable[DataFile]) -> Iterator[Entry]:
    """The entries of all files, in order; several files are listed at once."""
    is_over = threading.Event()

    def listed(file: DataFile) -> list[Entry]:
        return list(takewhile(lambda _: not is_over.is_set(), _entries(settings, columns, file)))

    with ThreadPoolExecutor(NUM_LISTED_AT_ONCE) as threads:
        try:
            for entries in threads.map(listed, files):
                yield from entries
        finally:  # after an error, or a signal, nobody waits for the other files
            is_over.set()


def _entries(settings: SelectionSettings, columns: Columns, file: DataFile) -> Iterator[Entry]:
    reader = RowReader(settings.name, file, columns.content)
    place, block = "", -1
    with _translated(settings.name, file):
        for number, row in enumerate(file.format.rows(file.open(), columns)):
            if row.block != block:
                place, block = f"{file.name}\0{row.block:08d}", row.block
            entry = _entry(settings, reader, place, number, row)
            if entry is not None:
                yield entry


def _entry(settings: SelectionSettings, reader: RowReader, place: str, number: int, row: Row) -> Entry | None:
    """None for a row that is not wanted."""
    about = row.about if isinstance(row.about, Mapping) else {}
    repository, path = _name(about.get("repository")), _name(about.get("path"))
    kind: Reader = reader
    if not repository or not path:
        reason = row.about if isinstance(row.about, ReadReason) else ReadReason.UNREADABLE
        kind, repository, path, place = NothingThere(reason), reader.file.name, f"row {number}", ""
    elif not settings.takes(path):
        return None
    return Entry(
        source=settings.name,
        repository=sys.intern(repository),
        path=path,
        revision=_name(about.get("revision")),
        license=settings.license or _license(about.get("license")),
        size_bytes=row.size_bytes,
        stamp=reader.file.stamp,
        location=row.location,
        reader=kind,
        place=place,
    )


def _name(value: Any) -> str | None:
    """Printable text, or None if it is none; a NUL would divide the id of the document otherwise than it should."""
    data = value.encode("utf-8", "backslashreplace") if isinstance(value, str) else value
    return printable(data) if isinstance(data, bytes) and data and b"\0" not in data else None


def _license(value: Any) -> str | None:
    """The expression that holds for a row: of several licences that were found in a repository, all hold."""
    texts = value if isinstance(value, list) else [value]
    names = tuple(_name(text) for text in texts if text is not None)
    return _all_of(tuple(name or "" for name in names))


@lru_cache(maxsize=4096)
def _all_of(texts: tuple[str, ...]) -> str | None:
    return all_of(texts)


@contextmanager
def _translated(source: str, file: DataFile) -> Iterator[None]:
    where = f"source {source!r}: {file.url}"
    try:
        yield
    except DamagedFile as error:
        raise SourceError(f"{where} is damaged: {error}") from error
    except (UnreachableFile, WrongColumns) as error:
        raise SourceError(f"{where} {error}") from error
    except StorageError as error:
        raise SourceError(f"source {source!r}: {error}") from error
