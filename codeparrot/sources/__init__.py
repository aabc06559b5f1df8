"""Where documents come from: one file per kind of source, one protocol.

A source lists its entries without reading them; entries are then chosen by a keyed hash (so that the choice
depends on the seed and on each entry alone, never on the order of a directory listing) and read in parallel.

    packages     the Python distributions installed in this environment
    directory    any folder of code
    git          a commit of a git repository, at a path or a URL
    archive      a tar or zip file
    github       repositories of GitHub, searched for or named
    sdist        source distributions of a Python package index
    huggingface  a data set, on the hub or in a folder
    bigquery     rows exported from a table, in a folder or an object store
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Annotated, Any, Protocol

from pydantic import Field, PositiveInt, model_validator

from codeparrot.documents import Document, ReadReason, document_id, make_document
from codeparrot.draws import key
from codeparrot.errors import EmptyCorpusError
from codeparrot.licenses import license_of_file
from codeparrot.settings import Settings
from codeparrot.sources.archive import ArchiveSettings, ArchiveSource
from codeparrot.sources.bigquery import BigQuerySettings, BigQuerySource
from codeparrot.sources.directory import DirectorySettings, DirectorySource
from codeparrot.sources.entry import Entry
from codeparrot.sources.git import GitSettings, GitSource
from codeparrot.sources.github import GitHubSettings, GitHubSource
from codeparrot.sources.huggingface import HuggingFaceSettings, HuggingFaceSource
from codeparrot.sources.packages import PackagesSettings, PackagesSource
from codeparrot.sources.sdist import SdistSettings, SdistSource

__all__ = [
    "ArchiveSettings",
    "BigQuerySettings",
    "CollectSettings",
    "DirectorySettings",
    "Entry",
    "GitHubSettings",
    "GitSettings",
    "HuggingFaceSettings",
    "PackagesSettings",
    "SdistSettings",
    "Source",
    "choose",
    "open_source",
    "read",
    "shards",
]

SourceSettings = Annotated[
    PackagesSettings
    | DirectorySettings
    | GitSettings
    | ArchiveSettings
    | GitHubSettings
    | SdistSettings
    | HuggingFaceSettings
    | BigQuerySettings,
    Field(discriminator="kind"),
]


class CollectSettings(Settings):
    """Which code, and how much of it."""

    sources: tuple[SourceSettings, ...] = Field(min_length=1)
    max_bytes: PositiveInt | None = None
    """Stop choosing files when they add up to this many bytes; null for all."""
    max_file_bytes: PositiveInt = 1_000_000
    """Larger files are rejected, as in the original corpus."""
    shard_bytes: PositiveInt = 64_000_000
    """Content of one raw shard before compression."""

    @model_validator(mode="after")
    def _distinct_names(self) -> "CollectSettings":
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"two sources share a name: {', '.join(names)}; give each its own `name`")
        return self


class Source(Protocol):
    """A place that code comes from."""

    def entries(self) -> Sequence[Entry]:
        """Every file it offers, unread, in any order. Raises SourceError if it cannot be listed."""


@dataclass(frozen=True)
class Read:
    """What came of reading the entries of one shard."""

    documents: list[Document]
    rejected: list[tuple[Entry, ReadReason]]


SOURCES: dict[type[Settings], Callable[[Any], Source]] = {
    PackagesSettings: PackagesSource,
    DirectorySettings: DirectorySource,
    GitSettings: GitSource,
    ArchiveSettings: ArchiveSource,
    GitHubSettings: GitHubSource,
    SdistSettings: SdistSource,
    HuggingFaceSettings: HuggingFaceSource,
    BigQuerySettings: BigQuerySource,
}


def open_source(settings: SourceSettings) -> Source:
    """The source that the settings describe."""
    return SOURCES[type(settings)](settings)


def choose(entries: Iterable[Entry], *, seed: int, max_bytes: int | None, max_file_bytes: int) -> list[Entry]:
    """A deterministic sample of the entries of at most `max_bytes`, sorted by source, place, repository and path.

    Entries are taken in the order of a hash keyed by the seed; those over `max_file_bytes` take no room (reading
    rejects them), and one that does not fit any more is passed over. Raises EmptyCorpusError if nothing is left.
    """
    chosen, total = [], 0
    for entry in sorted(entries, key=lambda entry: _rank(seed, entry)):
        size = entry.size_bytes if entry.size_bytes <= max_file_bytes else 0
        if max_bytes is None or total + size <= max_bytes:
            chosen.append(entry)
            total += size
    if not chosen:
        raise EmptyCorpusError("the sources offer no file; check collect.sources (paths, include, exclude)")
    return sorted(chosen, key=lambda entry: (entry.source, entry.place, entry.repository, entry.path))


def _rank(seed: int, entry: Entry) -> int:
    return key(seed, "choose", document_id(entry.source, entry.repository, entry.path))


def shards(entries: Sequence[Entry], shard_bytes: int) -> list[list[Entry]]:
    """The entries cut into consecutive groups of about `shard_bytes`, none of them empty."""
    groups: list[list[Entry]] = []
    room = 0
    for entry in entries:
        if not groups or room < entry.size_bytes:
            groups.append([])
            room = shard_bytes
        groups[-1].append(entry)
        room -= entry.size_bytes
    return groups


def read(entries: Sequence[Entry], max_file_bytes: int) -> Read:
    """Read entries; a file that cannot become a document is counted with its reason, never fatal.

    Raises SourceError if the place that holds some of them cannot be read at all.
    """
    result = Read([], [])
    for reader, group in groupby(entries, key=lambda entry: entry.reader):
        together = list(group)
        for entry, data in zip(together, reader.read(together, max_file_bytes), strict=True):
            document = data if isinstance(data, ReadReason) else _document(entry, data)
            if isinstance(document, ReadReason):
                result.rejected.append((entry, document))
            else:
                result.documents.append(document)
    return result


def _document(entry: Entry, data: bytes | str) -> Document | ReadReason:
    document = make_document(
        data,
        source=entry.source,
        repository=entry.repository,
        path=entry.path,
        revision=entry.revision,
        license=entry.license,
    )
    if isinstance(document, ReadReason):
        return document
    declared = license_of_file(document.content, entry.license)
    return replace(document, license=declared, stars=entry.stars, updated=entry.updated)
