"""Licence files: what they say of the files beside them and below.

A file whose source names no licence has that of the nearest licence file, in its folder or above it, within its
repository. Where several lie in one folder they must say the same: of LICENSE-MIT beside LICENSE-APACHE nobody knows
whether both hold or either does, so the licence is unknown, as it is where one of them is not recognised. Nothing
further up stands in for a licence that is unknown. Links are no licence files, as they are no documents.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from codeparrot.documents import ReadReason
from codeparrot.licenses import MAX_TEXT_LENGTH, license_of_text
from codeparrot.sources.entry import Entry

Folder = tuple[str, str]
"""A repository, and a folder of it, as paths of entries have it."""


def licensed(entries: Iterable[Entry], license_files: Iterable[Entry]) -> list[Entry]:
    """The entries, those without a licence under that of the licence file nearest to them.

    Only the nearest ones are read. Raises SourceError if the place that holds them cannot be read at all.
    """
    files: dict[Folder, list[Entry]] = {}
    for file in license_files:
        files.setdefault((file.repository, _parent(file.path)), []).append(file)
    nearest = [(entry, _nearest(entry, files) if entry.license is None else None) for entry in entries]
    needed = {folder for _, folder in nearest if folder is not None}
    licenses = _read([file for folder in sorted(needed) for file in files[folder]])
    return [replace(entry, license=licenses[folder]) if folder else entry for entry, folder in nearest]


def _nearest(entry: Entry, folders: Iterable[Folder]) -> Folder | None:
    path = entry.path
    while path:
        path = _parent(path)
        if (entry.repository, path) in folders:
            return entry.repository, path
    return None


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _read(files: Sequence[Entry]) -> dict[Folder, str | None]:
    """The licence of every folder that holds one of the files."""
    found: dict[Folder, set[str | None]] = {}
    for file, data in _contents(files):
        known = None if isinstance(data, ReadReason) else license_of_text(data.decode("utf-8-sig", "replace"))
        found.setdefault((file.repository, _parent(file.path)), set()).add(known)
    return {folder: licenses.pop() if len(licenses) == 1 else None for folder, licenses in found.items()}


def _contents(files: Sequence[Entry]) -> Iterator[tuple[Entry, bytes | ReadReason]]:
    for reader, group in groupby(files, key=lambda file: file.reader):
        together = list(group)
        yield from zip(together, reader.read(together, MAX_TEXT_LENGTH), strict=True)
