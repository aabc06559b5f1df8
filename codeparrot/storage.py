"""Where everything lies: one base URI, one interface, two kinds of store.

`open_storage("s3://bucket/prefix")` speaks to any S3-compatible store (`codeparrot.s3`);
`open_storage("/some/folder")` (or `file:///some/folder`) is a directory on this machine. Paths are relative
to the base URI and use `/`.

A write is atomic on both kinds: a reader sees the whole object or none. On a directory that takes a temporary
file, fsync and rename. A conditional write lets one of several writers win: it succeeds only if the object is
still absent, or still the one whose tag the writer has seen.
"""

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeVar
from urllib.parse import unquote, urlparse

from pydantic import field_validator

from codeparrot.errors import (
    AccessDenied,
    ConfigError,
    ObjectNotFound,
    PreconditionFailed,
    StorageError,
    StoreFull,
)
from codeparrot.s3 import S3Storage
from codeparrot.settings import Settings

if TYPE_CHECKING:
    import pyarrow.fs

logger = logging.getLogger(__name__)

T = TypeVar("T")

NUM_CREATE_TRIES = 1000
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
TEMPORARY = ".tmp"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StorageSettings(Settings):
    """Where a run reads and writes."""

    uri: str
    """Base of everything: `s3://bucket/prefix`, or a directory of this machine."""

    @field_validator("uri")
    @classmethod
    def _known_scheme(cls, uri: str) -> str:
        try:
            parse_uri(uri)
        except ConfigError as error:  # as a ValueError it is reported together with every other problem
            raise ValueError(str(error).removeprefix("storage.uri: ")) from None
        return uri


class Storage(Protocol):
    """The interface both kinds of store share. Every method may raise StorageError."""

    uri: str

    def read(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        """The object, or its bytes from `start` up to but without `stop`. Raises ObjectNotFound."""

    def read_tagged(self, path: str) -> tuple[bytes, str]:
        """The object, and a tag of what it holds, for `if_match`. Raises ObjectNotFound."""

    def tag(self, path: str) -> str:
        """The tag of what the object holds, alone. Raises ObjectNotFound."""

    def write(self, path: str, data: bytes, *, only_if_absent: bool = False, if_match: str | None = None) -> str:
        """Replace the object at once; returns its tag.

        Raises PreconditionFailed if it exists and `only_if_absent`, or if its tag is not `if_match`.
        """

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """(path, size in bytes) of every object under `prefix`, sorted by path."""

    def delete(self, paths: Iterable[str]) -> None:
        """Remove objects; those that do not exist are ignored."""

    def sweep(self, prefix: str) -> None:
        """Remove what killed writers left half-written under `prefix`, which no listing shows."""

    def check(self) -> None:
        """Raise a StorageError that says why the store cannot be used, if it cannot."""

    def filesystem(self) -> "tuple[pyarrow.fs.FileSystem, str]":
        """The same place for libraries that speak pyarrow: (file system, base path in it)."""


@lru_cache(maxsize=8)
def open_storage(uri: str) -> Storage:
    """The store at `uri`; one object per process and URI. Raises ConfigError for an unknown scheme."""
    scheme, location, prefix = parse_uri(uri)
    return S3Storage(uri, location, prefix) if scheme == "s3" else LocalStorage(location)


def parse_uri(uri: str) -> tuple[str, str, str]:
    """(scheme, bucket or directory, prefix) of a base URI. Raises ConfigError."""
    wrong = f"storage.uri: cannot use {uri!r}; write s3://BUCKET/PREFIX or a directory"
    try:
        parsed = urlparse(uri)
    except ValueError as error:
        raise ConfigError(wrong) from error
    if parsed.scheme == "s3":
        if not parsed.netloc:
            raise ConfigError(f"storage.uri: {uri!r} names no bucket; write s3://BUCKET/PREFIX")
        return "s3", parsed.netloc, parsed.path.strip("/")
    if parsed.scheme == "file" and parsed.netloc in ("", "localhost") and parsed.path:
        return "file", unquote(parsed.path), ""
    if parsed.scheme or not uri:
        raise ConfigError(wrong)
    return "file", uri, ""


def sha256_hex(data: bytes) -> str:
    """SHA-256 of the data in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


class LocalStorage:
    """A directory of this machine (or one that all machines share)."""

    def __init__(self, directory: str) -> None:
        self.root = Path(directory).expanduser().absolute()
        self.uri = self.root.as_uri()

    def read(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        with self._translated(path), (self.root / path).open("rb") as file:
            file.seek(start)
            return file.read(-1 if stop is None else max(0, stop - start))

    def read_tagged(self, path: str) -> tuple[bytes, str]:
        data = self.read(path)
        return data, sha256_hex(data)

    def tag(self, path: str) -> str:
        with self._translated(path), (self.root / path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def write(self, path: str, data: bytes, *, only_if_absent: bool = False, if_match: str | None = None) -> str:
        target = self.root / path
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}{TEMPORARY}")
        with self._translated(path):
            new = _create(temporary)
            try:
                with new as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                if only_if_absent:
                    os.link(temporary, target)
                elif if_match is None:
                    temporary.replace(target)
                else:
                    with _alone_in(target.parent):
                        if not target.exists() or sha256_hex(target.read_bytes()) != if_match:
                            raise PreconditionFailed(f"{self.uri}/{path} was changed by another writer")
                        temporary.replace(target)
            except FileExistsError:
                raise PreconditionFailed(f"{self.uri}/{path} exists already") from None
            finally:
                temporary.unlink(missing_ok=True)
        return sha256_hex(data)

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        start = self.root / prefix
        base = start if prefix.endswith("/") or not prefix else start.parent
        found = []
        with self._translated(prefix):
            for folder, _, names in os.walk(base):
                for name in names:
                    file = Path(folder) / name
                    path = file.relative_to(self.root).as_posix()
                    if path.startswith(prefix) and not _is_temporary(name):
                        with contextlib.suppress(FileNotFoundError):
                            found.append((path, file.stat().st_size))
        return iter(sorted(found))

    def delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            target = self.root / path
            with self._translated(path):
                target.unlink(missing_ok=True)
                for folder in target.parents:
                    if folder == self.root or not _remove_if_empty(folder):
                        break

    def sweep(self, prefix: str) -> None:
        with self._translated(prefix):
            for folder, _, names in os.walk(self.root / prefix):
                for name in filter(_is_temporary, names):
                    (Path(folder) / name).unlink(missing_ok=True)

    def check(self) -> None:
        with self._translated(""):
            self.root.mkdir(parents=True, exist_ok=True)
            if not os.access(self.root, os.R_OK | os.W_OK | os.X_OK):
                raise AccessDenied(f"storage.uri: no permission to read and write {self.root}")

    def filesystem(self) -> "tuple[pyarrow.fs.FileSystem, str]":
        import pyarrow.fs

        return pyarrow.fs.LocalFileSystem(), str(self.root)

    @contextlib.contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        where = f"{self.uri}/{path}"
        try:
            yield
        except FileNotFoundError:
            raise ObjectNotFound(f"{where} does not exist") from None
        except PermissionError as error:
            raise AccessDenied(f"no permission for {error.filename or where}") from error
        except OSError as error:
            if error.errno in NO_SPACE:
                raise StoreFull(f"no space left to write {where}; free some and run again") from error
            raise StorageError(f"{where}: {error.strerror or error}") from error


def default_cache() -> Path:
    """`CODEPARROT_CACHE`, or a folder of this user in the system's temporary folder."""
    default = Path(tempfile.gettempdir()) / f"codeparrot-cache-{os.getuid()}"
    return Path(os.environ.get("CODEPARROT_CACHE") or default)


def make_private(folder: Path) -> None:
    """What is cached is trusted once it is checked, so nobody else may write there. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "it belongs to another user", str(folder))


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """One process of this machine at a time holds this file, which is made for that."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _create(path: Path) -> BinaryIO:
    """Open a new file; a `delete` next to it may remove its folder as long as that is empty, hence the tries."""
    for _ in range(NUM_CREATE_TRIES - 1):
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("wb")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("wb")


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(TEMPORARY)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """One conditional writer in a folder at a time."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_if_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def persist(action: Callable[[], T], seconds: float, what: str) -> T:
    """What `action` returns, tried again for so long with growing pauses while it raises a StorageError.

    Raises the last error. `what` begins the one warning.
    """
    deadline = time.monotonic() + seconds
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            return action()
        except (ObjectNotFound, PreconditionFailed):  # answers, not failures
            raise
        except StorageError as error:
            if time.monotonic() + pause > deadline:
                raise
            if pause == FIRST_PAUSE_SECONDS:
                logger.warning("%s: %s; trying again for up to %.0f s", what, error, seconds)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def probe(storage: Storage, prefix: str) -> None:
    """Find out whether the store can do what runs need. Raises StorageError that says what it cannot."""
    path = f"{prefix}/.probe-{secrets.token_hex(4)}"
    lacks = []
    try:
        tag = storage.write(path, b"0123456789", only_if_absent=True)
        if not _is_refused(storage, path, only_if_absent=True):
            lacks.append("writing only if absent (If-None-Match)")
        storage.write(path, b"0123456789", if_match=tag)
        if not _is_refused(storage, path, if_match=sha256_hex(b"other")[:32]):
            lacks.append("writing only if unchanged (If-Match)")
        if storage.read(path, 2, 5) != b"234":
            lacks.append("reading a range")
    finally:
        storage.delete([path])
    if lacks:
        raise StorageError(f"{storage.uri}: this store cannot do what runs need: {'; '.join(lacks)}; use another store")


def _is_refused(storage: Storage, path: str, *, only_if_absent: bool = False, if_match: str | None = None) -> bool:
    try:
        storage.write(path, b"0123456789", only_if_absent=only_if_absent, if_match=if_match)
    except PreconditionFailed:
        return True
    return False
