"""Workers as forks: the process that Ray has started, but for its id, and never none or two of them."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ray_jobs import worker_fork
from ray_jobs.worker_environment import forked
from tests.integration.conftest import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are no forks")

WORKER = """
import json, os, sys
print(json.dumps({
    "pid": os.getpid(), "parent": os.getppid(), "group": os.getpgid(0), "folder": os.getcwd(), "arguments": sys.argv,
    "module": __name__, "path": sys.path[0], "word": os.environ.get("WORD"),
    "threads": os.environ.get("OMP_NUM_THREADS"), "imported": "sndhdr" in sys.modules,
    "open": sorted(os.listdir("/proc/self/fd")),
}))
print("to standard error", file=sys.stderr)
"""


class Session:
    """What a raylet leaves on the disk, and a process in its place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("sockets", "logs"):
            (folder / name).mkdir(parents=True)
        self.worker = folder / "worker.py"
        self.worker.write_text(WORKER)
        self.raylet = subprocess.Popen(["sleep", "600"])

    @property
    def environment(self) -> dict[str, str]:
        """Of every worker."""
        return {"RAY_RAYLET_PID": str(self.raylet.pid), "PATH": os.environ["PATH"]}

    @property
    def command(self) -> list[str]:
        """As Ray would write it."""
        return [str(self.worker), f"--raylet-name={self.folder}/sockets/raylet", "a b"]

    def start(self, modules: str = "sndhdr", **environment: str) -> "subprocess.CompletedProcess[str]":
        """Start a worker, and wait for its end."""
        return subprocess.run(
            [*("bash", "-c", f'exec {forked(*modules.split(","))["py_executable"]} "$@"', "bash"), *self.command],
            env={**self.environment, **environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )

    def told(self, modules: str = "sndhdr", **environment: str) -> dict[str, Any]:
        """What a worker tells of itself."""
        told: dict[str, Any] = json.loads(self.start(modules, **environment).stdout)
        return told

    def servers(self) -> set[int]:
        """The fork servers that live."""
        done = subprocess.run(["pgrep", "--full", f"serve {self.folder}/"], stdout=subprocess.PIPE, check=False)
        return set(map(int, done.stdout.split()))


@pytest.fixture
def session() -> Iterator[Session]:
    folder = Path(f"/tmp/codeparrot-fork-{os.getpid()}-{os.urandom(4).hex()}")  # a socket's path has 107 bytes at most
    session = Session(folder)
    yield session
    session.raylet.kill()
    session.raylet.wait()
    wait_until(lambda: not session.servers(), "the server to end with its raylet", seconds=10)
    shutil.rmtree(folder)


def test_a_worker_is_a_fork_that_differs_in_nothing_but_its_id(session: Session) -> None:
    told = session.told(WORD="two words")
    [server] = session.servers()
    assert told["parent"] == server
    assert told["imported"]
    assert told["group"] not in {told["pid"], os.getpgid(server)}
    plain = json.loads(
        subprocess.run(
            [sys.executable, *session.command],
            env={**session.environment, "WORD": "two words"},
            cwd=session.folder,
            capture_output=True,
            check=True,
        ).stdout
    )
    for key in ("folder", "arguments", "module", "path", "word", "threads", "open"):
        assert told[key] == plain[key], key
    assert not plain["imported"]
    assert session.start(WORD="two words").stderr == "to standard error\n"
    assert session.servers() == {server}


def test_each_environment_has_its_own_server(session: Session) -> None:
    parents = [session.told(WORD=word)["parent"] for word in ("one", "two", "one")]
    assert parents[0] == parents[2] != parents[1]
    assert session.servers() == set(parents)


def test_a_server_that_was_killed_is_started_again(session: Session) -> None:
    first = session.told()["parent"]
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not session.servers(), "the end of the server")
    second = session.told()["parent"]
    assert session.servers() == {second} != {first}


def test_a_module_that_cannot_be_imported_is_left_to_the_worker(session: Session) -> None:
    assert session.told("no_such_module,sndhdr")["imported"]
    assert "No module named 'no_such_module'" in (session.folder / "logs" / "worker_fork.log").read_text()


@pytest.mark.parametrize("missing", ["logs", "RAY_RAYLET_PID", "message", "file"])
def test_without_a_server_a_worker_starts_as_usual(
    session: Session, missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changes: Mapping[str, str] = {}
    if missing == "logs":
        (session.folder / "logs").rmdir()
    elif missing == "RAY_RAYLET_PID":
        changes = {"RAY_RAYLET_PID": "none"}
    elif missing == "message":
        changes = {f"WORD_{number}": "x" * 100_000 for number in range(3)}  # more than a socket takes at once
    else:
        (tmp_path / "python").symlink_to(sys.executable)
        changes = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        monkeypatch.setattr(worker_fork, "FILE", str(tmp_path / "not here"))
    told = session.told(**changes)
    assert told["parent"] == os.getpid()
    assert not told["imported"]


DRAWS = """
import json, os, ray
print(json.dumps({"parent": os.getppid(), "id": ray.UniqueID.from_random().hex()}))
"""


def test_forks_draw_ids_of_their_own_or_are_not_made(session: Session) -> None:
    """Tasks of equal ids would end a worker that gets both."""
    session.worker.write_text(DRAWS)
    told = [session.told("ray.data") for _ in range(2)]
    assert session.servers() == {each["parent"] for each in told}
    (session.folder / "careless.py").write_text("import ray; ray.UniqueID.from_random()")
    told += [session.told("careless", PYTHONPATH=str(session.folder)) for _ in range(2)]
    assert {each["parent"] for each in told[2:]} == {os.getpid()}
    assert len({each["id"] for each in told}) == 4
    assert "the same ids" in (session.folder / "logs" / "worker_fork.log").read_text()


def test_a_worker_that_nobody_waits_for_is_not_run(session: Session) -> None:
    """Ray would have two of one id: who asked has given up, and started it as usual."""
    session.told()
    mark = session.folder / "ran"
    session.worker.write_text(f"open({str(mark)!r}, 'w')")
    [path] = [path for path in session.folder.iterdir() if path.is_socket()]
    request = {
        "modules": [],
        "command": session.command,
        "environment": session.environment,
        "folder": "/",
        "group": os.getpgid(0),
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(str(path))
        socket.send_fds(client, [json.dumps(request).encode()], worker_fork.STREAMS)
        assert client.recv(len(worker_fork.READY)) == worker_fork.READY
    session.worker.write_text(WORKER)
    session.told()  # the server forks one after the other
    assert not mark.exists()
