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
from collections.abc import Sequence
from typing import Any

FILE = os.path.abspath(__file__)
WAIT_SECONDS = 30.0
"""For a fork, imports included: half of what Ray waits for a worker."""
MAX_REQUEST_BYTES = 200_000
"""An environment and a command; the kernel's default for one message is 212,992."""
STREAMS = (0, 1, 2)
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
    while client.connect_ex(path):
        if time.monotonic() > deadline:
            raise TimeoutError
        _start(session, path)
        time.sleep(0.01)
    _, uid, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    if uid != os.getuid():  # the folders of Ray are open to all
        raise PermissionError
    return client


def _start(session: str, path: str) -> None:
    """Start the server, unless one has the lock already; it keeps it as long as it lives."""
    lock = os.open(f"{path}.lock", os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return
    if os.fork() == 0:
        log = os.open(f"{session}/logs/worker_fork.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        for stream, number in zip(STREAMS, (os.open(os.devnull, os.O_RDONLY), log, log), strict=True):
            os.dup2(number, stream)
        os.setpgid(0, 0)  # Ray ends the group of a worker with it
        os.set_inheritable(lock, True)
        os.execv(sys.executable, [sys.executable, FILE, "serve", path, str(lock)])
    os.close(lock)


def serve(path: str, lock: int) -> list[str]:
    """Fork for everybody who asks, as long as the raylet lives. Returns in the forks: the command to run."""
    import importlib
    import select
    import signal
    import traceback

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
            for module in request["modules"]:
                try:
                    importlib.import_module(module)
                except Exception:  # noqa: BLE001 - a worker that needs it meets it again, where it is reported
                    traceback.print_exc()
            if os.fork() == 0:
                for number in (lock, raylet, listener.detach()):
                    os.close(number)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                return _become(request, client, streams)
        for number in (client.detach(), *streams):
            os.close(number)
    os.unlink(path)
    sys.exit()


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
