"""Forks Ray's workers from a process that has imported what they need, instead of importing it in each.

Ray starts a worker as `python default_worker.py ...`. With this file as the `py_executable` of its runtime environment
that becomes `python -S worker_fork.py MODULES default_worker.py ...`, which asks the fork server of its node to import
MODULES, once, and to run the worker in a fork. The first to ask starts the server; it ends with the raylet. If a fork
is not to be had, for whatever reason, the worker starts as it would without this file.

A fork differs from a process of its own in what its modules have read of the environment when they were imported, so
there is a server for each environment. It has the group, the folder, the environment and the streams of the process
that Ray has started, and not its process id, which Ray learns from the worker.

Every worker runs this file before anything else: what takes time to import is not imported.
"""

import contextlib
import fcntl
import json
import os
import socket
import struct
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

FILE = os.path.abspath(__file__)
WAIT_SECONDS = float(os.environ.get("RAY_worker_register_timeout_seconds", "60")) / 2
"""For a fork, imports included: half of what Ray waits for a worker (its default is 60 s)."""
MAX_REQUEST_BYTES = 1 << 21
"""An environment and a command, which the kernel keeps below; a socket takes a tenth of it by default."""
STREAMS = (0, 1, 2)
LOG_FLAGS = os.O_CREAT | os.O_WRONLY | os.O_APPEND
READY, GO = b"ready", b"go"


def ask(modules: str, command: Sequence[str]) -> bool:
    """Whether a fork runs this command."""
    raylet = next((argument[14:] for argument in command if argument.startswith("--raylet-name=")), "")
    session = os.path.dirname(os.path.dirname(raylet))
    request = {
        "modules": modules.split(","),
        "command": command,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "group": os.getpgid(0),
    }
    key = zlib.crc32(json.dumps(request["environment"], sort_keys=True).encode())
    try:
        with _connection(session, f"{session}/fork-{key:08x}") as server:
            socket.send_fds(server, [json.dumps(request).encode()], STREAMS)
            server.settimeout(WAIT_SECONDS)
            return server.recv(len(READY)) == READY and server.send(GO) > 0
    except (OSError, KeyError):
        return False


def _connection(session: str, path: str) -> socket.socket:
    """To the server at this socket, which is started if there is none."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    deadline = time.monotonic() + WAIT_SECONDS
    num_starts = 0
    while client.connect_ex(path):
        num_starts += _start(session, path)
        if num_starts > 1 or time.monotonic() > deadline:  # it does not live, or not quickly enough
            raise TimeoutError
        time.sleep(0.01)
    _, uid, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    if uid != os.getuid():  # the folders of Ray are open to all
        raise PermissionError
    return client


def _start(session: str, path: str) -> bool:
    """Start the server, unless one has the lock already, which it keeps as long as it lives; whether it was started."""
    streams = os.open(os.devnull, os.O_RDONLY), *[os.open(f"{session}/logs/worker_fork.log", LOG_FLAGS, 0o600)] * 2
    lock = os.open(f"{path}.lock", os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fork() == 0:
            try:
                for number, stream in zip(streams, STREAMS, strict=True):
                    os.dup2(number, stream)
                os.setpgid(0, 0)  # Ray ends the group of a worker with it
                os.set_inheritable(lock, True)
                os.execv(sys.executable, [sys.executable, FILE, "serve", path, str(lock)])
            finally:
                os._exit(1)
    except BlockingIOError:
        return False
    finally:
        for number in {lock, *streams}:
            os.close(number)
    return True


def serve(path: str, lock: int) -> list[str]:
    """Fork for everybody who asks, as long as the raylet lives. Returns in the forks: the command to run."""
    import select
    import signal

    raylet = os.pidfd_open(int(os.environ["RAY_RAYLET_PID"]))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # of a server that was killed
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mask = os.umask(0o077)
    listener.bind(path)
    os.umask(mask)
    listener.listen(socket.SOMAXCONN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    # Read once, by what is imported here. Ray lets a worker have as many threads as CPUs, and those have mostly one.
    os.environ["OMP_NUM_THREADS"] = "1"
    watched = select.poll()
    watched.register(listener, select.POLLIN)
    watched.register(raylet, select.POLLIN)
    while raylet not in dict(watched.poll()):
        client, _ = listener.accept()
        data, streams, _, _ = socket.recv_fds(client, MAX_REQUEST_BYTES, len(STREAMS))
        if len(streams) == len(STREAMS):
            request = json.loads(data)
            if _import(request["modules"]) and os.fork() == 0:
                for number in (lock, raylet, listener.detach()):
                    os.close(number)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                return _become(request, client, streams)
        for number in (client.detach(), *streams):
            os.close(number)
    os.unlink(path)
    sys.exit()


_usable = True
"""Whether forks differ in the ids that Ray draws."""


def _import(modules: Iterable[str]) -> bool:
    """Import these modules; whether forks may be made afterwards."""
    global _usable
    missing = [module for module in modules if module not in sys.modules]
    if not missing or not _usable:
        return _usable
    import importlib
    import traceback

    for module in ("ray.actor", *missing):
        try:
            with _nothing_drawn():
                importlib.import_module(module)
        except Exception:  # noqa: BLE001 - a worker that needs it meets it again, where it is reported
            traceback.print_exc()
    first, second = _drawn_in_fork(), _drawn_in_fork()
    _usable = first != second
    if not _usable:
        print(f"no forks: after {missing}, Ray draws the same ids in all of them", file=sys.stderr, flush=True)
    return _usable


@contextlib.contextmanager
def _nothing_drawn() -> Iterator[None]:
    """Keep what is imported from Ray's generator of ids, whose state forks share once it was used.

    It is used when a class of actors is made, to name it.
    """
    actor: Any = sys.modules.get("ray.actor")
    if actor is None:
        yield
        return
    drawn = actor.ActorClassID
    actor.ActorClassID = type("ActorClassID", (), {"from_random": lambda: drawn(os.urandom(drawn.size()))})
    try:
        yield
    finally:
        actor.ActorClassID = drawn


def _drawn_in_fork() -> bytes:
    """An id that a fork would draw."""
    read, write = os.pipe()
    if os.fork() == 0:
        with contextlib.suppress(Exception):
            os.write(write, sys.modules["ray"].UniqueID.from_random().binary())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        return file.read()


def _become(request: dict[str, Any], client: socket.socket, streams: Sequence[int]) -> list[str]:
    """Make this fork what Ray has started; the command to run. Ends it if nobody waits for it any more."""
    try:
        os.setpgid(0, request["group"])
        client.send(READY)
        if client.recv(len(GO)) != GO:
            os._exit(0)
    except OSError:
        os._exit(0)
    client.close()
    for number, stream in zip(streams, STREAMS, strict=True):
        os.dup2(number, stream)
        os.close(number)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if "numpy" in sys.modules:  # Python has seeded its own generator anew
        sys.modules["numpy"].random.seed()
    return list(request["command"])


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        import runpy

        sys.path[0] = os.path.dirname(os.path.dirname(FILE))
        sys.argv = serve(sys.argv[2], int(sys.argv[3]))
        sys.path[0] = os.path.dirname(sys.argv[0])
        runpy.run_path(sys.argv[0], run_name="__main__")
    elif not ask(sys.argv[1], sys.argv[2:]):
        os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
