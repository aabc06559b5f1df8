"""Answers and files of HTTP servers, by GET alone.

Credentials go to the origin (scheme, host, port) that they are for, wherever a redirect leads, and into no message;
~/.netrc is not read. Proxies and certificates are those of the environment (HTTPS_PROXY, NO_PROXY,
REQUESTS_CA_BUNDLE). What may pass (no connection, an answer that is cut off or damaged, a server's own error) is
tried again five times within 15 seconds. A server that asks to wait is obeyed, up to `max_wait_seconds` for an answer.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from codeparrot import __version__
from codeparrot.sources.kept import sync

if TYPE_CHECKING:
    from requests import PreparedRequest, Response

logger = logging.getLogger(__name__)

MAX_TRIES = 5
MAX_REDIRECTS = 5
MAX_ANSWER_BYTES = 256_000_000
PIECE_BYTES = 1 << 16
CONNECT_SECONDS, READ_SECONDS = 30.0, 60.0
REDIRECTS = (301, 302, 303, 307, 308)
BUSY = (429, 503)
LOOPBACK = ("127.0.0.1", "::1", "localhost")
A_YEAR = 365 * 86400.0
"""Longer waits need no telling apart."""


class WebError(Exception):
    """A server cannot be reached, or does not give what it should; the message names it, on one line."""


class TooMuch(WebError):
    """A file is larger than it may be."""


class Passing(Exception):
    """What may be otherwise the next time; the message says what it is."""


@dataclass(frozen=True)
class Clock:
    """Time, and waiting."""

    now: Callable[[], float] = time.time
    sleep: Callable[[float], object] = time.sleep


CLOCK = Clock()


@dataclass(frozen=True)
class Credentials:
    """What lets us in, and where."""

    origin: str
    authorization: str = field(repr=False)
    """The value of the header of that name."""


@dataclass(frozen=True)
class Answer:
    """What a server said."""

    status: int
    url: str
    """After all redirects."""
    headers: Mapping[str, str]
    """Their names in small letters."""
    body: bytes = b""
    next: str | None = None
    """The URL of the next page."""
    at: float = 0.0
    """When it was given, by the server's clock if it says, so that one that is wrong here does not matter."""


Pause = Callable[[Answer, int], float | None]
"""How many seconds a server asks to wait, if it does, after so many waits for the same answer."""


def asked_to_wait(answer: Answer, _: int) -> float | None:
    """What `Retry-After` says with an answer that means too much work."""
    return retry_after(answer) if answer.status in BUSY and "retry-after" in answer.headers else None


def retry_after(answer: Answer) -> float:
    """The seconds that the header of that name says, as a number or as a time; a minute if it says neither."""
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else max(_time(text, answer.at + 60) - answer.at, 0.0)


def origin_of(url: str) -> str:
    """Scheme, host and port of a URL. Raises ValueError if it has no such."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    if port is None or not parts.hostname:
        raise ValueError("no http or https URL")
    return f"{parts.scheme}://{parts.hostname}:{port}"


def is_private(url: str) -> bool:
    """Whether nobody on the way can read what is sent there: by https, or to this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)


class Web:
    """A way to servers, with credentials for at most one of them."""

    def __init__(
        self,
        where: str,
        *,
        credentials: Credentials | None = None,
        pause: Pause = asked_to_wait,
        max_wait_seconds: float = 600.0,
        clock: Clock = CLOCK,
    ) -> None:
        """`where` begins each log line."""
        from requests import Session

        self._where = where
        self._credentials = credentials
        self._pause = pause
        self._max_wait_seconds = max_wait_seconds
        self._clock = clock
        self._session = Session()

    def get(self, url: str, headers: Mapping[str, str] | None = None) -> Answer:
        """The answer to a request, after redirects, whatever its status but 5xx. Raises WebError."""
        return self._tried(url, headers or {}, lambda response: _body(response, MAX_ANSWER_BYTES))

    def download(self, url: str, path: Path, check: Callable[[Path], object], max_bytes: int) -> Answer:
        """Write what the URL holds to a file and check it; nothing is written unless the status is 200.

        `check` raises Passing if the file is damaged. Raises WebError, and OSError.
        """
        headers = {"accept-encoding": "identity"}
        return self._tried(url, headers, partial(_save, path=path, check=check, max_bytes=max_bytes))

    def _tried(self, url: str, headers: Mapping[str, str], read: Callable[["Response"], bytes]) -> Answer:
        num_tries = num_waits = 0
        waited = 0.0
        while True:
            try:
                answer = self._answer(url, headers, read)
            except Passing as problem:
                num_tries += 1
                if num_tries == MAX_TRIES:
                    raise WebError(f"{_host(url)}: {problem}, {MAX_TRIES} times") from problem
                self._clock.sleep(2.0 ** (num_tries - 1))
                continue
            seconds = self._pause(answer, num_waits)
            if seconds is None:
                return answer
            seconds = min(seconds, A_YEAR)
            num_waits += 1
            waited += seconds
            self._wait(answer, seconds, waited)

    def _wait(self, answer: Answer, seconds: float, waited: float) -> None:
        host = _host(answer.url)
        until = datetime.fromtimestamp(self._clock.now() + seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        if waited > self._max_wait_seconds:
            limit = f"{self._max_wait_seconds:,.0f}"
            raise WebError(
                f"{host} asks to wait until {until}, longer than is allowed ({limit} s); "
                f"run again then, what was fetched is kept"
            )
        logger.warning("%s: %s asks to wait %s s, until %s", self._where, host, f"{seconds:,.0f}", until)
        self._clock.sleep(seconds)

    def _answer(self, url: str, headers: Mapping[str, str], read: Callable[["Response"], bytes]) -> Answer:
        from requests import RequestException

        try:
            with self._followed(url, headers) as response:
                found = {name.lower(): value for name, value in response.headers.items()}
                body = read(response) if response.status_code == 200 else _body(response, MAX_ANSWER_BYTES)
                following = response.links.get("next", {}).get("url")
                at = _time(found.get("date", ""), self._clock.now())
                answer = Answer(response.status_code, response.url, found, body, following, at)
        except RequestException as error:
            raise Passing(_reason(error)) from error
        except ValueError as error:  # from here or from the library, which looks at the next URL, too
            raise WebError(f"{_host(url)} redirects to what is no URL") from error
        if answer.status >= 500 and self._pause(answer, 0) is None:
            raise Passing(f"it answers {answer.status}")
        return answer

    @contextmanager
    def _followed(self, url: str, headers: Mapping[str, str]) -> Iterator["Response"]:
        """The answer at the end of all redirects."""
        first = url
        for _ in range(MAX_REDIRECTS + 1):
            with self._asked(url, headers) as response:
                target = response.headers.get("location")
                if response.status_code not in REDIRECTS or not target:
                    yield response
                    return
            url = urljoin(url, target)
            if not url.startswith(("https://", f"{urlsplit(first).scheme}://")):
                raise WebError(f"{_host(first)} redirects to another scheme")
        raise WebError(f"{_host(first)} redirects without end")

    def _asked(self, url: str, headers: Mapping[str, str]) -> "Response":
        own = {"user-agent": f"codeparrot/{__version__}", **headers}
        if self._credentials is not None and _is_within(url, self._credentials.origin):
            own["authorization"] = self._credentials.authorization
        return self._session.get(
            url,
            headers=own,
            stream=True,
            allow_redirects=False,
            auth=_as_it_is,
            timeout=(CONNECT_SECONDS, READ_SECONDS),
        )


def _is_within(url: str, origin: str) -> bool:
    try:
        return origin_of(url) == origin
    except ValueError:  # of another scheme, or with a port that is none
        return False


def _as_it_is(request: "PreparedRequest") -> "PreparedRequest":
    """Given as the way to authenticate, this keeps the library from looking into ~/.netrc."""
    return request


def _body(response: "Response", max_bytes: int) -> bytes:
    body = bytearray()
    for piece in response.iter_content(PIECE_BYTES):
        body += piece
        if len(body) > max_bytes:
            raise WebError(f"{_host(response.url)} answers with more than {max_bytes:,} bytes")
    return bytes(body)


def _save(response: "Response", path: Path, check: Callable[[Path], object], max_bytes: int) -> bytes:
    num_bytes = 0
    with path.open("wb") as file:
        for piece in response.iter_content(PIECE_BYTES):
            num_bytes += file.write(piece)
            if num_bytes > max_bytes:
                raise TooMuch(f"{_host(response.url)} sends more than {max_bytes:,} bytes")
    length = response.headers.get("content-length", "")
    if length.isdecimal() and num_bytes != int(length) and "content-encoding" not in response.headers:
        raise Passing(f"it sent {num_bytes:,} of {int(length):,} bytes")
    check(path)
    sync(path)
    return b""


def _time(text: str, otherwise: float) -> float:
    """A date of HTTP in seconds since the epoch."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except ValueError:
        return otherwise


def _host(url: str) -> str:
    return urlsplit(url).hostname or "a server without a name"


def _reason(error: Exception) -> str:
    """Why there is no answer, without what a library would tell of the request."""
    from requests import exceptions

    reasons = {
        exceptions.ProxyError: "the proxy does not let us through",
        exceptions.SSLError: "its certificate is not accepted",
        exceptions.Timeout: "it does not answer in time",
        exceptions.ChunkedEncodingError: "the answer was cut off",
        exceptions.ConnectionError: "no connection",
    }
    return next((text for kind, text in reasons.items() if isinstance(error, kind)), type(error).__name__)
