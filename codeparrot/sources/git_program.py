"""The git program, run so that nothing is executed that anybody has configured.

Neither the system's nor the user's configuration is read, and no credential helper. Hooks and filters are not run,
since nothing is checked out. Without a transport (the default here) the configuration of a repository itself has
nothing to start either, so that it does not matter whose it is: `safe.directory` does not apply where the folder is
named. Git's variables in the environment do not count, except those that say how to get in. Needs git 2.32 or newer.
"""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO

KEPT = ("GIT_ASKPASS", "GIT_SSH", "GIT_SSH_COMMAND", "GIT_SSH_VARIANT", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH")
SSH = "ssh -o BatchMode=yes -o ConnectTimeout=30"
CONFIGURATION = (
    "core.fsmonitor=false",
    f"core.hooksPath={os.devnull}",
    "fetch.unpackLimit=1",  # objects stay in a pack, which git syncs to the disk
    "gc.auto=0",
    "maintenance.auto=false",
    "http.lowSpeedLimit=1000",
    "http.lowSpeedTime=60",
)
NOISE = ("hint:", "warning:")
MAX_SHOWN_REASON = 300


class GitError(Exception):
    """Git failed; the message is its own reason, on one line."""


def git(*arguments: str, folder: str = os.devnull, schemes: Sequence[str] = ()) -> bytes:
    """What git prints for the repository in `folder`, over transports of these schemes only. Raises GitError."""
    with _translated():
        done = subprocess.run(  # noqa: S603 - no shell
            _command(folder, arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            env=_environment(schemes),
        )
    if done.returncode:
        raise GitError(_reason(done.stderr) or f"git ended with exit code {done.returncode}")
    return done.stdout


@contextmanager
def contents(folder: str) -> Iterator[Callable[[bytes], bytes]]:
    """A function from the hash of a blob to its content, by one process. It raises GitError."""
    command = _command(folder, ["cat-file", "--batch"])
    pipe = subprocess.PIPE
    with tempfile.TemporaryFile() as complaints:
        with _translated():
            process = subprocess.Popen(  # noqa: S603 - no shell
                command, stdin=pipe, stdout=pipe, stderr=complaints, env=_environment(())
            )
        with process:
            yield lambda blob: _content(process, complaints, blob)


def _content(process: subprocess.Popen[bytes], complaints: IO[bytes], blob: bytes) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    answer = b""
    try:
        process.stdin.write(blob + b"\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        _, kind, size = answer.split()
        data = process.stdout.read(int(size) + 1)
    except (BrokenPipeError, ValueError):  # another answer, or none
        kind, data = b"", b""
    if kind != b"blob" or len(data) != int(size) + 1:
        raise GitError(_last_words(process, complaints) or _reason(answer) or f"no content of {blob.decode()}")
    return data[:-1]


def _last_words(process: subprocess.Popen[bytes], complaints: IO[bytes]) -> str:
    process.kill()
    process.wait()
    complaints.seek(0)
    return _reason(complaints.read())


def _command(folder: str, arguments: Sequence[str]) -> list[str]:
    options = [part for setting in CONFIGURATION for part in ("-c", setting)]
    return ["git", "--git-dir", folder, *options, *arguments]


def _environment(schemes: Sequence[str]) -> dict[str, str]:
    """That of this process, with what could make git run or read something else taken out."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name in KEPT}
    if "GIT_SSH" not in kept:
        kept.setdefault("GIT_SSH_COMMAND", SSH)  # nobody is there to be asked
    return {
        **kept,
        "GIT_ALLOW_PROTOCOL": ":".join(schemes) or "none",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
    }


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise GitError(f"git cannot be started here ({error.strerror}); install it on every node") from error


def _reason(complaints: bytes) -> str:
    """What git said, on one line, without control characters of a server's."""
    lines = [line.strip() for line in complaints.decode("utf-8", "replace").splitlines()]
    text = "; ".join(line.removeprefix("fatal: ") for line in lines if line and not line.startswith(NOISE))
    return "".join(letter if letter.isprintable() else " " for letter in text)[:MAX_SHOWN_REASON]
