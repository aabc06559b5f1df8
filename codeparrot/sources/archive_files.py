"""The files of an archive, wherever it came from: their paths within it, the entries they become, their contents."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from codeparrot.documents import ReadReason
from codeparrot.sources.entry import Entry, printable
from codeparrot.sources.license_files import licensed
from codeparrot.sources.members import DamagedArchive, Format, Member, TooMuchUnpacked
from codeparrot.sources.selection import SelectionSettings
from codeparrot.sources.tar_files import BZIP2, GZIP, PLAIN, XZ
from codeparrot.sources.zip_files import ZIP

FORMATS: dict[str, Format] = {
    ".tar": PLAIN,
    ".tar.gz": GZIP,
    ".tgz": GZIP,
    ".tar.bz2": BZIP2,
    ".tar.xz": XZ,
    ".zip": ZIP,
}
"""By the end of a file's name. Zstandard is not in the standard library of every Python that this runs on."""

Warn = Callable[[int, str], object]
"""Told how many members were passed over, and why."""


def suffix_of(path: Path) -> str | None:
    """The end of the name that tells the format, or None."""
    return next((suffix for suffix in FORMATS if path.name.lower().endswith(suffix)), None)


def listed(path: Path, max_unpacked_bytes: int, warn: Warn) -> dict[str, Member]:
    """The files of an archive by path, sorted; a folder that holds all of them is left out of the paths.

    Raises OSError, DamagedArchive, and TooMuchUnpacked.
    """
    return _without_common_folder(_usable(_format(path).members(path, max_unpacked_bytes), warn))


def offered(files: Mapping[str, Member], settings: SelectionSettings, like: Entry) -> list[Entry]:
    """An entry, `like` this one, for each of the files that the settings want, under its licence."""

    def entries(wanted: Callable[[str], bool]) -> list[Entry]:
        return [entry_of(path, member, like) for path, member in files.items() if wanted(path)]

    return licensed(entries(settings.takes), entries(settings.asks))


def entry_of(path: str, member: Member, like: Entry) -> Entry:
    """The entry of one file, otherwise `like` this one."""
    return replace(like, path=path, size_bytes=member.size_bytes, location=b"%d %d" % (member.number, member.crc32))


def contents(path: Path, entries: Sequence[Entry], max_file_bytes: int) -> Iterator[bytes | ReadReason]:
    """For each entry its content, in one pass over the archive; what is damaged is unreadable. Raises OSError."""
    wanted = dict(map(_place, entries))
    found: dict[int, bytes | ReadReason] = {}
    with suppress(DamagedArchive, TooMuchUnpacked):
        found.update(_format(path).contents(path, wanted, max_file_bytes))
    for number, crc32 in wanted.items():
        content = found.pop(number, ReadReason.UNREADABLE)
        is_damaged = isinstance(content, bytes) and zlib.crc32(content) != crc32
        yield ReadReason.UNREADABLE if is_damaged else content


def _format(path: Path) -> Format:
    suffix = suffix_of(path)
    assert suffix is not None, "the name is checked before"
    return FORMATS[suffix]


def _place(entry: Entry) -> tuple[int, int]:
    """The number of the member in the archive, and its checksum."""
    number, crc32 = map(int, entry.location.split())
    return number, crc32


def _usable(members: Iterable[Member], warn: Warn) -> dict[str, Member]:
    """Those that are files under a name within the archive, by that name; of two with one name the last."""
    found: dict[str, Member] = {}
    num_outside = num_unreadable = 0
    for member in members:
        path = _within(member.name)
        if not path:
            num_outside += member.is_file
            continue
        found.pop(path, None)
        if member.is_file and member.is_readable:
            found[path] = member
        elif member.is_file:
            num_unreadable += 1
    if num_outside:
        warn(num_outside, "have names that lead out of it")
    if num_unreadable:
        warn(num_unreadable, "are encrypted, or packed by an unusual method")
    return found


def _within(name: bytes) -> str | None:
    """A member's name as a path in the archive, or None if extracting it could write elsewhere."""
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if name.startswith(b"/") or b".." in parts or b"\0" in name:
        return None
    return printable(b"/".join(parts))


def _without_common_folder(members: dict[str, Member]) -> dict[str, Member]:
    tops = {path.partition("/")[0] if "/" in path else None for path in members}
    top = tops.pop() if len(tops) == 1 else None
    start = len(top) + 1 if top else 0
    return {path[start:]: member for path, member in sorted(members.items())}
