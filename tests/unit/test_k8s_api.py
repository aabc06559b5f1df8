"""The client's view of an API server: objects, refusals, the transport."""

import base64
import hashlib
import http.server
import json
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s import errors
from k8s.api import CONFIG_MAP, NODE, POD, RAY_JOB, Response, refusal
from k8s.connection import connect
from tests.unit.k8s_doubles import NAMESPACE, FakeServer, answer, rayjob, refused


def test_objects_are_found_by_kind_namespace_and_name() -> None:
    server = FakeServer(rayjob())
    assert server.api.get(RAY_JOB, "tiny-1")["metadata"]["name"] == "tiny-1"
    assert server.requests[-1][:2] == ("GET", f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayjobs/tiny-1")
    assert server.api.find(RAY_JOB, "other") is None
    server.api.select(NODE)
    assert server.requests[-1][1] == "/api/v1/nodes"
    server.api.select(POD, everywhere=True)
    assert server.requests[-1][1] == "/api/v1/pods"


def test_a_name_cannot_leave_its_path() -> None:
    server = FakeServer()
    assert server.api.find(CONFIG_MAP, "../../secrets/x") is None
    assert server.requests[-1][1].endswith("/configmaps/..%2F..%2Fsecrets%2Fx")


def test_long_lists_are_read_to_their_end() -> None:
    server = FakeServer()
    server.next = [
        answer(200, {"items": [{"n": 1}], "metadata": {"continue": "more"}}),
        answer(200, {"items": [{"n": 2}], "metadata": {}}),
    ]
    assert server.api.select(POD) == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize(
    ("response", "error", "words"),
    [
        (answer(401, {}), errors.Unauthorized, ["RayJob lab/x", "log in again"]),
        (refused(403, "Forbidden", "may not"), errors.Forbidden, ["RayJob lab/x", "not allowed", "may not"]),
        (refused(404, "NotFound", "no x", "x"), errors.NotFound, ["RayJob lab/x", "no x"]),
        (Response(404, {}, b"404 page not found\n"), errors.MissingKind, ["ray.io/v1", "operator", "doctor"]),
        (refused(409, "AlreadyExists", "is there"), errors.AlreadyExists, ["RayJob lab/x", "another name"]),
        (refused(409, "Conflict", "changed"), errors.Conflict, ["changed"]),
        (refused(422, "Invalid", "spec.x: no"), errors.Invalid, ["spec.x: no"]),
        (refused(429, "TooMany", "slow"), errors.Unavailable, ["429"]),
        (Response(503, {}, b"<html>"), errors.Unavailable, ["503", "<html>"]),
        (Response(302, {}, b""), errors.ApiError, ["302"]),
    ],
)
def test_every_refusal_is_an_error_that_names_the_object(
    response: Response, error: type[Exception], words: list[str]
) -> None:
    found = refusal(response, "RayJob lab/x", "the API server at y", RAY_JOB)
    assert type(found) is error
    for word in words:
        assert word in str(found)


def test_a_missing_kind_of_others_does_not_blame_the_operator() -> None:
    found = refusal(Response(404, {}, b"404 page not found"), "pods", "the API server at y", POD)
    assert isinstance(found, errors.MissingKind)
    assert "operator" not in str(found)


def test_every_error_of_the_client_has_an_exit_code_of_the_contract() -> None:
    found = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.ClientError)]
    assert len(found) > 15
    assert {each.exit_code for each in found} == {1, 2, 3}
    for each in found:
        assert each.__name__ in (errors.__doc__ or "") or each is errors.ClientError


WEBSOCKET = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Handler(http.server.BaseHTTPRequestHandler):
    """An API server that shows what it was asked."""

    seen: list[tuple[str, str, dict[str, str], bytes]] = []

    def do(self) -> None:
        if "/exec" in self.path:
            self.execute()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        Handler.seen.append((self.command, self.path, dict(self.headers), body))
        code = 404 if "absent" in self.path else 200
        status = {"kind": "Status", "message": "no", "details": {"name": "absent"}}
        text = b"one\ntwo\nthr" if self.path.partition("?")[0].endswith("/log") else json.dumps(status).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def execute(self) -> None:
        """A command's output, errors and exit code as frames of a websocket (RFC 6455), as an API server sends them."""
        Handler.seen.append((self.command, self.path, dict(self.headers), b""))
        accept = base64.b64encode(hashlib.sha1(f"{self.headers['Sec-WebSocket-Key']}{WEBSOCKET}".encode()).digest())
        self.send_response_only(101)
        answers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": accept.decode()}
        for name, value in (answers | {"Sec-WebSocket-Protocol": "v4.channel.k8s.io"}).items():
            self.send_header(name, value)
        self.end_headers()
        failure = {"status": "Failure", "details": {"causes": [{"reason": "ExitCode", "message": "7"}]}}
        status = failure if "fail" in self.path else {"status": "Success"}
        for channel, text in ((1, "out\n"), (2, "err\n"), (1, "more\n"), (3, json.dumps(status))):
            data = bytes([channel]) + text.encode()
            self.wfile.write(bytes([0x82, len(data)]) + data)
        if "hang" in self.path:
            time.sleep(1.5)
        self.wfile.write(bytes([0x88, 0]))
        self.close_connection = True

    do_GET = do_POST = do_PATCH = do  # noqa: N815

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A kubeconfig for a server that runs on loopback for the length of a test."""
    Handler.seen = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        path = tmp_path / "config"
        write_kubeconfig(path, server.server_address[1])
        monkeypatch.setenv("KUBECONFIG", str(path))
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
        yield path
        server.shutdown()


def write_kubeconfig(path: Path, port: int) -> None:
    values = {
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {"token": "secret-token"}}],
        "contexts": [
            {"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "mine"}},
            {"name": "there", "context": {"cluster": "c", "user": "u"}},
        ],
    }
    path.write_text(yaml.safe_dump(values))


def test_a_kubeconfig_gives_server_token_and_namespace(kubeconfig: Path) -> None:
    connection = connect()
    assert connection.namespace == "mine"
    connection.api.select(RAY_JOB, "a=b,c in (d)")
    _, path, headers, _ = Handler.seen[-1]
    assert path.startswith("/apis/ray.io/v1/namespaces/mine/rayjobs?")
    assert "labelSelector=a%3Db%2Cc" in path
    assert headers["authorization"] == "Bearer secret-token"
    assert connect("there").namespace == "default"
    assert connect("there", "other").namespace == "other"


def test_bodies_travel_as_json_with_the_type_of_a_merge_patch(kubeconfig: Path) -> None:
    api = connect().api
    api.patch(RAY_JOB, "x", {"metadata": {"annotations": {"a": None}}})
    method, _, headers, body = Handler.seen[-1]
    assert (method, headers["Content-Type"]) == ("PATCH", "application/merge-patch+json")
    assert json.loads(body) == {"metadata": {"annotations": {"a": None}}}
    api.create(CONFIG_MAP, {"metadata": {"name": "x"}})
    assert Handler.seen[-1][0] == "POST"
    with pytest.raises(errors.NotFound, match="RayJob mine/absent"):
        api.get(RAY_JOB, "absent")


def test_a_log_is_read_line_by_line(kubeconfig: Path) -> None:
    assert list(connect().log("pod-1", {"follow": "true"})) == ["one", "two", "thr"]
    assert Handler.seen[-1][1] == "/api/v1/namespaces/mine/pods/pod-1/log?follow=true"
    with pytest.raises(errors.NotFound):
        list(connect().log("absent", {}))


def test_a_command_in_a_pod_gives_output_errors_and_exit_code(kubeconfig: Path) -> None:
    connection = connect()
    done = connection.execute("pod-1", "ray", ["python", "-c", "print('a b')"])
    assert (done.code, done.out, done.err) == (0, "out\nmore\n", "err\n")
    assert connection.execute("pod-1", "ray", ["fail"]).code == 7
    _, path, headers, _ = Handler.seen[0]
    assert path.startswith("/api/v1/namespaces/mine/pods/pod-1/exec?")
    assert "command=python&command=-c&command=print" in path
    assert "container=ray" in path
    assert {key.lower(): value for key, value in headers.items()}["authorization"] == "Bearer secret-token"


def test_a_command_that_hangs_is_given_up(kubeconfig: Path) -> None:
    with pytest.raises(errors.Unavailable, match=r"Pod mine/pod-1, container ray: `hang` did not end within 0 s"):
        connect().execute("pod-1", "ray", ["hang"], 0.4)


def test_a_command_that_cannot_be_run_says_where(kubeconfig: Path, free_port: int) -> None:
    write_kubeconfig(kubeconfig, free_port)
    with pytest.raises(errors.Unavailable, match=r"exec in Pod mine/pod-1, container ray: .*refused"):
        connect().execute("pod-1", "ray", ["x"])


def test_a_server_that_is_not_there_is_unavailable_at_once(kubeconfig: Path, free_port: int) -> None:
    write_kubeconfig(kubeconfig, free_port)
    with pytest.raises(errors.Unavailable, match=f"127.0.0.1:{free_port} does not answer") as caught:
        connect().api.get(RAY_JOB, "x")
    assert caught.value.__cause__ is not None


def test_a_context_that_is_not_there_is_named_with_those_that_are(kubeconfig: Path) -> None:
    with pytest.raises(errors.Misuse, match=r"--context else.*here, there"):
        connect("else")


def test_no_kubeconfig_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "none")
    monkeypatch.setenv("KUBECONFIG", path)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", path)
    with pytest.raises(errors.NoCluster, match=r"KUBECONFIG.*cluster up"):
        connect()


def test_an_untrusted_certificate_is_not_waited_out(kubeconfig: Path) -> None:
    connection = connect()
    assert isinstance(connection._unreachable(ssl.SSLError("CERTIFICATE_VERIFY_FAILED")), errors.Unauthorized)
    assert isinstance(connection._unreachable(OSError("refused")), errors.Unavailable)


def test_the_sidecar_imports_neither_the_library_nor_ray_nor_generated_classes() -> None:
    program = (
        "import sys, k8s.__main__, k8s.annotate, k8s.connection, kubernetes.client.api_client, kubernetes.config; "
        "print([name for name in sys.modules if name.split('.')[0] in ('ray', 'torch', 'codeparrot', 'ray_jobs') "
        "or name.startswith('kubernetes.client.models.') or name.startswith('kubernetes.client.api.core')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
