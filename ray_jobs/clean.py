"""`make clean`: stop what the project started on this machine and remove what it made there.

The state folder (with the embedded store's data), the packed-row cache and the folders of local Rays. A cluster's
object store is left alone.
"""

import contextlib
import os
import shutil
import signal
import sys
import time

from codeparrot import local_store
from codeparrot.dataloader import default_cache
from ray_jobs.cluster import TRAIN_FOLDER, sweep
from ray_jobs.local import running_pid
from ray_jobs.stage import state_folder

PATIENCE_SECONDS = 30.0


def main() -> int:
    """End the run in this state folder, then its store, then remove the files."""
    state = state_folder()
    pid = running_pid(state)
    if pid is not None:
        print(f"stopping the run of process {pid}")
        _stop(pid)
    if local_store.stop(state / "store"):
        print("stopped the embedded object store")
    sweep()
    for folder in (state, default_cache(), TRAIN_FOLDER):
        if folder.exists():
            print(f"removing {folder}")
            shutil.rmtree(folder)
    return 0


def _stop(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            os.kill(pid, 0)
            time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
