"""The status sidecar of a run: reads the driver's status file, and patches what changed as annotations of the RayJob.

It is the only thing in a run's pods with a service account, which may get and patch RayJobs and nothing else. It must
never be the reason that a run ends: a file that is not there yet, half a file, an API server that is away, a RayJob
that was deleted, all are waited out, with growing pauses. SIGTERM ends it, with one last patch: the last
words of a driver that was asked to stop are worth keeping.
"""

import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from k8s.api import RAY_JOB, Api
from k8s.errors import ClientError
from k8s.progress import ALL, annotations, changes

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 5.0
MAX_PAUSE_SECONDS = 60.0
MAX_DOUBLINGS = 5
MAX_FILE_BYTES = 65536


class Annotator:
    """Keeps one RayJob's annotations what a file says."""

    def __init__(self, api: Api, file: Path, rayjob: str) -> None:
        self.api, self.file, self.rayjob = api, file, rayjob
        self._there: dict[str, str] | None = None
        """Our annotations on the RayJob; None while unknown."""
        self._complaint = ""

    def update(self) -> None:
        """Patch what changed. Raises ClientError; what it knew of the RayJob is then read anew."""
        wanted = self._wanted()
        if wanted is None:
            return
        try:
            if self._there is None:
                found = self.api.get(RAY_JOB, self.rayjob)["metadata"].get("annotations") or {}
                self._there = {key: str(found[key]) for key in ALL if key in found}
            different = changes(wanted, self._there)
            if different:
                self.api.patch(RAY_JOB, self.rayjob, {"metadata": {"annotations": different}})
                self._there = wanted
        except ClientError:
            self._there = None
            raise

    def _wanted(self) -> dict[str, str] | None:
        try:
            with self.file.open("rb") as file:
                return annotations(file.read(MAX_FILE_BYTES).decode("utf-8"))
        except FileNotFoundError:
            return None  # the driver has not begun
        except (OSError, ValueError) as error:
            self._complain(f"{self.file}: {error}")
            return None

    def _complain(self, text: str) -> None:
        """Say it once, not every five seconds."""
        if text != self._complaint:
            logger.warning("%s", text)
            self._complaint = text

    def run(self, pause: Callable[[float], bool]) -> None:
        """Update until `pause` says that it is over, and once more then."""
        failures = 0
        while True:
            try:
                self.update()
                failures = 0
            except ClientError as error:
                failures += 1
                self._complain(str(error))
            if pause(min(INTERVAL_SECONDS * 2 ** min(failures, MAX_DOUBLINGS), MAX_PAUSE_SECONDS)):
                break
        try:
            self.update()
        except ClientError as error:
            self._complain(str(error))


def annotate(api: Api, file: Path, rayjob: str) -> int:
    """Run until SIGTERM or SIGINT comes; always exit code 0."""
    over = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        over.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    logger.info("%s -> annotations of RayJob %s/%s", file, api.namespace, rayjob)
    Annotator(api, file, rayjob).run(over.wait)
    return 0
