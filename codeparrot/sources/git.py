"""The `git` source: the files of one commit of a git repository, read from its objects and never from a checkout.

The revision of every document is the full hash of the commit. A repository at a path must be visible, under the same
path, on every node that collects. Of one at a URL, every node fetches the commit into its cache (CODEPARROT_CACHE,
folder `git`), without history if the server allows that; a branch is looked up anew by every run. Symbolic links and
submodules are passed over; files in Git LFS are the pointers that git holds.

A private repository is reached without a credential helper, since no configuration of git is read:

    SSH     an agent (SSH_AUTH_SOCK), a key in ~/.ssh, or GIT_SSH_COMMAND; the host's key must be known
    HTTPS   ~/.netrc, or GIT_ASKPASS: a program that prints user name and password, from a mounted secret, say

on every node that collects. A URL with a password or token in it is refused: recipes, manifests, logs and lists of
processes would show it.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from codeparrot.documents import ReadReason
from codeparrot.errors import SourceError
from codeparrot.sources.entry import Entry, printable
from codeparrot.sources.git_program import GitError, contents
from codeparrot.sources.git_repository import File, Repository, is_url, problem_of
from codeparrot.sources.license_files import licensed
from codeparrot.sources.selection import SelectionSettings

NO_REVISION = re.compile(r"^-|[\0-\x20\x7f~^:?*\[\\]|\.\.|@\{|^$")
"""What no name of a branch, tag or commit has."""


class GitSettings(SelectionSettings):
    """A commit of a git repository."""

    kind: Literal["git"]
    url: str
    """Where the repository is: a URL (https, ssh, git, file, or `host:path`) or a path."""
    name: str = Field(default="git", min_length=1)
    """How this source is called in the corpus."""
    repository: str | None = Field(default=None, min_length=1)
    """The repository's name in the corpus; null: the last part of the URL, without `.git`."""
    revision: str = "HEAD"
    """Branch, tag or commit; for a URL, the full hash of a commit."""
    since: str | None = None
    """Another revision: only files that were added or changed since then; null: all files."""

    @field_validator("revision", "since")
    @classmethod
    def _is_revision(cls, revision: str | None) -> str | None:
        if revision is not None and NO_REVISION.search(revision):
            raise ValueError("write the name of a branch or tag, or the hash of a commit")
        return revision

    @model_validator(mode="after")
    def _is_place(self) -> "GitSettings":
        problem = problem_of(self.url)
        if problem:
            raise ValueError(f"url: {problem}")  # of the whole source, so that no message shows a secret in the URL
        return self


class GitSource:
    """Lists a commit."""

    def __init__(self, settings: GitSettings) -> None:
        self.settings = settings

    def entries(self) -> Sequence[Entry]:
        """Every file of the commit that is wanted."""
        settings, repository = self.settings, self._repository()
        with _translated(settings.name, repository) as where:
            commit = repository.commit(settings.revision)
            files, date = repository.files(commit), repository.date(commit)
            changed = self._changed(repository, files)
        reader = GitReader(settings.name, repository, commit)
        found = self._entries(reader, changed, date, settings.takes)
        if not found:
            since = f" and has changed since {settings.since}" if settings.since else ""
            which = ", ".join(settings.include)
            raise SourceError(f"{where} holds no file at {settings.revision} that matches {which}{since}")
        return licensed(found, self._entries(reader, files, date, settings.asks))

    def _repository(self) -> Repository:
        url = self.settings.url
        if is_url(url):
            return Repository(url)
        try:
            path = Path(url).expanduser().absolute()
            path.stat()
        except (OSError, RuntimeError) as error:  # no such user's home
            reason = error.strerror if isinstance(error, OSError) else error
            raise SourceError(f"source {self.settings.name!r}: cannot read repository {url}: {reason}") from error
        return Repository(str(path))

    def _changed(self, repository: Repository, files: dict[bytes, File]) -> dict[bytes, File]:
        if self.settings.since is None:
            return files
        before = repository.files(repository.commit(self.settings.since))
        return {path: file for path, file in files.items() if before.get(path) != file}

    def _entries(
        self, reader: "GitReader", files: dict[bytes, File], date: datetime, wanted: Callable[[str], bool]
    ) -> list[Entry]:
        paths = ((printable(path), file) for path, file in sorted(files.items()))
        return [self._entry(reader, path, file, date) for path, file in paths if wanted(path)]

    def _entry(self, reader: "GitReader", path: str, file: File, date: datetime) -> Entry:
        if file.size_bytes is None:
            with _translated(reader.source, reader.repository):
                raise GitError(f"the content of {path} is missing; fetch it, or ask git fsck what is damaged")
        return Entry(
            source=self.settings.name,
            repository=self.settings.repository or _last_part(reader.repository.url),
            path=path,
            revision=reader.commit,
            license=self.settings.license,
            size_bytes=file.size_bytes,
            stamp=0,
            location=file.blob.encode(),
            reader=reader,
            updated=date,
        )


@dataclass(frozen=True)
class GitReader:
    """Reads blobs, which entries name by their hash."""

    source: str
    repository: Repository
    commit: str

    def read(self, entries: Sequence[Entry], max_file_bytes: int) -> Iterator[bytes | ReadReason]:
        """Each file, by one process of git; nothing of those that are too large. Raises SourceError."""
        with (
            _translated(self.source, self.repository),
            contents(self.repository.folder(self.commit)) as content,
        ):
            for entry in entries:
                too_large = entry.size_bytes > max_file_bytes  # git itself has measured it
                yield ReadReason.TOO_LARGE if too_large else content(entry.location)


@contextmanager
def _translated(source: str, repository: Repository) -> Iterator[str]:
    where = f"source {source!r}: git repository {repository.url}"
    try:
        yield where
    except GitError as error:
        raise SourceError(f"{where}: {error}") from error


def _last_part(url: str) -> str:
    parts = re.split("[/:]", url.rstrip("/").removesuffix("/.git"))
    return parts[-1].removesuffix(".git") or "git"
