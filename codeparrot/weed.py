"""SeaweedFS, a real S3 server, as a program: where it is, how it is started, and the keys that it takes.

A state folder holds the keys twice: `credentials`, an AWS shared credentials file for clients, and `s3.json` for the
server, both mode 0600. Only the S3 gateway ever listens beyond loopback, and only if it is told to: the other parts
(a master, a volume server, a filer) take no credentials. Neither does the gateway's gRPC port, which listens where the
gateway does: a network policy has to close it.
"""

import json
import os
import secrets
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from codeparrot.errors import StorageError

PORTS = tuple(f"{part}.{kind}" for part in ("s3", "master", "volume", "filer") for kind in ("port", "port.grpc"))
LOOPBACK = "127.0.0.1"


def available() -> str | None:
    """Path of the server program, or None if its wheel does not exist for this platform."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


def command_line(state: Path, ports: Mapping[str, int], listen: str = LOOPBACK) -> list[str]:
    """The arguments of the server; its S3 gateway listens at the address `listen`."""
    return [
        "-logtostderr=true",
        "server",
        f"-dir={state / 'data'}",
        f"-ip={LOOPBACK}",
        f"-ip.bind={LOOPBACK}",
        f"-s3.ip.bind={listen}",
        *(f"-{name}={port}" for name, port in ports.items()),
        "-master.telemetry=false",
        "-master.peers=none",  # it leads at once; an election takes longer than the volume server waits to be known
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


def make_credentials(state: Path, given: Path | None = None) -> None:
    """Write both files of keys: those of the file `given`, or else those of last time, or new ones.

    Raises StorageError if there are none in the file.
    """
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = state / "credentials"
    if given is not None:
        write_private(path, given.read_text("ascii"))
    if not path.exists():
        key, secret = secrets.token_hex(10).upper(), secrets.token_urlsafe(30)
        write_private(path, f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
    values = read_credentials(path)
    try:
        keys = {"accessKey": values["aws_access_key_id"], "secretKey": values["aws_secret_access_key"]}
    except KeyError as error:
        raise StorageError(f"{given or path} has no line `{error.args[0]} = ...`") from None
    identity = {
        "name": "codeparrot",
        "credentials": [keys],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    write_private(state / "s3.json", json.dumps({"identities": [identity]}))


def read_credentials(path: Path) -> dict[str, str]:
    """The keys of an AWS shared credentials file with one profile."""
    lines = path.read_text("ascii").splitlines()
    return dict(line.split(" = ", 1) for line in lines if " = " in line)


def write_private(path: Path, text: str) -> None:
    """Replace a file at once; only this user may read it."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)
