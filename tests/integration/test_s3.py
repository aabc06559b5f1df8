"""S3Storage against a real S3 server: what works, and what every failure says."""

import json
import os
import signal
from pathlib import Path

import pytest

from codeparrot import local_store
from codeparrot.errors import (
    AccessDenied,
    BucketNotFound,
    ObjectNotFound,
    PreconditionFailed,
    StoreUnreachable,
)
from codeparrot.local_store import LocalStore
from codeparrot.manifest import Attempt, load_manifest
from codeparrot.s3 import S3Storage
from codeparrot.storage import Storage, open_storage, probe

CREDENTIALS = "[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"


@pytest.fixture
def storage(s3: LocalStore, request: pytest.FixtureRequest) -> Storage:
    return S3Storage(f"s3://codeparrot/{request.node.name}", "codeparrot", request.node.name)


def test_what_is_written_is_read_whole_or_in_part(storage: Storage) -> None:
    storage.write("a/b", b"0123456789")
    assert storage.read("a/b") == b"0123456789"
    assert storage.read("a/b", 2, 5) == b"234"
    assert storage.read("a/b", 7) == b"789"
    assert storage.read("a/b", 4, 4) == b""


def test_an_object_is_replaced_at_once(storage: Storage) -> None:
    storage.write("a", b"old")
    storage.write("a", b"new and longer")
    assert storage.read("a") == b"new and longer"


def test_a_conditional_write_lets_one_writer_win(storage: Storage) -> None:
    storage.write("lease", b"first", only_if_absent=True)
    with pytest.raises(PreconditionFailed, match="exists already"):
        storage.write("lease", b"second", only_if_absent=True)
    assert storage.read("lease") == b"first"


def test_a_write_on_condition_that_nothing_has_changed(storage: Storage) -> None:
    tag = storage.write("lease", b"first")
    assert storage.read_tagged("lease") == (b"first", tag)
    newer = storage.write("lease", b"second", if_match=tag)
    with pytest.raises(PreconditionFailed, match="changed by another writer"):
        storage.write("lease", b"third", if_match=tag)
    assert storage.read_tagged("lease") == (b"second", newer)


def test_the_store_can_do_what_runs_need(storage: Storage) -> None:
    probe(storage, "runs/tiny")
    assert list(storage.list()) == []


def test_a_large_object_goes_in_parts_and_what_is_cut_off_is_swept(s3: LocalStore, storage: S3Storage) -> None:
    data = bytes(range(256)) * (280 * 1024)  # 70 MiB: two parts
    tag = storage.write("large", data)
    assert storage.read_tagged("large") == (data, tag)
    client = s3.client()
    client.create_multipart_upload(Bucket="codeparrot", Key=f"{storage.base}cut/off")
    storage.sweep("cut/")
    assert not client.list_multipart_uploads(Bucket="codeparrot", Prefix=storage.base).get("Uploads")


def test_a_listing_is_sorted_complete_and_below_the_prefix(storage: Storage) -> None:
    names = [f"shards/part-{index:04d}" for index in range(1005)]  # more than one page of 1,000
    for name in [*names, "shards2/x", "other"]:
        storage.write(name, b"12")
    assert list(storage.list("shards/")) == [(name, 2) for name in names]
    storage.delete([*names, "never there"])
    assert [path for path, _ in storage.list()] == ["other", "shards2/x"]


def test_pyarrow_reaches_the_same_objects(storage: Storage) -> None:
    storage.write("folder/a", b"through boto3")
    filesystem, base = storage.filesystem()
    with filesystem.open_input_stream(f"{base}/folder/a") as stream:
        assert stream.read() == b"through boto3"


def test_a_missing_object_is_named(storage: Storage) -> None:
    with pytest.raises(ObjectNotFound, match=r"s3://codeparrot/.*/nothing does not exist"):
        storage.read("nothing")


def test_a_missing_bucket_is_named(s3: LocalStore) -> None:
    storage = S3Storage("s3://absent/p", "absent", "p")
    with pytest.raises(BucketNotFound, match="bucket 'absent' does not exist"):
        storage.check()
    with pytest.raises(BucketNotFound, match="bucket 'absent' does not exist"):
        storage.write("a", b"")
    with pytest.raises(BucketNotFound, match="bucket 'absent' does not exist"):
        list(storage.list())


@pytest.mark.parametrize("wrong", ["key", "secret"])
def test_wrong_credentials_are_told_apart_from_everything_else(
    s3: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    right = dict(line.split(" = ") for line in s3.credentials.read_text().splitlines() if " = " in line)
    values = {"key": right["aws_access_key_id"], "secret": right["aws_secret_access_key"], wrong: "WRONG"}
    path = tmp_path / "credentials"
    path.write_text(CREDENTIALS.format(**values))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    storage = S3Storage("s3://codeparrot/p", "codeparrot", "p")
    with pytest.raises(AccessDenied, match="refused the credentials") as caught:
        storage.check()
    assert right["aws_secret_access_key"] not in str(caught.value)


def test_no_credentials_at_all_say_where_they_are_looked_for(
    s3: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(AccessDenied, match="AWS_SHARED_CREDENTIALS_FILE"):
        S3Storage("s3://codeparrot/p", "codeparrot", "p").check()


def test_an_endpoint_that_refuses_is_named(s3: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StoreUnreachable, match=r"http://127\.0\.0\.1:1 does not answer"):
        S3Storage("s3://codeparrot/p", "codeparrot", "p").check()


def test_what_was_acknowledged_survives_a_kill_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = [os.urandom(300_000) for _ in range(5)]
    with local_store.running(tmp_path, "codeparrot") as store:
        for name, value in store.environment().items():
            monkeypatch.setenv(name, value)
        storage = S3Storage("s3://codeparrot/p", "codeparrot", "p")
        attempt = Attempt(storage, "test", "out", {}, {}, "")
        attempt.commit([attempt.write(f"{index}", data) for index, data in enumerate(committed)], {})
        os.kill(json.loads((tmp_path / "server.json").read_bytes())["pid"], signal.SIGKILL)
        with pytest.raises(StoreUnreachable):
            storage.read("out/manifest.json")
    with local_store.running(tmp_path, "codeparrot") as again:
        assert again == store, "the endpoint stays the same"
        manifest = load_manifest(storage, "out")
        assert manifest is not None
        assert [manifest.read(storage, str(index)) for index in range(5)] == committed


def test_one_object_per_process_and_uri(s3: LocalStore) -> None:
    assert open_storage("s3://codeparrot/x") is open_storage("s3://codeparrot/x")
