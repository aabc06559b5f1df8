"""A GitHub on loopback: its API in the documented shapes, and another server for archives, as GitHub has one."""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from codeparrot.settings import validate
from codeparrot.sources import CollectSettings, Entry
from codeparrot.sources.github import GitHubSettings, GitHubSource
from codeparrot.sources.web import Clock
from tests.unit.archive_doubles import add
from tests.unit.web_doubles import FakeTime, Reply, Request, serving

QUOTA = 5000
X = b"x = 1\n"


@dataclass
class Repo:
    """A repository with one branch."""

    name: str
    number: int
    files: dict[str, bytes] = field(default_factory=lambda: {"a.py": X})
    license: str | None = "MIT"
    language: str = "Python"
    stars: int = 0
    created: str = "2020-01-01T00:00:00Z"
    pushed: str | None = "2024-05-06T07:08:09Z"
    fork: bool = False
    archived: bool = False
    disabled: bool = False
    is_empty: bool = False
    branch: str = "main"

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()

    def described(self) -> dict[str, Any]:
        """As the API does, but for what nobody here reads."""
        key = self.license and self.license.lower()
        return {
            "id": self.number,
            "full_name": self.name,
            "private": False,
            "fork": self.fork,
            "created_at": self.created,
            "pushed_at": self.pushed,
            "stargazers_count": self.stars,
            "language": self.language,
            "archived": self.archived,
            "disabled": self.disabled,
            "license": {"key": key, "spdx_id": self.license} if self.license else None,
            "default_branch": self.branch,
        }

    def tarball(self) -> bytes:
        """As GitHub packs it: in one folder, after a header that names the commit."""
        folder = f"{self.name.replace('/', '-')}-{self.commit[:7]}"
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w:gz", pax_headers={"comment": self.commit}) as tar:
            add(tar, f"{folder}/", type=tarfile.DIRTYPE)
            for name, content in self.files.items():
                add(tar, f"{folder}/{name}", content)
        return data.getvalue()


Fault = Callable[[Request], Reply | None]


class GitHubDouble:
    """What it holds may be changed at any time; `asked` and `fetched` are the requests so far."""

    def __init__(self) -> None:
        self.time = FakeTime()
        self.repos: dict[str, Repo] = {}
        self.moved: dict[str, str] = {}
        self.faults: list[Fault] = []
        self.asked: list[Request] = []
        self.fetched: list[Request] = []
        self.used = 0
        self.most_shown = 1000
        self.url = self.archives = ""

    def add(self, *names: str, **about: Any) -> None:
        for name in names:
            self.repos[name] = Repo(name, len(self.repos) + 1, **about)

    def once(self, part: str, *replies: Reply) -> None:
        """The next requests for a path with this part are answered so."""
        waiting = list(replies)
        self.faults.append(lambda request: waiting.pop(0) if waiting and part in request.path else None)

    def always(self, part: str, reply: Reply) -> None:
        self.faults.append(lambda request: reply if part in request.path else None)

    def entries(self, **settings: Any) -> Sequence[Entry]:
        return self.source(**settings).entries()

    def source(self, **settings: Any) -> GitHubSource:
        values = {"kind": "github", "api_url": self.url, **settings}
        found = validate(CollectSettings, {"sources": [values]}, "run.yaml").sources[0]
        assert isinstance(found, GitHubSettings)
        return GitHubSource(found, Clock(self.time.now, self.time.sleep))

    def _api(self, request: Request) -> Reply:
        self.asked.append(request)
        reply = self._fault(request) or self._found(request)
        tag = f'W/"{hashlib.sha256(reply.body).hexdigest()}"'
        if reply.status == 200 and request.headers.get("if-none-match") == tag:
            return Reply(304, headers={"ETag": tag})
        self.used += 1
        tags = {"ETag": tag} if reply.status == 200 else {}
        limits = {"X-RateLimit-Limit": str(QUOTA), "X-RateLimit-Remaining": str(QUOTA - self.used)}
        kind = {"Content-Type": "application/json; charset=utf-8"}
        headers = {**kind, **tags, **limits, **reply.headers}
        return Reply(reply.status, reply.body, headers, reply.num_sent, reply.has_length)

    def _archive(self, request: Request) -> Reply:
        self.fetched.append(request)
        reply = self._fault(request)
        if reply is not None:
            return reply
        _, owner, name, _, commit = urlsplit(request.path).path.split("/")
        repo = self.repos[f"{owner}/{name}"]
        assert repo.commit == commit
        return Reply(200, repo.tarball(), {"Content-Type": "application/x-gzip"})

    def _fault(self, request: Request) -> Reply | None:
        return next(filter(None, (fault(request) for fault in self.faults)), None)

    def _found(self, request: Request) -> Reply:
        path = urlsplit(request.path).path
        if path == "/search/repositories":
            return self._searched(request)
        if number := re.fullmatch(r"/repositories/(\d+)", path):
            return described(next(each for each in self.repos.values() if each.number == int(number[1])).described())
        asked = re.fullmatch(r"/repos/([^/]+/[^/]+)(?:/(commits|tarball)/(.+))?", path)
        assert asked, path
        name, what, revision = asked.groups()
        if name in self.moved and what is None:
            moved = self.repos[self.moved[name]].number
            return _message(301, "Moved Permanently", {"Location": f"{self.url}/repositories/{moved}"})
        if name not in self.repos:
            return _message(404, "Not Found")
        repo = self.repos[name]
        if what is None:
            return described(repo.described())
        if repo.is_empty:
            return _message(409, "Git Repository is empty.")
        if what == "commits":
            assert request.headers["accept"] == "application/vnd.github.sha"
            if revision not in (f"heads/{repo.branch}", repo.branch, repo.commit, "v1"):
                return _message(422, f"No commit found for SHA: {revision}")
            return Reply(200, repo.commit.encode())
        if revision != repo.commit:
            return _message(404, "Not Found")
        return Reply(302, headers={"Location": f"{self.archives}/{name}/legacy.tar.gz/{revision}?token=temporary"})

    def _searched(self, request: Request) -> Reply:
        query = {name: values[0] for name, values in parse_qs(urlsplit(request.path).query).items()}
        page, per_page = int(query.get("page", 1)), int(query["per_page"])
        found = [repo for repo in self.repos.values() if all(_matches(repo, word) for word in _words(query["q"]))]
        found = [repo for repo in found if not repo.fork or "fork:true" in query["q"]]
        found.sort(key=lambda repo: -repo.stars)
        shown = found[: self.most_shown]
        last = -(-len(shown) // per_page)
        if page < last:
            urls = {name: f"{self.url}{_page(query, number)}" for name, number in (("next", page + 1), ("last", last))}
            links = {"Link": ", ".join(f'<{url}>; rel="{name}"' for name, url in urls.items())}
        else:
            links = {}
        items = [repo.described() for repo in shown[(page - 1) * per_page : page * per_page]]
        return described({"total_count": len(found), "incomplete_results": False, "items": items}, links)


def _page(query: dict[str, str], number: int) -> str:
    return "/search/repositories?" + urlencode({**query, "page": number})


def _words(query: str) -> list[str]:
    return [word.replace('"', "") for word in re.findall(r'(?:[^\s"]|"[^"]*")+', query)]


def _matches(repo: Repo, word: str) -> bool:
    key, _, value = word.partition(":")
    if key == "stars" and value.startswith(">="):
        return repo.stars >= int(value[2:])
    if key == "stars":
        low, high = map(int, value.split(".."))
        return low <= repo.stars <= high
    if key == "created":
        begin, end = map(datetime.fromisoformat, value.split(".."))
        return begin <= datetime.fromisoformat(repo.created) <= end
    if key == "license":
        return (repo.license or "").lower() == value
    if key == "archived":
        return repo.archived == (value == "true")
    return {"language": repo.language == value, "fork": True, "topic": value in repo.name}[key]


def described(content: Any, headers: dict[str, str] | None = None) -> Reply:
    return Reply(200, json.dumps(content).encode(), headers or {})


def _message(status: int, text: str, headers: dict[str, str] | None = None) -> Reply:
    return Reply(status, json.dumps({"message": text, "documentation_url": "..."}).encode(), headers or {})


def primary_limit(double: GitHubDouble, seconds: int, status: int = 403) -> Reply:
    """What the API answers when the quota is used up until in so many seconds."""
    reset = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(double.time.now()) + seconds)}
    return _message(status, "API rate limit exceeded for user ID 1.", reset)


def secondary_limit(status: int = 403, headers: dict[str, str] | None = None) -> Reply:
    return _message(status, "You have exceeded a secondary rate limit. Please wait.", headers)


def refused(status: int, text: str = "No.") -> Reply:
    return _message(status, text)


def at(seconds: int) -> str:
    """A time of creation."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextmanager
def github() -> Iterator[GitHubDouble]:
    double = GitHubDouble()
    now = double.time.now
    with serving(double._api, now) as double.url, serving(double._archive, now) as double.archives:
        yield double


def tarballs(cache: Path) -> list[Path]:
    return list(cache.glob("github/*.tar.gz"))
