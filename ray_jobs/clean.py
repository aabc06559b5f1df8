"""`make clean`: stop what the project started on this machine and remove what it made there.

In the state folder: the embedded store with its data, the cache of packed rows and of what sources have fetched,
exported models and reports; then the folders of dead local Rays. Other files, a directory named as `storage.uri` and
a cluster's object store are left alone.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from codeparrot import local_store
from codeparrot.dataloader import cached
from codeparrot.sources.kept import KINDS
from codeparrot.storage import default_cache
from ray_jobs.cluster import sweep
from ray_jobs.local import running_pid
from ray_jobs.stage import state_folder

PATIENCE_SECONDS = 30.0
MADE = ("store", "storage", "runs", "lock")


def main() -> int:
    """End the run in this state folder, then its store, then remove the files."""
    state = state_folder()
    pid = running_pid(state)
    if pid is not None:
        print(f"stopping the run of process {pid}")
        _stop(state, pid)
    if local_store.stop(state / "store"):
        print("stopped the embedded object store")
    sweep()
    caches = (state / "cache", default_cache())
    for path in (*(state / name for name in MADE), *(path for cache in caches for path in _in_cache(cache))):
        if path.is_dir():
            print(f"removing {path}")
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for folder in (*caches, state):
        with contextlib.suppress(OSError):  # it holds something that is not ours
            folder.rmdir()
    return 0


def _in_cache(folder: Path) -> list[Path]:
    """What the project put into a cache: packed rows, and what sources have fetched."""
    return [*cached(folder), *(folder / kind for kind in KINDS)]


def _stop(state: Path, pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline and running_pid(state) == pid:
            time.sleep(0.1)
        if running_pid(state) == pid:
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
