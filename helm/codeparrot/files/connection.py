"""Whether a release works from inside: the head asks for the token, and the store takes and gives an object."""

import os
import time
import urllib.error
import urllib.request
from pathlib import Path

TIMEOUT_SECONDS = 240.0
PROBE = ".codeparrot-test"


def answer(url: str, token: str | None = None) -> int:
    """The HTTP status of a GET; 0 where nothing answers."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def check_head(address: str) -> None:
    """Wait until the head answers; then it must refuse us without the token."""
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while (status := answer(f"{address}/api/jobs/", token)) != 200:
        if time.monotonic() > deadline:
            raise SystemExit(f"FAILED the head at {address} answers {status} to the token, expected 200")
        time.sleep(2)
    status = answer(f"{address}/api/jobs/")
    if status not in (401, 403):
        raise SystemExit(f"FAILED the head at {address} answers {status} without the token, expected 401")
    print(f"OK the head at {address} takes the token, and nobody without it")


def check_store(bucket: str) -> None:
    """Write, read and delete an object, as every Ray pod does."""
    import boto3

    client = boto3.client("s3")
    client.put_object(Bucket=bucket, Key=PROBE, Body=b"here")
    read = client.get_object(Bucket=bucket, Key=PROBE)["Body"].read()
    client.delete_object(Bucket=bucket, Key=PROBE)
    if read != b"here":
        raise SystemExit(f"FAILED the store gave back {read!r}")
    print(f"OK bucket {bucket} takes and gives an object")


if __name__ == "__main__":
    check_store(os.environ["BUCKET"])
    if os.environ.get("HEAD"):
        check_head(os.environ["HEAD"])
