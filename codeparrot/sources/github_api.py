"""The REST API of GitHub, or of a GitHub Enterprise Server: repositories, commits and their archives.

Answers are kept with their ETag in the cache of the node: asked again, the API says "not modified", which costs none
of its quota. Its limits are obeyed: the primary one until `x-ratelimit-reset`, the secondary one for `retry-after`
seconds. Requests are made one after the other, as GitHub asks for.

The token is that of GITHUB_TOKEN, or of the file that GITHUB_TOKEN_FILE names. It goes to the host of the API alone:
archives lie on another one, to which the API redirects. Without a token there are 60 requests an hour.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from codeparrot.errors import SourceError
from codeparrot.licenses import spdx
from codeparrot.sources.git_repository import FULL_HASH
from codeparrot.sources.kept import TARBALLS, CannotKeep, remember, remembered
from codeparrot.sources.members import TooMuchUnpacked
from codeparrot.sources.web import (
    CLOCK,
    Answer,
    Clock,
    Credentials,
    TooMuch,
    Web,
    WebError,
    asked_to_wait,
    origin_of,
    retry_after,
)

JSON = "application/vnd.github+json"
SHA = "application/vnd.github.sha"
VERSION = "2022-11-28"
LIMITED = (403, 429)
SECONDARY_LIMIT_SECONDS = 60.0
"""To wait, the first time, where the API does not say for how long."""
MAX_SHOWN_MESSAGE = 200


NAME = re.compile(r"[\w.-]+/(?!\.{1,2}$)[\w.-]+", re.ASCII)
"""`owner/name`."""


class Skipped(StrEnum):
    """Why a repository is passed over."""

    NOT_FOUND = "not_found"
    FORBIDDEN = "forbidden"
    BLOCKED = "blocked"
    EMPTY = "empty"
    NO_REVISION = "no_revision"
    DISABLED = "disabled"
    ARCHIVED = "archived"
    FORK = "fork"
    NAMED_TWICE = "named_twice"
    TOO_LARGE = "too_large"
    NO_MATCHING_FILE = "no_matching_file"


STATUSES = {
    403: Skipped.FORBIDDEN,
    404: Skipped.NOT_FOUND,
    409: Skipped.EMPTY,
    422: Skipped.NO_REVISION,
    451: Skipped.BLOCKED,
}
"""What they mean where a repository was asked for (https://docs.github.com/rest)."""


class NotThere(Exception):
    """A repository, or a commit of it, cannot be had; `why` says it."""

    def __init__(self, why: Skipped) -> None:
        super().__init__(str(why))
        self.why = why


@dataclass(frozen=True)
class Repository:
    """What the API tells of a repository."""

    number: int
    """Stays the same when it is renamed."""
    name: str
    """`owner/name`, as it is called now."""
    branch: str
    """The default one."""
    license: str | None
    """Of that branch, as SPDX; None if GitHub does not know it."""
    stars: int
    created: str
    pushed: datetime | None
    is_fork: bool
    is_archived: bool
    is_disabled: bool


class GitHub:
    """The API, asked by one source. All methods raise SourceError; those that ask for one repository, NotThere."""

    def __init__(self, source: str, url: str, max_wait_seconds: float, clock: Clock = CLOCK) -> None:
        self.url = url.rstrip("/")
        self.where = f"source {source!r}"
        self.clock = clock
        token = _token(self.where)
        self._has_token = token is not None
        credentials = Credentials(origin_of(url), f"Bearer {token}") if token else None
        self._web = Web(
            self.where, credentials=credentials, pause=limited, max_wait_seconds=max_wait_seconds, clock=clock
        )

    def repository(self, name: str) -> Repository:
        """The repository of this name, or of the name that it has now."""
        return self.repository_of(self.json(self._there(self.ask(f"/repos/{quote(name)}"))))

    def commit(self, repository: Repository, revision: str | None) -> str:
        """The hash of the commit that a branch, tag or commit names now; None: the default branch."""
        revision = f"heads/{repository.branch}" if revision is None else revision
        answer = self._there(self.ask(f"/repos/{quote(repository.name)}/commits/{quote(revision)}", SHA))
        commit = answer.body.decode("ascii", "replace").strip()
        if not FULL_HASH.fullmatch(commit):
            raise self.error(f"{self.url} tells of a commit of {repository.name} that is no hash; correct api_url")
        return commit

    def download(self, name: str, commit: str, path: Path, check: Callable[[Path], object], max_bytes: int) -> None:
        """Write the archive of a commit to a file. Raises also OSError."""
        url = f"{self.url}/repos/{quote(name)}/tarball/{commit}"
        try:
            with self._translated():
                answer = self._admitted(self._web.download(url, path, check, max_bytes))
        except (TooMuch, TooMuchUnpacked):
            raise NotThere(Skipped.TOO_LARGE) from None
        self._there(answer)

    def ask(self, path: str, accept: str = JSON) -> Answer:
        """What the API answers to a path, or to a URL that it gave: 200, or a status that says why not."""
        url = path if "://" in path else f"{self.url}{path}"
        name = hashlib.sha256(f"{url}\0{accept}".encode()).hexdigest() + ".json"
        headers = {"accept": accept, "x-github-api-version": VERSION}
        with self._translated():
            known = _answer(remembered(TARBALLS, name))
            condition = {"if-none-match": known.headers["etag"]} if known else {}
            answer = self._admitted(self._web.get(url, {**headers, **condition}))
            if answer.status == 304 and known is not None:
                return known
            if answer.status == 200 and "etag" in answer.headers:
                remember(TARBALLS, name, _bytes(answer))
        return answer

    def json(self, answer: Answer) -> dict[str, Any]:
        """The content of an answer of status 200; of another one, its message is the error."""
        if answer.status != 200:
            raise self.error(f"{urlsplit(self.url).hostname} answers {answer.status}: {_message(answer.body)}")
        content = _object(answer.body)
        if content is None:
            raise self.error(f"{self.url} does not answer as the API of GitHub does; correct api_url")
        return content

    def repository_of(self, found: dict[str, Any]) -> Repository:
        """A repository from the API's description of it."""
        try:
            repository = Repository(
                number=int(found["id"]),
                name=str(found["full_name"]),
                branch=str(found["default_branch"]),
                license=spdx(str((found["license"] or {}).get("spdx_id"))),  # NOASSERTION is none
                stars=int(found["stargazers_count"]),
                created=str(found["created_at"]),
                pushed=_time(found["pushed_at"]),
                is_fork=bool(found["fork"]),
                is_archived=bool(found["archived"]),
                is_disabled=bool(found["disabled"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self.error(f"{self.url} describes a repository without {error}; correct api_url") from error
        if not NAME.fullmatch(repository.name):
            raise self.error(f"{self.url} tells of a repository whose name is none: {repository.name!r}")
        return repository

    def error(self, problem: object) -> SourceError:
        """An error that says which source has it."""
        return SourceError(f"{self.where}: {problem}")

    def _there(self, answer: Answer) -> Answer:
        if answer.status in STATUSES:
            raise NotThere(STATUSES[answer.status])
        if answer.status != 200:
            self.json(answer)
        return answer

    def _admitted(self, answer: Answer) -> Answer:
        if answer.status == 401 and self._has_token:
            raise self.error("the token was refused; renew GITHUB_TOKEN, or what GITHUB_TOKEN_FILE names")
        if answer.status == 401:
            raise self.error(f"{urlsplit(self.url).hostname} asks for a token; set GITHUB_TOKEN, or GITHUB_TOKEN_FILE")
        return answer

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except TooMuch:
            raise
        except (CannotKeep, WebError) as error:
            raise self.error(error) from error


def limited(answer: Answer, num_waits: int) -> float | None:
    """How many seconds to wait after an answer that a rate limit was reached; None after any other.

    https://docs.github.com/rest/using-the-rest-api/rate-limits-for-the-rest-api
    """
    headers = answer.headers
    if answer.status not in LIMITED:
        return asked_to_wait(answer, num_waits)
    if "retry-after" in headers:
        return retry_after(answer)
    reset = headers.get("x-ratelimit-reset", "")
    if headers.get("x-ratelimit-remaining") == "0" and reset.isdecimal():
        return max(float(reset) - answer.at, 0.0) + 1
    if answer.status == 429 or b"rate limit" in answer.body.lower():
        return SECONDARY_LIMIT_SECONDS * 2.0**num_waits
    return None


def _time(text: str | None) -> datetime | None:
    """A time as the API writes it; a repository to which nothing was pushed has none."""
    return None if text is None else datetime.fromisoformat(text).astimezone(UTC)


def _token(where: str) -> str | None:
    token, file = os.environ.get("GITHUB_TOKEN", "").strip(), os.environ.get("GITHUB_TOKEN_FILE")
    if not token and file:
        try:
            token = Path(file).read_text("ascii").strip()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise SourceError(f"{where}: cannot read the file that GITHUB_TOKEN_FILE names: {reason}") from None
        if not token:
            raise SourceError(f"{where}: the file that GITHUB_TOKEN_FILE names is empty")
    if token and not re.fullmatch("[!-~]+", token):
        raise SourceError(f"{where}: what stands in GITHUB_TOKEN, or in the file of GITHUB_TOKEN_FILE, is no token")
    return token or None


def _bytes(answer: Answer) -> bytes:
    """An answer as it is kept."""
    kept = {
        "url": answer.url,
        "etag": answer.headers["etag"],
        "next": answer.next,
        "body": answer.body.decode("latin-1"),
    }
    return json.dumps(kept).encode()


def _answer(kept: bytes | None) -> Answer | None:
    """An answer that was kept, or None if there is none that can be read."""
    found = _object(kept or b"") or {}
    try:
        return Answer(200, found["url"], {"etag": found["etag"]}, found["body"].encode("latin-1"), found["next"])
    except (KeyError, AttributeError, UnicodeEncodeError):
        return None


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(data)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _message(body: bytes) -> str:
    """What the API says of an error, on one line."""
    text = str((_object(body) or {}).get("message", "no reason"))
    return "".join(letter if letter.isprintable() else " " for letter in text)[:MAX_SHOWN_MESSAGE]
