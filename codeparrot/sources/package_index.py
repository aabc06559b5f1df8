"""A Python package index, asked by its JSON API (PEP 691) for source distributions.

Which index: what the source's settings say, else PIP_INDEX_URL, UV_DEFAULT_INDEX or UV_INDEX_URL of the environment,
else the file that PIP_INDEX_URL_FILE names, on every node that collects. A user name and password in such a URL go to
the index's own origin and nowhere else.
"""

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from packaging.utils import InvalidSdistFilename, parse_sdist_filename
from packaging.version import Version

from codeparrot.errors import SourceError
from codeparrot.sources.kept import CannotKeep
from codeparrot.sources.web import CLOCK, Clock, Credentials, Passing, TooMuch, Web, WebError, is_private, origin_of

ENVIRONMENT = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL")
JSON = "application/vnd.pypi.simple.v1+json"
SHA256 = re.compile(r"[0-9a-f]{64}")
SUFFIXES = (".zip", ".tar.gz")
"""Of source distributions; the last is the best."""


@dataclass(frozen=True)
class Found:
    """A source distribution that the index has."""

    version: Version
    file: str
    """Its name."""
    url: str
    sha256: str
    is_yanked: bool

    @property
    def suffix(self) -> str:
        """One of SUFFIXES."""
        return next(suffix for suffix in SUFFIXES if self.file.endswith(suffix))


class NotOnIndex(Exception):
    """The index has no such distribution; the message says what it lacks."""


class PackageIndex:
    """An index, asked by one source. All methods raise SourceError."""

    def __init__(self, source: str, url: str | None, clock: Clock = CLOCK) -> None:
        """Without a URL, that of the environment."""
        self.where = f"source {source!r}"
        self._url, credentials = self._place(url)
        self._web = Web(self.where, credentials=credentials, clock=clock)

    def newest(self, name: str) -> Found:
        """The newest version that is not yanked, and no pre-release unless all are. Raises NotOnIndex."""
        usable = [found for found in self._all(name) if not found.is_yanked]
        final = [found for found in usable if not found.version.is_prerelease]
        if not usable:
            raise NotOnIndex("no source distribution that is not yanked")
        return max(final or usable, key=_rank)

    def version(self, name: str, version: Version) -> Found:
        """One version, even if it was yanked. Raises NotOnIndex."""
        found = [each for each in self._all(name) if each.version == version]
        if not found:
            raise NotOnIndex(f"no source distribution of version {version} with a SHA-256")
        return max(found, key=_rank)

    def download(self, url: str, sha256: str, path: Path, max_bytes: int) -> None:
        """Write a file whose hash must be this one. Raises also OSError."""
        try:
            with self.translated():
                answer = self._web.download(url, path, lambda made: _check(made, sha256), max_bytes)
        except TooMuch as error:
            raise self.error(f"{error}; raise max_unpacked_bytes") from error
        if answer.status != 200:
            raise self.error(f"the index gives no {url.rpartition('/')[2]}: it answers {answer.status}")

    def error(self, problem: object) -> SourceError:
        """An error that says which source has it."""
        return SourceError(f"{self.where}: {problem}")

    @contextmanager
    def translated(self) -> Iterator[None]:
        """A block in which what goes wrong with the web or the cache becomes a SourceError."""
        try:
            yield
        except TooMuch:
            raise
        except (CannotKeep, WebError) as error:
            raise self.error(error) from error

    def _place(self, url: str | None) -> tuple[str, Credentials | None]:
        """The URL without what lets us in, and that."""
        where, text = ("index_url", url) if url is not None else self._of_environment()
        try:
            parts = urlsplit(text)
            plain = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
            origin = origin_of(plain)
        except ValueError:
            raise self.error(f"{where} is no http or https URL") from None
        if "@" not in parts.netloc:
            return plain, None
        if not is_private(plain):
            raise self.error(f"{where} has a password that would be sent unencrypted; use https")
        user = ":".join(map(unquote, (parts.username or "", parts.password or "")))
        return plain, Credentials(origin, f"Basic {base64.b64encode(user.encode()).decode()}")

    def _of_environment(self) -> tuple[str, str]:
        """(where the URL stands, the URL)."""
        for name in ENVIRONMENT:
            if os.environ.get(name):
                return name, os.environ[name]
        file = os.environ.get("PIP_INDEX_URL_FILE")
        if not file:
            raise self.error(f"no package index is named; set index_url, or {ENVIRONMENT[0]} in the environment")
        try:
            return "what the file of PIP_INDEX_URL_FILE holds", Path(file).read_text("ascii").strip()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise self.error(f"cannot read the file that PIP_INDEX_URL_FILE names: {reason}") from None

    def _all(self, name: str) -> list[Found]:
        """All source distributions of this name."""
        with self.translated():
            answer = self._web.get(f"{self._url}/{name}/", {"accept": JSON})
        if answer.status in (404, 410):
            raise NotOnIndex("no distribution of this name")
        if answer.status in (401, 403):
            raise self.error(
                f"the index lets nobody in without the right user and password (it answers {answer.status})"
            )
        if answer.status != 200:
            raise self.error(f"the index answers {answer.status}")
        try:
            page = json.loads(answer.body)
            if str(page["meta"]["api-version"]).split(".")[0] != "1":
                raise ValueError("another version of the API")
            return [found for file in page["files"] if (found := _found(name, answer.url, file)) is not None]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self.error("the index has no JSON API (PEP 691) here; correct index_url") from error


def _found(name: str, page: str, file: dict[str, Any]) -> Found | None:
    """A file of a page, if it is a source distribution of this name whose hash the index tells."""
    try:
        own_name, version = parse_sdist_filename(file["filename"])
    except InvalidSdistFilename:
        return None
    url, sha256 = urljoin(page, file["url"]).partition("#")[0], file["hashes"].get("sha256", "")
    if own_name != name or not SHA256.fullmatch(sha256) or not url.startswith(("https://", "http://")):
        return None
    return Found(version, file["filename"], url, sha256, bool(file.get("yanked")))


def _rank(found: Found) -> tuple[Version, int, str]:
    return found.version, SUFFIXES.index(found.suffix), found.file


def _check(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise Passing(f"the file that it sends has the SHA-256 {digest}, not {sha256} as the index says")
