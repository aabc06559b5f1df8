"""Where everything lies: one base URI, one interface, two kinds of store.

`open_storage("s3://bucket/prefix")` speaks to any S3-compatible store through boto3;
`open_storage("/some/folder")` (or `file:///some/folder`) is a directory on this machine. Paths are relative
to the base URI and use `/`.

This module owns endpoints, credentials, retries and error translation. Credentials come from the standard AWS
chain (environment, shared file, web identity), the endpoint from `AWS_ENDPOINT_URL`; neither ever stands in a
recipe. A write is atomic on both kinds: a reader sees the whole object or none. On a directory that takes a
temporary file, fsync and rename (or link, for a conditional write).
"""

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol
from urllib.parse import unquote, urlparse

from pydantic import field_validator

from codeparrot.errors import (
    AccessDenied,
    BucketNotFound,
    ConfigError,
    ObjectNotFound,
    PreconditionFailed,
    StorageError,
    StoreFull,
    StoreUnreachable,
)
from codeparrot.settings import Settings

if TYPE_CHECKING:
    import pyarrow.fs

S3_DELETE_LIMIT = 1000  # keys in one DeleteObjects request (S3 API reference)
NUM_CREATE_TRIES = 10
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

    def write(self, path: str, data: bytes, *, only_if_absent: bool = False) -> None:
        """Replace the object at once. Raises PreconditionFailed if it exists and `only_if_absent`."""

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """(path, size in bytes) of every object under `prefix`, sorted by path."""

    def delete(self, paths: Iterable[str]) -> None:
        """Remove objects; those that do not exist are ignored."""

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
        self.root = Path(directory).absolute()
        self.uri = self.root.as_uri()

    def read(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        with self._translated(path), (self.root / path).open("rb") as file:
            file.seek(start)
            return file.read(-1 if stop is None else max(0, stop - start))

    def write(self, path: str, data: bytes, *, only_if_absent: bool = False) -> None:
        target = self.root / path
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        with self._translated(path):
            new = _create(temporary)
            try:
                with new as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                if only_if_absent:
                    os.link(temporary, target)
                else:
                    temporary.replace(target)
            except FileExistsError:
                raise PreconditionFailed(f"{self.uri}/{path} exists already") from None
            finally:
                temporary.unlink(missing_ok=True)

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        start = self.root / prefix
        base = start if prefix.endswith("/") or not prefix else start.parent
        found = []
        with self._translated(prefix):
            for folder, _, names in os.walk(base):
                for name in names:
                    file = Path(folder) / name
                    path = file.relative_to(self.root).as_posix()
                    if path.startswith(prefix) and not (name.startswith(".") and name.endswith(".tmp")):
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


def _create(path: Path) -> BinaryIO:
    """Open a new file; a `delete` next to it may remove its folder as long as that is empty, hence the tries."""
    for _ in range(NUM_CREATE_TRIES - 1):
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("wb")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("wb")


def _remove_if_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


class S3Storage:
    """A bucket of an S3-compatible store, through boto3."""

    def __init__(self, uri: str, bucket: str, prefix: str) -> None:
        self.uri = uri.rstrip("/")
        self.bucket = bucket
        self.base = f"{prefix}/" if prefix else ""
        self.endpoint = endpoint_url() or "the AWS endpoint"
        self._client = s3_client()

    def read(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        if stop is not None and stop <= start:
            return b""
        last = "" if stop is None else stop - 1
        part: dict[str, Any] = {"Range": f"bytes={start}-{last}"} if start or stop is not None else {}
        with self._translated(path):
            body: bytes = self._client.get_object(Bucket=self.bucket, Key=self.base + path, **part)["Body"].read()
            return body

    def write(self, path: str, data: bytes, *, only_if_absent: bool = False) -> None:
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if only_if_absent else {}
        with self._translated(path):
            self._client.put_object(Bucket=self.bucket, Key=self.base + path, Body=data, **condition)

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        pages = self._client.get_paginator("list_objects_v2")
        with self._translated(prefix):
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.base + prefix):
                for item in page.get("Contents", []):
                    yield item["Key"].removeprefix(self.base), item["Size"]

    def delete(self, paths: Iterable[str]) -> None:
        keys = [{"Key": self.base + path} for path in paths]
        for start in range(0, len(keys), S3_DELETE_LIMIT):
            batch: Any = {"Objects": keys[start : start + S3_DELETE_LIMIT], "Quiet": True}
            with self._translated(""):
                answer = self._client.delete_objects(Bucket=self.bucket, Delete=batch)
            if answer.get("Errors"):
                first = answer["Errors"][0]
                raise StorageError(f"{self.uri}: could not delete {first.get('Key')}: {first.get('Message')}")

    def check(self) -> None:
        """One listing with one key at most: it needs the endpoint, the credentials and the bucket."""
        with self._translated(""):
            self._client.list_objects_v2(Bucket=self.bucket, Prefix=self.base, MaxKeys=1)

    def filesystem(self) -> "tuple[pyarrow.fs.FileSystem, str]":
        """pyarrow ignores AWS_ENDPOINT_URL, so it is given here; keys still come from the chain."""
        import pyarrow.fs

        endpoint = endpoint_url()
        options = {"endpoint_override": endpoint} if endpoint else {}
        return pyarrow.fs.S3FileSystem(region=region(), **options), f"{self.bucket}/{self.base}".rstrip("/")

    @contextlib.contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        from botocore import exceptions as aws

        where = f"{self.uri}/{path}"
        try:
            yield
        except aws.ClientError as error:
            raise self._refusal(error, where) from error
        except (aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError) as error:
            raise AccessDenied(
                f"{self.uri}: no usable credentials ({error}); set AWS_SHARED_CREDENTIALS_FILE, "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a web identity"
            ) from error
        except (aws.HTTPClientError, aws.ConnectionError, aws.ResponseStreamingError) as error:
            raise StoreUnreachable(
                f"{where}: the object store at {self.endpoint} does not answer; start it or set "
                "AWS_ENDPOINT_URL, then run again"
            ) from error
        except aws.BotoCoreError as error:
            raise StorageError(f"{where}: {error}") from error

    def _refusal(self, error: Any, where: str) -> StorageError:
        code = str(error.response.get("Error", {}).get("Code", ""))
        message = error.response.get("Error", {}).get("Message", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code == "NoSuchBucket":
            return BucketNotFound(
                f"{self.uri}: bucket {self.bucket!r} does not exist at {self.endpoint}; create it or change storage.uri"
            )
        if code in ("NoSuchKey", "404"):
            return ObjectNotFound(f"{where} does not exist")
        if code == "PreconditionFailed" or status == 412:
            return PreconditionFailed(f"{where} exists already")
        if status in (401, 403):
            return AccessDenied(f"{where}: {self.endpoint} refused the credentials ({code}: {message})")
        if status == 507 or "no space" in message.lower() or "no writable volumes" in message.lower():
            return StoreFull(f"no space left to write {where} ({code}: {message}); free some and run again")
        hint = "; is its disk full? Its log says more" if status == 500 else ""
        return StorageError(f"{where}: {self.endpoint} answered {status} {code}: {message}{hint}")


def endpoint_url() -> str | None:
    """The endpoint from the environment, as the AWS command line reads it."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def region() -> str:
    """The region from the environment; stores outside AWS ignore it, but signatures need one."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def s3_client(endpoint: str | None = None, **credentials: str) -> Any:
    """A boto3 S3 client that also works with stores outside AWS; without arguments, all from the environment.

    Path-style addresses away from AWS, and no request checksums that older stores reject
    (the default of new AWS SDKs).
    """
    import boto3
    from botocore.config import Config

    endpoint = endpoint or endpoint_url()
    config = Config(
        connect_timeout=5,
        read_timeout=60,
        retries={"max_attempts": 5, "mode": "standard"},
        s3={"addressing_style": "path" if endpoint else "auto"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        max_pool_connections=16,
    )
    # A session of its own: boto3's default one is not safe to create from several threads.
    return boto3.session.Session().client(
        "s3", endpoint_url=endpoint, region_name=region(), config=config, **credentials
    )
