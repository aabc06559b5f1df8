"""A real S3 server, a real Ray, and small runs of the real commands."""

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from codeparrot import local_store
from codeparrot.local_store import LocalStore
from codeparrot.ports import free_ports
from codeparrot.s3 import S3Storage

ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 600.0
DISTRIBUTIONS = [
    "click",
    "filelock",
    "idna",
    "jinja2",
    "packaging",
    "requests",
    "rich",
    "safetensors",
    "tqdm",
    "urllib3",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups of tests that run one after the other come first: of what runs side by side, the longest first."""
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


def micro_recipe() -> dict[str, Any]:
    """The whole flow in its smallest form: seconds of work, the same code."""
    return {
        "run_name": "micro",
        "seed": 7,
        "storage": {"uri": "s3://codeparrot/micro"},
        "collect": {
            "sources": [{"kind": "packages", "distributions": DISTRIBUTIONS}],
            "max_bytes": 1_000_000,
            "shard_bytes": 200_000,
        },
        "curate": {
            "licenses": {"allow": ["MIT", "BSD-3-Clause", "BSD-2-Clause", "Apache-2.0", "MPL-2.0"]},
            "validation_fraction": 0.2,
        },
        "tokenizer": {"vocab_size": 512},
        "pack": {"max_seq_len": 64, "shard_bytes": 100_000},
        "model": {"n_layer": 1, "n_head": 2, "n_embd": 32},
        "train": {
            "num_workers": 4,
            "resources_per_worker": {"CPU": 0.5},
            "max_steps": 72,  # seconds: what the log tells is up to one old, and still true when a test reads it
            "global_batch_size": 8,
            "micro_batch_size": 2,
            "learning_rate": 1e-3,
            "warmup_steps": 2,
            "log_every_steps": 1,
            "eval_every_steps": 24,
            "eval_rows": 8,
            "checkpoint": {"every_steps": 6},
        },
        "evaluate": {
            "batch_size": 32,
            "max_rows": 64,
            "num_workers": 1,
            "tasks": {"num_lines": 4, "num_bodies": 4, "max_new_tokens": 8},
        },
        "generate": {"prompts": ["fit random forest classifier", "def ", "import "], "max_new_tokens": 8},
    }


@dataclass
class Process:
    """A command of ours, its output read line by line as it comes."""

    command: list[str]
    environment: Mapping[str, str]
    lines: list[str] = field(default_factory=list)
    popen: "subprocess.Popen[str]" = field(init=False)

    def __post_init__(self) -> None:
        self.popen = subprocess.Popen(
            self.command,
            cwd=ROOT,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @classmethod
    def of_python(cls, arguments: list[str], environment: Mapping[str, str]) -> "Process":
        """A command of this Python."""
        return cls([sys.executable, *arguments], environment)

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def output(self) -> str:
        """Everything printed so far."""
        return "\n".join(self.lines)

    def wait_for(self, *words: str, after: int = 0) -> int:
        """Wait until one line, not counting the first `after`, holds all these words; returns the lines up to it."""

        def found() -> int | None:
            lines = list(self.lines)
            return next((i + 1 for i in range(after, len(lines)) if all(word in lines[i] for word in words)), None)

        wait_until(lambda: found() is not None or self.popen.poll() is not None, f"{words} in the output")
        place = found()
        assert place is not None, self.output
        return place

    def wait(self) -> int:
        """The exit code."""
        code = self.popen.wait(DEADLINE_SECONDS)
        self._reader.join(DEADLINE_SECONDS)
        return code


def wait_until(
    condition: Callable[[], bool], what: str, seconds: float = DEADLINE_SECONDS, poll_seconds: float = 0.02
) -> float:
    """Wait for a condition, with a deadline; the seconds it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(poll_seconds)
    return time.monotonic() - began


def processes_with(marker: str) -> dict[int, str]:
    """Processes whose environment holds the marker, with their command lines."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (folder / "environ").read_bytes():
                arguments = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if arguments:
                    found[int(folder.name)] = arguments
        except OSError:
            continue
    found.pop(os.getpid(), None)
    return found


BEFORE_TRAINING = ("collect", "curate", "train_tokenizer", "pack")
AT_ONCE = """
from importlib import import_module
from ray_jobs.stage import command, run_stage
stages = [import_module("ray_jobs." + name).STAGE for name in {names}]
command("stages", lambda recipe, storage: [run_stage(stage, recipe, storage) for stage in stages])
"""
LISTENING = "0A"  # the state in /proc/net/tcp, include/net/tcp_states.h
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1, ::ffff:127.0.0.1 and ::1, as /proc spells them."""


def listeners(pids: Iterable[int]) -> set[str]:
    """The addresses on which these processes listen."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = str(link.readlink()) if link.is_symlink() else ""
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and fields[9] in inodes:
                found.add(fields[1].split(":")[0])
    assert found, "these processes listen nowhere"
    return found


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder of that name, filled by the first of the parallel test processes that needs it; the others wait."""
    parallel = "PYTEST_XDIST_WORKER" in os.environ
    folder = (tmp_path_factory.getbasetemp().parent if parallel else tmp_path_factory.getbasetemp()) / name
    with (folder.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / "made"
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@dataclass
class Machine:
    """A state folder and a recipe: what `make run` knows of a laptop."""

    folder: Path
    values: dict[str, Any]

    @property
    def state(self) -> Path:
        """The state folder."""
        return self.folder / "state"

    @property
    def marker(self) -> str:
        """What stands in the environment of every process of its runs."""
        return f"CODEPARROT_STATE={self.state}"

    def write_recipe(self) -> Path:
        """The file with its recipe."""
        recipe = self.folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(self.values))
        return recipe

    def start(self, stage: str = "pipeline", *arguments: str, **environment: str) -> Process:
        """`python -m ray_jobs.local STAGE` in the background."""
        command = [sys.executable, "-m", "ray_jobs.local", stage, "--config", str(self.write_recipe()), *arguments]
        return Process(command, {"CODEPARROT_STATE": str(self.state), **environment})

    def run(self, stage: str = "pipeline", *arguments: str, **environment: str) -> Process:
        """The same, to its end, which must be a success."""
        process = self.start(stage, *arguments, **environment)
        assert process.wait() == 0, process.output
        return process

    def run_at_once(self, *names: str) -> None:
        """These stages in one process, with one Ray."""
        with local_store.running(self.state / "store", "codeparrot") as store:
            command = [sys.executable, "-c", AT_ONCE.format(names=names), "--config", str(self.write_recipe())]
            process = Process(command, {"CODEPARROT_STATE": str(self.state), **store.environment()})
            assert process.wait() == 0, process.output

    def workers(self) -> list[int]:
        """The Ray Train workers of its runs, in no order."""
        return [pid for pid, line in self.left_behind().items() if "RayTrainWorker" in line]

    @contextlib.contextmanager
    def storage(self) -> Iterator[S3Storage]:
        """What its runs have stored."""
        with local_store.running(self.state / "store", "codeparrot") as store:
            yield S3Storage("s3://codeparrot/micro", "codeparrot", "micro", store.client())

    def left_behind(self) -> dict[int, str]:
        """Processes of its runs that are still there."""
        return processes_with(self.marker)


RAY = str(Path(sys.executable).parent / "ray")


@dataclass
class Cluster:
    """A Ray cluster of real nodes on loopback: a head, and others that join it."""

    gcs: str
    dashboard: str
    token: Path
    head: Process = field(init=False)

    def environment(self) -> dict[str, str]:
        """By which a client gets in."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}

    def start(self, *arguments: str, num_cpus: int) -> Process:
        """A node, as KubeRay starts one: SIGTERM drains it."""
        (agent,) = free_ports(1)
        command = [RAY, "start", "--block", "--node-ip-address=127.0.0.1", f"--num-cpus={num_cpus}", *arguments]
        command += [f"--dashboard-agent-listen-port={agent}", "--object-store-memory=100000000"]
        node = Process(command, {"RAY_USAGE_STATS_ENABLED": "0", **self.environment()})
        wait_until(lambda: "Ray runtime started" in node.output or node.popen.poll() is not None, "a Ray node")
        if "timed out during startup" in node.output:  # Ray gives it 30 s, which busy cores may need
            return self.start(*arguments, num_cpus=num_cpus)
        node.wait_for("Ray runtime started")
        return node

    def join(self, num_cpus: int) -> Process:
        """Another node."""
        return self.start(f"--address={self.gcs}", num_cpus=num_cpus)


@contextlib.contextmanager
def ray_cluster(num_cpus: int) -> Iterator[Cluster]:
    """A cluster whose head has this many CPUs."""
    gcs, dashboard = free_ports(2)
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        token = Path(folder) / "auth_token"
        token.write_text(secrets.token_hex(32))
        cluster = Cluster(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", token)
        ports = (f"--port={gcs}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1")
        cluster.head = cluster.start("--head", *ports, f"--temp-dir={folder}", num_cpus=num_cpus)
        try:
            yield cluster
        finally:
            cluster.head.popen.terminate()
            cluster.head.wait()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A fresh machine."""
    machine = Machine(tmp_path, micro_recipe())
    yield machine
    for pid in machine.left_behind():
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine on which the whole pipeline has run once, without disturbance."""

    def make(folder: Path) -> None:
        Machine(folder, micro_recipe()).run()

    return Machine(made_once(tmp_path_factory, "undisturbed", make), micro_recipe())


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStore]:
    """An S3 server for tests that bring their own client."""
    with local_store.running(tmp_path_factory.mktemp("store"), "codeparrot") as running:
        yield running


@pytest.fixture
def s3(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    """The same, as the store that this process's environment names."""
    for name, value in store.environment().items():
        monkeypatch.setenv(name, value)
    return store
