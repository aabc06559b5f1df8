"""The embedded store: what it listens on, what it keeps secret, and how it ends."""

import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from codeparrot import local_store, weed
from codeparrot.errors import StorageError
from codeparrot.local_store import Gateway, LocalStore
from codeparrot.ports import free_ports
from ray_jobs import local
from tests.integration.conftest import LOOPBACK, listeners


def pid_of(state: Path) -> int:
    return int(json.loads((state / "server.json").read_bytes())["pid"])


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The state folder of a running server."""
    folder = tmp_path_factory.mktemp("state")
    with local_store.running(folder, "codeparrot"):
        yield folder


def test_it_listens_on_loopback_only(state: Path) -> None:
    assert listeners([pid_of(state)]) <= LOOPBACK


def test_secrets_are_in_private_files_and_nowhere_else(state: Path) -> None:
    secret = (state / "credentials").read_text().split()[-1]
    assert len(secret) >= 40
    for name in ("credentials", "s3.json", "server.json"):
        assert stat.S_IMODE((state / name).stat().st_mode) == 0o600, name
    process = Path(f"/proc/{pid_of(state)}")
    assert secret.encode() not in (process / "cmdline").read_bytes()
    assert secret.encode() not in (process / "environ").read_bytes()
    assert secret not in (state / "server.log").read_text()
    assert secret not in str(LocalStore("http://127.0.0.1:1", state / "credentials").environment())


def test_as_the_store_of_a_cluster_its_gateway_alone_listens_elsewhere_and_takes_the_given_keys(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_text("[default]\naws_access_key_id = GIVEN\naws_secret_access_key = not-a-secret\n")
    [port] = free_ports(1)
    gateway = Gateway(listen="127.0.0.2", port=port, credentials=given)
    with local_store.running(tmp_path / "state", "codeparrot", gateway=gateway) as store:
        assert store.endpoint == f"http://127.0.0.2:{port}"
        elsewhere = listeners([pid_of(tmp_path / "state")]) - LOOPBACK
        assert elsewhere == {socket.inet_aton("127.0.0.2")[::-1].hex().upper()}
        assert store.client().list_buckets()["Buckets"][0]["Name"] == "codeparrot"
        given.write_text("[default]\naws_access_key_id = OTHER\naws_secret_access_key = not-a-secret\n")
        with pytest.raises(ClientError):
            LocalStore(store.endpoint, given).client().list_buckets()


def test_a_file_without_keys_is_refused(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_text("[default]\naws_access_key_id = GIVEN\n")
    gateway = Gateway(credentials=given)
    with (
        pytest.raises(StorageError, match="has no line `aws_secret_access_key"),
        local_store.running(tmp_path / "state", "codeparrot", gateway=gateway),
    ):
        pass


def test_a_running_server_is_used_and_left_running(state: Path) -> None:
    pid = pid_of(state)
    with local_store.running(state, "another") as store:
        assert pid_of(state) == pid
        assert store.endpoint in (state / "server.json").read_text()
    os.kill(pid, 0)


def test_it_ends_with_the_block_and_leaves_no_socket(tmp_path: Path) -> None:
    with local_store.running(tmp_path, "codeparrot"):
        pid = pid_of(tmp_path)
        ports = json.loads((tmp_path / "server.json").read_bytes())["ports"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not [path for port in ports for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")]


def test_a_port_taken_in_the_meantime_is_replaced(tmp_path: Path) -> None:
    with local_store.running(tmp_path, "codeparrot") as first:
        port = int(first.endpoint.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)), local_store.running(tmp_path, "codeparrot") as second:
        assert second.endpoint != first.endpoint


def test_the_entry_of_a_dead_server_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "server.json").write_text(
        json.dumps({"pid": os.getpid(), "endpoint": "http://127.0.0.1:1", "ports": []})
    )
    with local_store.running(tmp_path, "codeparrot"):
        assert pid_of(tmp_path) != os.getpid()
    assert not local_store.stop(tmp_path)


def test_stop_ends_a_server_that_was_left_running(tmp_path: Path) -> None:
    with local_store.running(tmp_path, "codeparrot"):
        pid = pid_of(tmp_path)
        assert local_store.stop(tmp_path)
        assert not Path(f"/proc/{pid}/cmdline").read_bytes()
        assert not local_store.stop(tmp_path)


def test_without_the_server_program_a_directory_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(weed, "available", lambda: None)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with local._store(tmp_path, "s3://codeparrot/tiny") as (environment, overrides):
        assert environment == {}
        assert overrides == ["--set", f"storage.uri={tmp_path}/storage/codeparrot/tiny"]
    assert "does not exist for this platform" in capsys.readouterr().out


def test_a_store_that_the_user_names_is_used_instead(s3: LocalStore, tmp_path: Path) -> None:
    with local._store(tmp_path, "s3://codeparrot/tiny") as (environment, overrides):
        assert (environment, overrides) == ({}, [])
    assert not (tmp_path / "store").exists()
