"""Logs over restarts of the submitter, and the way to the dashboard."""

import base64
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from k8s import dashboard, logs
from k8s.api import POD, RAY_CLUSTER, SECRET
from k8s.connection import Silence
from k8s.errors import Invalid, Misuse, NotFound, RunError, Unavailable, WaitTimeout
from k8s.waiting import SystemClock
from tests.unit.k8s_doubles import FakeClock, FakeCluster, FakeServer, pod, rayjob


def stamped(*numbers: int) -> list[str | Exception]:
    return [f"2026-11-23T12:00:{number:02d}.000000000Z line {number}" for number in numbers]


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster(FakeServer(rayjob()))


def follow(cluster: FakeCluster, clock: FakeClock) -> tuple[list[str], list[str]]:
    said, noted = list[str](), list[str]()
    logs.follow(cluster, "tiny-1", said.append, noted.append, clock)
    return said, noted


def put(cluster: FakeCluster, name: str, phase: str, created: str = "2026-11-23T12:00:00Z") -> None:
    kind, manifest = pod(name, "submitter", phase)
    manifest["metadata"]["creationTimestamp"] = created
    cluster.server.put(kind, manifest)


def test_the_log_is_that_of_the_newest_submitter(cluster: FakeCluster) -> None:
    put(cluster, "s-1", "Failed")
    put(cluster, "s-2", "Running", "2026-11-23T12:01:00Z")
    cluster.logs = {"s-2": [stamped(1, 2)]}
    said = list[str]()
    logs.show(cluster, "tiny-1", said.append, said.append)
    assert said == ["line 1", "line 2"]
    assert cluster.queries == [{"timestamps": "true", "container": "ray"}]


def test_without_a_submitter_the_heads_output_is_shown_and_said_to_be(cluster: FakeCluster) -> None:
    cluster.server.put(*pod("h", "head"))
    cluster.logs = {"h": [stamped(1)]}
    said, noted = list[str](), list[str]()
    logs.show(cluster, "tiny-1", said.append, noted.append)
    assert said == ["line 1"]
    assert "no submitter; the output of the head h" in noted[0]


def test_without_pods_there_is_no_log(cluster: FakeCluster) -> None:
    with pytest.raises(RunError, match="RayJob lab/tiny-1 has no pods and so no log: running"):
        logs.show(cluster, "tiny-1", print, print)
    put(cluster, "s-1", "Pending")
    cluster.logs = {"s-1": [[Invalid("container is waiting to start")]]}
    with pytest.raises(RunError, match="no log yet: container is waiting"):
        logs.show(cluster, "tiny-1", print, print)


def test_following_goes_from_one_submitter_to_the_next_and_ends_with_the_run(cluster: FakeCluster) -> None:
    clock = FakeClock()
    put(cluster, "s-1", "Failed")
    cluster.logs = {"s-1": [stamped(1, 2)], "s-2": [[Invalid("waiting to start")], stamped(1, 2, 3)]}

    def second() -> None:
        put(cluster, "s-2", "Succeeded", "2026-11-23T12:01:00Z")

    clock.at(4, second)
    clock.at(20, lambda: cluster.server.put(*rayjob(state="Complete", job="SUCCEEDED")))
    said, noted = follow(cluster, clock)
    assert said == ["line 1", "line 2", "line 1", "line 2", "line 3"]
    assert [text for text in noted if "submitter s-2 follows the run now" in text]


def test_a_broken_connection_goes_on_behind_the_last_line(cluster: FakeCluster) -> None:
    put(cluster, "s-1", "Running")
    clock = FakeClock()
    broken = [*stamped(1, 2), Unavailable("broken")]
    cluster.logs = {"s-1": [broken, [*stamped(2, 3), Silence("nothing")], stamped(3, 4)]}

    def end() -> None:
        put(cluster, "s-1", "Succeeded")
        cluster.server.put(*rayjob(state="Complete", job="SUCCEEDED"))

    clock.at(4, end)
    said, _ = follow(cluster, clock)
    assert said == ["line 1", "line 2", "line 3", "line 4"]
    assert [query.get("sinceTime") for query in cluster.queries] == [
        None,
        "2026-11-23T12:00:02Z",
        "2026-11-23T12:00:03Z",
    ]


def test_lines_of_the_same_moment_are_all_shown(cluster: FakeCluster) -> None:
    put(cluster, "s-1", "Succeeded")
    cluster.server.put(*rayjob(state="Complete", job="SUCCEEDED"))
    cluster.logs = {"s-1": [["2026-11-23T12:00:01.000000000Z a", "2026-11-23T12:00:01.000000000Z b"]]}
    assert follow(cluster, FakeClock())[0] == ["a", "b"]


def test_a_submitter_that_vanishes_or_never_starts_ends_nothing_too_early_or_too_late(cluster: FakeCluster) -> None:
    clock = FakeClock()
    put(cluster, "s-1", "Running")
    cluster.logs = {"s-1": [[*stamped(1), NotFound("gone")]]}
    clock.at(2, lambda: cluster.server.api.delete(POD, "s-1"))
    clock.at(9, lambda: cluster.server.put(*rayjob(state="Suspended", job="", spec={"suspend": True})))
    said, noted = follow(cluster, clock)
    assert said == ["line 1"]
    assert "waiting for its submitter" in noted[-1]
    put(cluster, "s-2", "Pending")
    cluster.logs = {"s-2": [[Invalid("waiting to start")]]}
    assert follow(cluster, FakeClock())[0] == []


def test_an_api_server_that_stays_away_ends_it(cluster: FakeCluster) -> None:
    def away(*_: Any) -> Any:
        raise Unavailable("away")

    cluster.server.__class__ = type("Away", (FakeServer,), {"__call__": away})
    with pytest.raises(Unavailable):
        follow(cluster, FakeClock())


CLUSTER = {
    "metadata": {"name": "tiny-1-abcde"},
    "spec": {"authOptions": {"mode": "token", "secretName": "f-ray-token"}},
}


def test_the_dashboard_of_a_run_is_that_of_its_cluster() -> None:
    server = FakeServer(rayjob(), rayjob("idle", rayClusterName=""))
    assert dashboard.cluster_name(server.api, None, "tiny-1") == "tiny-1-abcde"
    with pytest.raises(RunError, match="RayJob lab/idle has no cluster: running"):
        dashboard.cluster_name(server.api, None, "idle")


def test_only_a_ready_head_is_forwarded_to() -> None:
    server = FakeServer((RAY_CLUSTER, CLUSTER))
    with pytest.raises(WaitTimeout, match="head of RayCluster lab/tiny-1-abcde is not ready"):
        dashboard.wait_for_head(server.api, "tiny-1-abcde", FakeClock())
    clock = FakeClock()
    clock.at(6, lambda: server.put(*pod("h", "head")))
    assert dashboard.wait_for_head(server.api, "tiny-1-abcde", clock)["metadata"]["name"] == "h"
    with pytest.raises(NotFound, match="no RayCluster lab/other"):
        dashboard.wait_for_head(server.api, "other", FakeClock())


def test_the_token_is_told_how_to_get_and_not_told() -> None:
    data = {"auth_token": base64.b64encode(b"s3cret\n").decode()}
    server = FakeServer((RAY_CLUSTER, CLUSTER), (SECRET, {"metadata": {"name": "f-ray-token"}, "data": data}))
    secret = dashboard.token_secret(server.api, "tiny-1-abcde")
    text = "\n".join(dashboard.hints("kind-x", "lab", 8265, secret))
    assert "http://127.0.0.1:8265" in text
    assert (
        "kubectl --context kind-x --namespace lab get secret f-ray-token --output jsonpath='{.data.auth_token}'" in text
    )
    assert not [each for each in server.requests if "secrets" in each[1]]
    assert dashboard.token(server.api, secret) == "s3cret"
    server.put(SECRET, {"metadata": {"name": "empty"}})
    with pytest.raises(NotFound, match="Secret lab/empty: expected key auth_token, seen none"):
        dashboard.token(server.api, "empty")


def test_a_cluster_without_a_token_is_not_forwarded_silently() -> None:
    server = FakeServer((RAY_CLUSTER, {"metadata": {"name": "open"}, "spec": {}}))
    with pytest.raises(RunError, match="asks for no token"):
        dashboard.token_secret(server.api, "open")


def test_a_port_that_is_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(Misuse, match=f"--port {port}: in use.*--port 0"):
            dashboard.free_port(port)
    assert dashboard.free_port(0) > 1024


def test_the_forwarding_listens_on_loopback_only() -> None:
    command = dashboard.command("c", "lab", "h", 9000)
    assert command == [
        *("kubectl", "--context", "c", "--namespace", "lab"),
        *("port-forward", "--address", "127.0.0.1", "pod/h", "9000:8265"),
    ]
    assert "--context" not in dashboard.command(None, "lab", "h", 9000)


KUBECTL = """#!{python}
import socket, sys
port = int(sys.argv[-1].partition(":")[0])
with socket.create_server(("127.0.0.1", port)) as listener:
    print("Handling connection", file=sys.stderr)
    listener.accept()
"""


def test_the_forwarding_is_started_again_when_the_head_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(KUBECTL.format(python=sys.executable))
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    server, said = FakeServer((RAY_CLUSTER, CLUSTER), pod("h-1", "head")), list[str]()

    def say(text: str) -> None:
        said.append(text)
        if "ended" in text and server.api.find(POD, "h-1") is not None:
            server.api.delete(POD, "h-1")
            server.put(*pod("h-2", "head"))
        if "again, to" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dashboard.forward(
            server.api, None, "tiny-1-abcde", free_port, lambda: said.append("opened"), say, SystemClock()
        )
    assert said[0] == "opened"
    assert "trying again" in said[1]
    assert said[-1] == "forwarding again, to h-2"
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", free_port)) != 0


def test_a_kubectl_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text("#!/bin/sh\necho 'error: Forbidden' >&2\nexit 4\n")
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    server = FakeServer((RAY_CLUSTER, CLUSTER), pod("h-1", "head"))
    with pytest.raises(RunError, match="exit code 4: error: Forbidden"):
        dashboard.forward(server.api, None, "tiny-1-abcde", free_port, lambda: None, print, SystemClock())
