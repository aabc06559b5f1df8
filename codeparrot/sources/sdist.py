"""The `sdist` source: source distributions of a Python package index, by name and version.

Repository = normalised distribution name, revision = version, licence = its metadata (PKG-INFO) as SPDX; where they do
not tell, licence files do. A name alone stands for the newest version that is not yanked, looked up anew by every run.
Every node that needs an archive fetches it into its cache (CODEPARROT_CACHE, folder `sdist`), where its hash must be
the one that the index told the driver. It is read without being extracted, and nothing of it is built or executed.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from email import message_from_string
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from pydantic import Field, PositiveInt, field_validator, model_validator

from codeparrot.errors import SourceError
from codeparrot.licenses import license_from_metadata
from codeparrot.sources.archive_files import contents, entry_of, offered
from codeparrot.sources.entry import Entry
from codeparrot.sources.fetched import FetchedReader, files_of
from codeparrot.sources.kept import SDISTS, kept
from codeparrot.sources.members import Member, TooMuchUnpacked
from codeparrot.sources.package_index import Found, NotOnIndex, PackageIndex
from codeparrot.sources.selection import SelectionSettings
from codeparrot.sources.web import CLOCK, Clock, origin_of

logger = logging.getLogger(__name__)

METADATA = "PKG-INFO"
MAX_METADATA_BYTES = 1_000_000


class SdistSettings(SelectionSettings):
    """Source distributions of a package index."""

    kind: Literal["sdist"]
    name: str = Field(default="sdist", min_length=1)
    """How this source is called in the corpus."""
    distributions: tuple[str, ...] = Field(min_length=1)
    """`name==version`, or `name` for the newest version that is not yanked."""
    index_url: str | None = None
    """Of the index's simple API, without user and password; null: PIP_INDEX_URL or UV_INDEX_URL of the environment."""
    max_unpacked_bytes: PositiveInt = 2_000_000_000
    """A distribution that unpacks to more is refused."""

    @field_validator("distributions")
    @classmethod
    def _are_distributions(cls, distributions: tuple[str, ...]) -> tuple[str, ...]:
        names = [_wanted(each)[0] for each in distributions]
        if len(set(names)) < len(names):
            raise ValueError("a distribution is named twice")
        return distributions

    @model_validator(mode="after")
    def _is_index(self) -> "SdistSettings":
        """Of the whole source, so that no message shows a secret in the URL."""
        if self.index_url is None:
            return self
        if "@" in urlsplit(self.index_url).netloc:
            raise ValueError(
                "index_url: leave user and password out of it; set PIP_INDEX_URL, so that no log shows them"
            )
        try:
            origin_of(self.index_url)
        except ValueError as error:
            raise ValueError("index_url: write an http or https URL") from error
        return self


def _wanted(distribution: str) -> tuple[str, Version | None]:
    """The normalised name, and the version. Raises ValueError."""
    try:
        parsed = Requirement(distribution)
        name, specifiers = canonicalize_name(parsed.name), list(parsed.specifier)
        if parsed.extras or parsed.marker or parsed.url or any(each.operator != "==" for each in specifiers):
            raise ValueError
        versions = [Version(each.version) for each in specifiers]
        if len(versions) > 1:
            raise ValueError
        return name, versions[0] if versions else None
    except (InvalidRequirement, InvalidVersion, ValueError):
        raise ValueError(f"write name or name==version, not {distribution!r}") from None


class SdistSource:
    """Lists source distributions."""

    def __init__(self, settings: SdistSettings, clock: Clock = CLOCK) -> None:
        self.settings = settings
        self._clock = clock

    def entries(self) -> Sequence[Entry]:
        """Every file of the distributions that is wanted."""
        settings = self.settings
        index = PackageIndex(settings.name, settings.index_url, self._clock)
        found: list[Entry] = []
        for name, sdist in self._found(index).items():
            found += self._entries(index, name, sdist)
        if not found:
            raise index.error(f"no distribution holds a file that matches {', '.join(settings.include)}")
        return found

    def _found(self, index: PackageIndex) -> dict[str, Found]:
        """What the index has of each distribution, by name. All that it lacks are told at once."""
        found: dict[str, Found] = {}
        missing = []
        for name, version in sorted(map(_wanted, self.settings.distributions)):
            try:
                found[name] = index.newest(name) if version is None else index.version(name, version)
            except NotOnIndex as error:
                missing.append(f"{name} ({error})")
        if missing:
            raise index.error(f"the index lacks {', '.join(missing)}")
        return found

    def _entries(self, index: PackageIndex, name: str, found: Found) -> list[Entry]:
        settings = self.settings
        if found.is_yanked:
            logger.warning("%s: %s was yanked from the index", index.where, found.file)
        sdist = Sdist(
            settings.name, settings.index_url, found.url, found.sha256, found.suffix, settings.max_unpacked_bytes
        )
        path, where = sdist.fetched(index), f"{index.where}: {found.file}"
        try:
            files = files_of(where, path, settings.max_unpacked_bytes)
        except TooMuchUnpacked:
            limit = f"{settings.max_unpacked_bytes:,} bytes"
            raise SourceError(f"{where} unpacks to more than {limit}; raise max_unpacked_bytes") from None
        like = Entry(
            source=settings.name,
            repository=name,
            path="",
            revision=str(found.version),
            license=settings.license,
            size_bytes=0,
            stamp=found.sha256,
            location=b"",
            reader=FetchedReader(settings.name, sdist),
        )
        if settings.license is None:
            like = replace(like, license=_license(path, files, like))
        return offered(files, settings, like)


def _license(path: Path, files: dict[str, Member], like: Entry) -> str | None:
    """What the metadata say, if the archive has them."""
    if METADATA not in files:
        return None
    (data,) = contents(path, [entry_of(METADATA, files[METADATA], like)], MAX_METADATA_BYTES)
    return (
        license_from_metadata(message_from_string(data.decode("utf-8", "replace"))) if isinstance(data, bytes) else None
    )


@dataclass(frozen=True)
class Sdist:
    """The archive of one version."""

    source: str
    index_url: str | None
    url: str
    sha256: str
    suffix: str
    max_bytes: int

    def path(self) -> Path:
        """Where this node has it. Raises SourceError."""
        return self.fetched(PackageIndex(self.source, self.index_url))

    def fetched(self, index: PackageIndex) -> Path:
        """Where this node has it; fetched unless it is there. Raises SourceError."""
        download = partial(index.download, self.url, self.sha256, max_bytes=self.max_bytes)
        with index.translated():
            return kept(SDISTS, f"{self.sha256}{self.suffix}", download)
