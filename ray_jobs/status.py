"""Where a run stands, for who watches it from outside: a file, if CODEPARROT_STATUS_FILE names one.

On Kubernetes a container beside the driver puts it on the RayJob as annotations, so that the driver needs no access
to the cluster's API. The driver's process id lies beside it, in `driver.pid`, for as long as the driver runs: before
a pod ends, its preStop hook calls

    python -m ray_jobs.status FOLDER/driver.pid

which asks the driver to stop, and waits until it has: training then commits a checkpoint first.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray_jobs.progress import Rate

VARIABLE = "CODEPARROT_STATUS_FILE"
EMPTY = dict.fromkeys(("step", "max_steps", "loss", "tokens_per_second", "seconds_left", "checkpoint_step"))
POLL_SECONDS = 0.2


class Status:
    """The file's content; without a path nothing is written."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._values: dict[str, Any] = dict(EMPTY)

    def begin(self, stage: str) -> None:
        """Another stage has begun. What training has reached stays."""
        self._values |= {"stage": stage, "tokens_per_second": None, "seconds_left": None}
        self._rate = Rate()
        self._write()

    def observe(self, event: Mapping[str, Any], max_steps: int) -> None:
        """Keep what an event of the workers tells of progress."""
        kind = event["kind"]
        if kind in ("resumed", "training"):
            self._rate = Rate()
        if kind == "step":
            rate = self._rate.update(event["step"])
            self._values |= {
                "step": event["step"],
                "max_steps": max_steps,
                "loss": event["loss"],
                "tokens_per_second": event["tokens_per_second"],
                "seconds_left": (max_steps - event["step"]) / rate if rate else None,
            }
        elif kind == "checkpoint":
            self._values["checkpoint_step"] = event["step"]
        else:
            return
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        _replace(self._path, json.dumps({**self._values, "updated_at": now}))


def _replace(path: Path, text: str) -> None:
    """Write a file at once. What watches is not worth a run: a full disk is no error."""
    temporary = path.with_name(f"{path.name}.tmp")
    with contextlib.suppress(OSError):
        temporary.write_text(text)
        temporary.replace(path)


def _path() -> Path | None:
    return Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None


status = Status(_path())
"""That of this process."""


@contextlib.contextmanager
def announced() -> Iterator[None]:
    """The driver's process id stands in its file for the length of a `with` block."""
    path = _path()
    if path is None:
        yield
        return
    pid = path.with_name("driver.pid")
    _replace(pid, str(os.getpid()))
    try:
        yield
    finally:
        pid.unlink(missing_ok=True)


def stop_driver(pid_file: Path) -> bool:
    """Ask the driver to stop and wait until it has; whether there was one."""
    try:
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
    except (OSError, ValueError):
        return False
    while pid_file.exists() and _runs(pid):
        time.sleep(POLL_SECONDS)
    return True


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    stop_driver(Path(sys.argv[1]))
