"""A git repository, at a path or at a URL. Of one at a URL every node keeps what it needs, a clone for each commit."""

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from codeparrot.sources.git_program import GitError, git
from codeparrot.sources.kept import CLONES, CannotKeep, kept

SCHEMES = ("file", "git", "http", "https", "ssh")
FETCH = ("fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head")
FULL_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
UNKNOWN_REVISION = "Needed a single revision"
REFUSALS = ("not our ref", "unadvertised object", "shallow")
"""Of servers that do not give one commit without its history."""


@dataclass(frozen=True)
class File:
    """A regular file of a commit."""

    blob: str
    """The hash of its content."""
    size_bytes: int | None
    """None if the repository does not hold it: its clone is a partial one, or damaged."""


@dataclass(frozen=True)
class Repository:
    """A repository at an absolute path, or at a URL. All of its methods raise GitError."""

    url: str

    def commit(self, revision: str) -> str:
        """The full hash of the commit that a branch, a tag or a commit's hash names now."""
        if is_url(self.url) and not FULL_HASH.fullmatch(revision):
            revision = self._advertised(revision)
        return _commit(self.folder(revision), revision)

    def files(self, commit: str) -> dict[bytes, File]:
        """The regular files of a commit by path: no symbolic links, no submodules."""
        listing = git("ls-tree", "-r", "-z", "-l", "--full-tree", commit, folder=self.folder(commit))
        found = {}
        for line in filter(None, listing.split(b"\0")):
            about, _, path = line.partition(b"\t")
            mode, kind, blob, size = about.split()
            if kind == b"blob" and mode.startswith(b"100"):
                found[path] = File(blob.decode(), int(size) if size.isdigit() else None)
        return found

    def date(self, commit: str) -> datetime:
        """When a commit was made."""
        shown = git("show", "--no-patch", "--no-show-signature", "--format=%ct", commit, folder=self.folder(commit))
        try:
            return datetime.fromtimestamp(int(shown), UTC)
        except (ValueError, OverflowError, OSError) as error:
            raise GitError(f"the commit {commit} has no date") from error

    def folder(self, commit: str) -> str:
        """Where git finds a commit on this node; if the repository is at a URL, the commit is fetched there first."""
        if not is_url(self.url):
            inner = Path(self.url) / ".git"
            return str(inner if inner.exists() else self.url)
        name = hashlib.sha256(f"{self.url}\0{commit}".encode()).hexdigest()
        try:
            return str(kept(CLONES, name, partial(self._fetch, commit=commit)))
        except CannotKeep as error:
            raise GitError(str(error)) from error

    def _advertised(self, revision: str) -> str:
        """The hash that the server has for a branch or tag, chosen as git does if several have the name."""
        names = [f"{prefix}{revision}" for prefix in ("", "refs/", "refs/tags/", "refs/heads/")]
        names = [name for each in names for name in (f"{each}^{{}}", each)]  # first what an annotated tag stands for
        listing = git("ls-remote", "--quiet", "--", self.url, *names, schemes=SCHEMES).decode("utf-8", "replace")
        commits = {name: commit for commit, _, name in (line.partition("\t") for line in listing.splitlines())}
        for name in names:
            if name in commits:
                return commits[name]
        raise GitError(f"no revision {revision!r}; write a branch, a tag or the full hash of a commit")

    def _fetch(self, folder: Path, commit: str) -> None:
        """Make a clone that has the commit: without its history, if the server allows that."""
        algorithm = "sha1" if len(commit) == 40 else "sha256"
        git("init", "--quiet", "--bare", "--template=", f"--object-format={algorithm}", "--", str(folder))
        fetch = partial(git, *FETCH, folder=str(folder), schemes=SCHEMES)
        try:
            fetch("--depth=1", "--", self.url, f"{commit}:refs/codeparrot/commit")
        except GitError as error:
            if not any(refusal in str(error) for refusal in REFUSALS):
                raise
            fetch("--", self.url, "refs/heads/*:refs/heads/*", "refs/tags/*:refs/tags/*")
        _commit(str(folder), commit)


def _commit(folder: str, revision: str) -> str:
    try:
        found = git("rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}", folder=folder)
    except GitError as error:
        if UNKNOWN_REVISION in str(error):
            raise GitError(f"no revision {revision!r}; write a branch, a tag or a commit") from None
        raise
    return found.decode().strip()


def is_url(url: str) -> bool:
    """Whether git looks elsewhere than at a path: `scheme://...`, or `host:path` for SSH."""
    before, colon, _ = url.partition(":")
    return bool(colon) and "/" not in before


def problem_of(url: str) -> str | None:
    """Why this cannot be the place of a repository, in words that do not repeat it, or None."""
    if not url or url.startswith("-") or not url.isprintable():
        return "write a path or a URL"
    if not is_url(url):
        return None
    scheme, separator, _ = url.partition("://")
    if separator and scheme not in SCHEMES:
        return f"its scheme is none of {', '.join(SCHEMES)}"
    if not separator and "::" in url:
        return "no helper program can be named; write a path or a URL"
    if _has_secret(url if separator else f"ssh://{url}"):
        return "leave user, password and token out of it; use SSH, ~/.netrc or GIT_ASKPASS, so that no log shows them"
    return None


def _has_secret(url: str) -> bool:
    """Whether something before the host may be one: with SSH, a user's name alone is none."""
    _, rest = url.split("://", 1)
    user, at, _ = rest.partition("/")[0].rpartition("@")
    return bool(at) and (":" in user or not url.startswith("ssh:"))
