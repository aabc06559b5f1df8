"""A bucket of any S3-compatible store, through boto3: endpoint, credentials, retries, and what its refusals mean.

Credentials come from the standard AWS chain (environment, shared file, web identity), the endpoint from
`AWS_ENDPOINT_URL`; neither ever stands in a recipe.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from codeparrot.errors import (
    AccessDenied,
    BucketNotFound,
    ObjectNotFound,
    PreconditionFailed,
    StorageError,
    StoreFull,
    StoreUnreachable,
)

if TYPE_CHECKING:
    import pyarrow.fs

MULTIPART_BYTES = 64 * 1024 * 1024  # a single request takes at most 5 GiB (S3 API reference)
S3_DELETE_LIMIT = 1000  # keys in one DeleteObjects request (S3 API reference)


class S3Storage:
    """A bucket of an S3-compatible store, through boto3."""

    def __init__(self, uri: str, bucket: str, prefix: str, client: Any = None) -> None:
        """`client`: one of boto3's; without it, all comes from the environment."""
        self.uri = uri.rstrip("/")
        self.bucket = bucket
        self.base = f"{prefix}/" if prefix else ""
        self.endpoint = endpoint_url() or "the AWS endpoint"
        with self._translated(""):
            self._client = client or s3_client()

    def read(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        if stop is not None and stop <= start:
            return b""
        last = "" if stop is None else stop - 1
        part: dict[str, Any] = {"Range": f"bytes={start}-{last}"} if start or stop is not None else {}
        with self._translated(path):
            body: bytes = self._client.get_object(Bucket=self.bucket, Key=self.base + path, **part)["Body"].read()
            return body

    def read_tagged(self, path: str) -> tuple[bytes, str]:
        with self._translated(path):
            answer = self._client.get_object(Bucket=self.bucket, Key=self.base + path)
            return answer["Body"].read(), answer["ETag"]

    def tag(self, path: str) -> str:
        with self._translated(path):
            return str(self._client.head_object(Bucket=self.bucket, Key=self.base + path)["ETag"])

    def write(self, path: str, data: bytes, *, only_if_absent: bool = False, if_match: str | None = None) -> str:
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if only_if_absent else {}
        condition |= {"IfMatch": if_match} if if_match is not None else {}
        if len(data) > MULTIPART_BYTES and not condition:
            return self._write_in_parts(path, data)
        with self._translated(path):
            answer = self._client.put_object(Bucket=self.bucket, Key=self.base + path, Body=data, **condition)
            return str(answer["ETag"])

    def _write_in_parts(self, path: str, data: bytes) -> str:
        """Several requests at once; the object appears when the last one has succeeded."""
        import io

        from boto3.exceptions import S3UploadFailedError
        from boto3.s3.transfer import TransferConfig

        parts = TransferConfig(multipart_threshold=MULTIPART_BYTES, multipart_chunksize=MULTIPART_BYTES)
        with self._translated(path):
            try:
                self._client.upload_fileobj(io.BytesIO(data), self.bucket, self.base + path, Config=parts)
            except S3UploadFailedError as error:  # it hides the error of the part that failed
                raise (error.__cause__ or error.__context__ or error) from error
        return self.tag(path)

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

    def sweep(self, prefix: str) -> None:
        """Uploads in parts that were cut off: no object, but space."""
        pages = self._client.get_paginator("list_multipart_uploads")
        with self._translated(prefix):
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.base + prefix):
                for item in page.get("Uploads", []):
                    self._client.abort_multipart_upload(Bucket=self.bucket, Key=item["Key"], UploadId=item["UploadId"])

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
        except (aws.BotoCoreError, ValueError) as error:  # a profile that does not exist; an endpoint without a scheme
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
            return PreconditionFailed(f"{where} exists already, or was changed by another writer")
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
