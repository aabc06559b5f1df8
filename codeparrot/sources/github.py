"""The `github` source: repositories of GitHub, found by a search or named, each at one commit.

The revision of every document is the full hash of that commit: of the default branch, looked up anew by every run, or
of the branch, tag or commit that is named. Its archive, as GitHub packs it, is fetched into the cache of every node
that needs it (CODEPARROT_CACHE, folder `github`), checked, and read without being extracted. What was fetched before a
run was ended is not fetched again, unless others needed its room (CODEPARROT_CACHE_BYTES). `.gitattributes` may leave
files out of an archive; files in Git LFS are pointers.

The licence is the one that GitHub tells. Where it knows none, or a revision is named (it tells that of the default
branch), licence files do. A renamed repository is called by its new name. One that cannot be had (gone, blocked,
empty, disabled, too large) is counted and named in a warning, and so is one that the settings leave out.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, NonNegativeFloat, PositiveInt, field_validator, model_validator

from codeparrot.errors import SourceError
from codeparrot.sources.archive_files import offered
from codeparrot.sources.entry import Entry
from codeparrot.sources.fetched import FetchedReader, files_of
from codeparrot.sources.git import NO_REVISION
from codeparrot.sources.git_repository import FULL_HASH
from codeparrot.sources.github_api import NAME, GitHub, NotThere, Repository, Skipped
from codeparrot.sources.github_search import SearchSettings, search
from codeparrot.sources.kept import TARBALLS, CannotKeep, kept
from codeparrot.sources.members import DamagedArchive, Member, TooMuchUnpacked
from codeparrot.sources.selection import SelectionSettings
from codeparrot.sources.tar_files import GZIP
from codeparrot.sources.web import CLOCK, Clock, Passing, is_private, origin_of

logger = logging.getLogger(__name__)

MAX_NAMED = 5


class GitHubSettings(SelectionSettings):
    """Repositories of GitHub."""

    kind: Literal["github"]
    name: str = Field(default="github", min_length=1)
    """How this source is called in the corpus."""
    search: SearchSettings | None = None
    """Repositories to look for; null: only those that are named."""
    max_repositories: PositiveInt = 100
    """Of those that the search finds: the most starred."""
    repositories: tuple[str, ...] = ()
    """Repositories by name, `owner/name` or `owner/name@revision` (branch, tag or commit)."""
    forks: bool = False
    """Take forks too."""
    archived: bool = False
    """Take repositories too that their owners have archived."""
    api_url: str = "https://api.github.com"
    """That of a GitHub Enterprise Server ends with `/api/v3`."""
    max_unpacked_bytes: PositiveInt = 2_000_000_000
    """A repository that unpacks to more is passed over."""
    max_wait_seconds: NonNegativeFloat = 4000
    """How long to wait for one answer where a rate limit is reached. The primary one is reset every hour."""

    @field_validator("repositories")
    @classmethod
    def _are_repositories(cls, repositories: tuple[str, ...]) -> tuple[str, ...]:
        for each in repositories:
            name, at, revision = each.partition("@")
            if not NAME.fullmatch(name) or (at and NO_REVISION.search(revision)):
                raise ValueError(f"write owner/name or owner/name@revision, not {each!r}")
        names = [each.partition("@")[0].lower() for each in repositories]
        if len(set(names)) < len(names):
            raise ValueError("a repository is named twice")
        return repositories

    @model_validator(mode="after")
    def _is_safe(self) -> "GitHubSettings":
        """Of the whole source, so that no message shows a secret in the URL."""
        parts = urlsplit(self.api_url)
        if not is_private(self.api_url):
            raise ValueError("api_url: write an https URL: a token may be sent there")
        if not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("api_url: write only scheme, host and path; the token comes from GITHUB_TOKEN")
        origin_of(self.api_url)  # a port that is none is a ValueError
        return self

    @model_validator(mode="after")
    def _names_something(self) -> "GitHubSettings":
        if self.search is None and not self.repositories:
            raise ValueError("say which repositories: search, repositories, or both")
        return self


class GitHubSource:
    """Lists repositories."""

    def __init__(self, settings: GitHubSettings, clock: Clock = CLOCK) -> None:
        self.settings = settings
        self._clock = clock
        self._skipped: dict[Skipped, list[str]] = {}

    def entries(self) -> Sequence[Entry]:
        """Every file of the repositories that is wanted."""
        settings = self.settings
        github = self._github()
        self._skipped.clear()
        repositories = self._repositories(github)
        logger.info("%s: %d repositories", github.where, len(repositories))
        found: list[Entry] = []
        for repository, revision in repositories:
            with self._passing_over(repository.name):
                found += self._entries(github, repository, revision)
        for why, names in sorted(self._skipped.items()):
            more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
            shown = ", ".join(names[:MAX_NAMED]) + more
            logger.warning("%s: passed over %d repositories (%s): %s", github.where, len(names), why, shown)
        if not found:
            counts = ", ".join(f"{len(names)} {why}" for why, names in sorted(self._skipped.items()))
            which = ", ".join(settings.include)
            raise github.error(f"no repository holds a file that matches {which} ({counts or 'none was found'})")
        return found

    def _github(self) -> GitHub:
        settings = self.settings
        return GitHub(settings.name, settings.api_url, settings.max_wait_seconds, self._clock)

    def _repositories(self, github: GitHub) -> list[tuple[Repository, str | None]]:
        """With the revision that is named, if one is; by name. Those that are named win over those that are found."""
        settings = self.settings
        chosen: dict[int, tuple[Repository, str | None]] = {}
        for each in settings.repositories:
            name, _, revision = each.partition("@")
            with self._passing_over(name):
                repository = github.repository(name)
                if repository.name.lower() != name.lower():
                    logger.warning("%s: %s is called %s now", github.where, name, repository.name)
                if repository.number in chosen:
                    raise NotThere(Skipped.NAMED_TWICE)
                chosen[repository.number] = (repository, revision or None)
        if settings.search is not None:
            num, forks, archived = settings.max_repositories, settings.forks, settings.archived
            for repository in search(github, settings.search, num, forks=forks, archived=archived):
                chosen.setdefault(repository.number, (repository, None))
        return sorted(chosen.values(), key=lambda pair: pair[0].name)

    def _entries(self, github: GitHub, repository: Repository, revision: str | None) -> list[Entry]:
        settings = self.settings
        if repository.is_disabled:
            raise NotThere(Skipped.DISABLED)
        if repository.is_archived and not settings.archived:
            raise NotThere(Skipped.ARCHIVED)
        if repository.is_fork and not settings.forks:
            raise NotThere(Skipped.FORK)
        is_commit = revision is not None and FULL_HASH.fullmatch(revision)
        commit = revision if revision and is_commit else github.commit(repository, revision)
        limits = (settings.max_unpacked_bytes, settings.max_wait_seconds)
        tarball = Tarball(settings.name, github.url, repository.name, commit, *limits)
        like = Entry(
            source=settings.name,
            repository=repository.name,
            path="",
            revision=commit,
            license=settings.license or (repository.license if revision is None else None),
            size_bytes=0,
            stamp=0,
            location=b"",
            reader=FetchedReader(settings.name, tarball),
            stars=repository.stars,
            updated=repository.pushed,
        )
        found = offered(tarball.files(github), settings, like)
        if not found:
            raise NotThere(Skipped.NO_MATCHING_FILE)
        return found

    @contextmanager
    def _passing_over(self, name: str) -> Iterator[None]:
        """Count the repository of this name if it cannot be had."""
        try:
            yield
        except NotThere as error:
            self._skipped.setdefault(error.why, []).append(name)


@dataclass(frozen=True)
class Tarball:
    """The archive of one commit."""

    source: str
    api_url: str
    name: str
    """Of the repository, `owner/name`."""
    commit: str
    max_unpacked_bytes: int
    max_wait_seconds: float

    def path(self) -> Path:
        """Where this node has it. Raises SourceError."""
        try:
            return self.fetched(GitHub(self.source, self.api_url, self.max_wait_seconds))
        except NotThere as error:
            where = f"source {self.source!r}: {self.name} at {self.commit}"
            raise SourceError(f"{where} cannot be had any more ({error.why}); run again") from error

    def fetched(self, github: GitHub) -> Path:
        """Where this node has it; fetched unless it is there. Raises NotThere and SourceError."""
        name = hashlib.sha256(f"{github.url}\0{self.name}\0{self.commit}".encode()).hexdigest()
        try:
            return kept(TARBALLS, f"{name}.tar.gz", lambda path: self._fetch(github, path))
        except CannotKeep as error:
            raise github.error(error) from error

    def files(self, github: GitHub) -> dict[str, Member]:
        """The files of the commit by path. Raises NotThere and SourceError."""
        try:
            return files_of(f"{github.where}: {self.name}", self.fetched(github), self.max_unpacked_bytes)
        except TooMuchUnpacked:
            raise NotThere(Skipped.TOO_LARGE) from None

    def _fetch(self, github: GitHub, path: Path) -> None:
        github.download(self.name, self.commit, path, self._check, self.max_unpacked_bytes)

    def _check(self, path: Path) -> None:
        """All of it is unpacked once, so that its checksum is looked at. Raises Passing, and TooMuchUnpacked."""
        try:
            for _ in GZIP.members(path, self.max_unpacked_bytes):
                pass
        except DamagedArchive as error:
            raise Passing(f"the archive that it sends is damaged: {error}") from error
