"""A clean Python that forks a child for every program it is sent, confines it, and says what became of it.

It runs one program at a time and knows nothing but its standard library; `sandbox` starts it and talks with it. What a
child may not do is settled before its program is compiled, and in this order, since each step takes away the means of
those before: a session of its own, no file but its own four, limits (setrlimit(2)), no capabilities, Landlock, seccomp.

How a program proves that it came to its end: after the child has confined itself, it gets a nonce that was made after
the fork, and sends it back when the program is through. While the program runs, the nonce lies on the interpreter's
stack alone, bound to no name: it is in no frame, no file, and nothing that the garbage collector knows. Leaving early,
by whatever door, never sends it. Code that searches its own process's memory (ctypes) can find it.
"""

import contextlib
import fcntl
import gc
import importlib
import json
import os
import random
import resource
import secrets
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, NoReturn

from codeparrot import landlock, libc, namespaces, seccomp

CHANNEL = 3
READY = b"\0"
NONCE_BYTES = 16
MAX_MESSAGE_BYTES = 300
TICK_SECONDS = 0.25
MAX_OPEN_FILES = 64
LEAST_FILE_BYTES = 4096
"""What a file takes, also an empty one."""
READY_SECONDS = 30.0
SPARE_CPU_SECONDS = 2
"""The kernel counts clock ticks for its own limit, which a busy machine makes inexact; it is the second to act."""
RANDOM_SEED = 0
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Libraries that would start threads, which are refused, are told not to."""
PRELOADED = (
    *("abc", "array", "bisect", "calendar", "cmath", "collections", "contextlib", "copy", "dataclasses", "datetime"),
    *("decimal", "enum", "fractions", "functools", "hashlib", "heapq", "io", "itertools", "json", "math", "numbers"),
    *("operator", "random", "re", "statistics", "string", "struct", "textwrap", "time", "typing", "unicodedata"),
)
"""Imported once, so that programs need not."""


@dataclass(frozen=True)
class Limits:
    """As in SandboxSettings, and where."""

    cpu_seconds: int
    memory_bytes: int
    file_bytes: int
    folder_bytes: int
    asleep_seconds: float
    wall_seconds: float
    folder: str
    readable: list[str]
    listable: list[str]
    packages: list[str]
    """Names that can be imported from the folders of packages."""
    namespaces: bool


def main(number: int, root: str) -> None:
    """Serve at an open socket. `root`: where this package was imported from, which programs cannot import it from."""
    connection = socket.socket(fileno=fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, CHANNEL + 1))
    os.close(number)
    os.dup2(0, CHANNEL)  # so that nothing else gets that number
    limits = Limits(**receive(connection))
    for name in PRELOADED:
        importlib.import_module(name)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # whatever is printed can be
    folders = [path for path in sys.path if Path(path).name.endswith("-packages")]
    sys.path[:] = [path for path in sys.path if path not in (root, *folders)]
    sys.meta_path.append(_Packages(folders, limits.packages))
    for name in [name for name in sys.modules if name.partition(".")[0] == "codeparrot"]:
        del sys.modules[name]
    os.chdir(limits.folder)
    apart = limits.namespaces and namespaces.available(limits.folder)
    if apart:
        namespaces.enter(limits.folder, limits.folder_bytes)
        _become_the_first_process()
        os.chdir(limits.folder)
    try:
        walls = _Walls(limits)
    except OSError as error:
        send(connection, {"error": str(error)})
        return
    send(connection, {"namespaces": apart, "landlock": landlock.version(), "user": os.getuid()})
    gc.collect()
    gc.freeze()  # so that the collector of a child leaves shared pages alone
    while (program := receive(connection)) is not None:
        send(connection, _run(program, walls, limits, connection))
        _empty(limits.folder)


class _Packages:
    """Finds the packages that programs may import; others are not there, rather than not readable."""

    def __init__(self, folders: list[str], names: list[str]) -> None:
        self._folders, self._names = folders, frozenset(names)

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:  # noqa: ARG002
        """As importlib asks for it."""
        return PathFinder.find_spec(name, self._folders) if name in self._names else None


def _become_the_first_process() -> None:
    """Of the new namespace; when it dies, the kernel ends all others in there. The process before waits for it."""
    pid = os.fork()
    if pid:
        os.closerange(CHANNEL, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)


class _Walls:
    """What keeps a program in; made once, put up in every child. Raises OSError where that is impossible."""

    def __init__(self, limits: Limits) -> None:
        self._filter = seccomp.Filter()
        self._files = landlock.Ruleset(limits.readable, limits.listable, limits.folder) if landlock.version() else None
        self._limits = {
            resource.RLIMIT_CPU: limits.cpu_seconds + SPARE_CPU_SECONDS,
            resource.RLIMIT_AS: limits.memory_bytes,
            resource.RLIMIT_FSIZE: limits.file_bytes,
            resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
            **dict.fromkeys((resource.RLIMIT_NPROC, resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK), 0),
        }

    def put_up(self) -> None:
        libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
        if self._files:
            self._files.enforce()
        os.closerange(CHANNEL + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        for kind, wanted in self._limits.items():
            hard = resource.getrlimit(kind)[1]
            limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(kind, (limit, limit))  # no soft limit: its signal could be caught
        libc.drop_capabilities()
        self._filter.install()


def _run(program: str, walls: _Walls, limits: Limits, connection: socket.socket) -> dict[str, Any]:
    """Fork, wait, and judge."""
    ours, theirs = socket.socketpair()
    printed = os.memfd_create("printed")
    pid = os.fork()
    if pid == 0:
        _child(program, walls, theirs, printed)
    theirs.close()
    process = os.pidfd_open(pid)
    try:
        ours.settimeout(READY_SECONDS)
        ready = _receive(ours, 1)
        if ready != READY:
            signal.pidfd_send_signal(process, signal.SIGKILL)
            os.waitpid(pid, 0)
            return {"error": f"a program could not be confined: {(ready + _rest(ours)).decode('utf-8', 'replace')}"}
        nonce = secrets.token_bytes(NONCE_BYTES)
        ours.sendall(nonce)
        ended = _wait(pid, process, limits, connection)
        _, status, usage = os.wait4(pid, 0)
        message = _rest(ours)
        used = usage.ru_utime + usage.ru_stime
        if os.fstat(printed).st_size >= limits.file_bytes:
            ended = f"output: more than {limits.file_bytes:,} bytes"
        reason = ended or _judge(message, nonce, os.waitstatus_to_exitcode(status), used, limits)
        return {"passed": reason == "passed", "reason": reason, "cpu_seconds": used}
    finally:
        for number in (process, printed):
            os.close(number)
        ours.close()


def _why(limits: Limits, *, asleep: bool, computing: bool) -> str:
    if computing:
        return f"CPU time: more than {limits.cpu_seconds} s"
    if asleep:
        return f"asleep: no CPU time used in {limits.asleep_seconds:g} s"
    return f"wall time: more than {limits.wall_seconds:g} s"


def _receive(ours: socket.socket, num_bytes: int) -> bytes:
    try:
        return ours.recv(num_bytes)
    except OSError:
        return b""


def _wait(pid: int, process: int, limits: Limits, connection: socket.socket) -> str:
    """Until the program has ended by itself (an empty text), or had to be ended.

    A program whose CPU clock stands still over many looks in a row is asleep. One that waits for a core is not: the
    scheduler lets everybody run within that time.
    """
    watched = select.poll()
    watched.register(process, select.POLLIN)
    watched.register(connection, select.POLLRDHUP)
    began, last, still = time.monotonic(), -1.0, 0
    while not (events := watched.poll(TICK_SECONDS * 1000)):
        used = time.clock_gettime((~pid << 3) | 2)  # the CPU clock of a process: clock_getcpuclockid(3)
        still, last = (still + 1 if used == last else 0), used
        asleep, waited = still * TICK_SECONDS >= limits.asleep_seconds, time.monotonic() - began
        full = _is_full(limits.folder, limits.folder_bytes)
        if full or used > limits.cpu_seconds or asleep or waited >= limits.wall_seconds:
            signal.pidfd_send_signal(process, signal.SIGKILL)
            if full:
                return f"files: more than {limits.folder_bytes:,} bytes"
            return _why(limits, asleep=asleep, computing=used > limits.cpu_seconds)
    if any(number != process for number, _ in events):
        os._exit(0)  # nobody waits for the answer any more; the program goes with its parent
    return ""


def _is_full(folder: str, limit: int) -> bool:
    """Whether the files of a program, which cannot make folders, take more. In a namespace the kernel sees to it."""
    size = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                size += max(entry.stat(follow_symlinks=False).st_size, LEAST_FILE_BYTES)
            if size > limit:
                return True
    return False


def _rest(ours: socket.socket) -> bytes:
    ours.setblocking(False)
    return _receive(ours, MAX_MESSAGE_BYTES)


def _judge(message: bytes, nonce: bytes, code: int, used: float, limits: Limits) -> str:
    if used > limits.cpu_seconds:
        return _why(limits, asleep=False, computing=True)
    if code < 0:
        return f"killed: {_signal_name(-code)}"
    if message == nonce:
        return "passed"
    if message:
        return "failed: " + message.decode("utf-8", "replace")
    return f"exited: with code {code}, before its tests were through"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the real-time signals, most of which have no name
        return f"signal {number}"


def _child(program: str, walls: _Walls, channel: socket.socket, printed: int) -> NoReturn:
    """Confine this process, then run the program in it. Never returns."""
    try:
        os.dup2(channel.fileno(), CHANNEL)
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        os.environ.clear()
        os.environ.update(ENVIRONMENT)
        random.seed(RANDOM_SEED)  # forking has seeded it anew
        walls.put_up()
    except BaseException as error:  # noqa: BLE001 - whatever it is, the program must not run
        os.write(CHANNEL, _describe(error))
        os._exit(1)
    _execute(program)


def _execute(program: str) -> NoReturn:
    # What is needed after the program is looked up before it: it may replace any function of any module.
    read, write, run, leave, describe = os.read, os.write, exec, os._exit, _describe
    write(CHANNEL, READY)
    try:
        write(CHANNEL, (read(CHANNEL, NONCE_BYTES), run(compile(program, "program", "exec"), {}))[0])
    except BaseException as error:  # noqa: BLE001 - SystemExit too is no way to pass
        write(CHANNEL, describe(error))
    finally:
        leave(0)


def _describe(error: BaseException) -> bytes:
    return f"{type(error).__name__}: {error}".removesuffix(": ").encode("utf-8", "replace")[:MAX_MESSAGE_BYTES]


def _empty(folder: str) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            os.unlink(entry)  # noqa: PTH108 - the fast way


def send(connection: socket.socket, value: Any) -> None:
    """A JSON value, after its length."""
    data = json.dumps(value).encode()
    connection.sendall(struct.pack("!I", len(data)) + data)


def receive(connection: socket.socket) -> Any:
    """A JSON value, or None at the end."""
    head = _exactly(connection, 4)
    return json.loads(_exactly(connection, struct.unpack("!I", head)[0])) if head else None


def _exactly(connection: socket.socket, num_bytes: int) -> bytes:
    data = b""
    while len(data) < num_bytes:
        part = connection.recv(num_bytes - len(data))
        if not part:
            return b""
        data += part
    return data
