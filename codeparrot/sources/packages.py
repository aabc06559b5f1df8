"""The `packages` source: the Python distributions installed in this environment.

Repository = normalised distribution name, revision = version, licence = its metadata as SPDX. A real corpus of
hundreds of megabytes that needs no network. Files come from each distribution's RECORD, so that what was made
after the installation (caches, editable trees) is no part of it.
"""

import csv
import os
import re
from collections.abc import Iterator, Sequence
from email.message import Message
from importlib.metadata import Distribution, distributions
from pathlib import PurePosixPath
from typing import Literal, cast

from pydantic import Field

from codeparrot.errors import SourceError
from codeparrot.licenses import license_from_metadata
from codeparrot.settings import Settings
from codeparrot.sources.entry import Entry
from codeparrot.sources.selection import matches

GLOB = frozenset("*?[")


class PackagesSettings(Settings):
    """The installed distributions."""

    kind: Literal["packages"]
    name: str = Field(default="packages", min_length=1)
    """How this source is called in the corpus."""
    distributions: tuple[str, ...] = ("*",)
    """Globs on normalised distribution names (`scikit-learn`, `nvidia-*`). A plain name must be installed."""
    exclude_distributions: tuple[str, ...] = ()
    """Globs that win over `distributions`."""
    include: tuple[str, ...] = ("*.py",)
    """Globs on the path in the distribution or on the file name."""
    exclude: tuple[str, ...] = ()
    """Globs that win over `include`."""


class PackagesSource:
    """Lists the installed distributions."""

    def __init__(self, settings: PackagesSettings) -> None:
        self.settings = settings

    def entries(self) -> Sequence[Entry]:
        installed: dict[str, Distribution] = {}
        for distribution in distributions():
            name = _name(distribution)
            if name is not None:
                installed.setdefault(name, distribution)  # the first on the path is what Python imports
        missing = [name for name in self.settings.distributions if not GLOB & {*name} and name not in installed]
        if missing:
            raise SourceError(f"source {self.settings.name!r}: not installed here: {', '.join(missing)}")
        found = [
            entry
            for name, distribution in sorted(installed.items())
            if matches(name, self.settings.distributions) and not matches(name, self.settings.exclude_distributions)
            for entry in self._entries(name, distribution)
        ]
        if not found:
            raise SourceError(f"source {self.settings.name!r}: no installed distribution has a matching file")
        return found

    def _entries(self, name: str, distribution: Distribution) -> Iterator[Entry]:
        metadata = cast("Message", distribution.metadata)  # parsed anew at every access, so only once
        spdx, version = license_from_metadata(metadata), metadata["Version"]
        folder = str(distribution.locate_file(""))
        for path, listed in _files(distribution):
            if path.startswith("../") or not matches(path, self.settings.include):
                continue
            if matches(path, self.settings.exclude):
                continue
            location = os.fsencode(os.path.join(folder, path))
            size = listed if listed is not None else _size(location)
            if size is not None:
                yield Entry(
                    source=self.settings.name,
                    repository=name,
                    path=path,
                    revision=version,
                    license=spdx,
                    size_bytes=size,
                    stamp=0,  # the version says it; installation times differ between machines
                    location=location,
                )


def _files(distribution: Distribution) -> Iterator[tuple[str, int | None]]:
    """Path and size of every file. RECORD is read here, since a path object for each takes five times as long."""
    record = distribution.read_text("RECORD")
    if not record:
        yield from ((file.as_posix(), file.size) for file in distribution.files or ())
        return
    for path, *about in csv.reader(record.splitlines()):
        size = about[1] if len(about) > 1 else ""
        yield PurePosixPath(path).as_posix() if "./" in path or "//" in path else path, int(size) if size else None


def normalise(name: str) -> str:
    """A distribution's name in its one spelling (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _name(distribution: Distribution) -> str | None:
    """The normalised name, or None for what a broken uninstallation left behind."""
    try:
        name = distribution.metadata["Name"]
    except FileNotFoundError:  # from the importlib_metadata package, which replaces the finder once imported
        return None
    return normalise(name) if name else None


def _size(location: bytes) -> int | None:
    try:
        return os.stat(location).st_size
    except OSError:
        return None
