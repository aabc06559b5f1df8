"""The driver's log, as the submitter shows it.

The submitter's pod follows the Ray job and prints what the driver prints. When it loses the head it ends, and its Job
starts another, which shows the log from its beginning; so does the submitter of a new attempt. Following goes from
one to the next, with a line in between. Lines are asked for with timestamps, which are not shown: after a broken
connection, reading continues behind the last of them.

If there is no submitter (a run that is only starting, or was cancelled), the head's own output is all there is.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from k8s.api import POD, Object
from k8s.connection import Cluster, Silence
from k8s.errors import Invalid, NotFound, RunError, Unavailable
from k8s.picture import load, pods_of, submitters
from k8s.pods import phase, role
from k8s.rayjob import AT_REST
from k8s.waiting import Clock
from k8s.wording import plain

PAUSE_SECONDS = 2.0
FRACTION = re.compile(r"\.\d+")
MAX_TROUBLE_SECONDS = 300.0


@dataclass
class Position:
    """How far a pod's log was read."""

    pod: str
    stamp: str = ""

    def query(self, *, follow: bool) -> dict[str, str]:
        query = {"timestamps": "true"} | ({"follow": "true"} if follow else {})
        # sinceTime counts whole seconds; what was shown already of that second is skipped by its stamp.
        return query | ({"sinceTime": FRACTION.sub("", self.stamp)} if self.stamp else {})

    def new(self, lines: Iterator[str]) -> Iterator[str]:
        """The texts of lines behind the position that the reading began at."""
        shown = self.stamp
        for line in lines:
            stamp, _, text = line.partition(" ")
            if stamp > shown:
                self.stamp = stamp
                yield text


def show(cluster: Cluster, name: str, say: Callable[[str], None], note: Callable[[str], None]) -> None:
    """Print the log as it is now. Raises NotFound, RunError (there is no log)."""
    job = load(cluster.api, name)
    found = submitters(cluster.api, job)
    if not found:
        head = next((pod for pod in pods_of(cluster.api, job) if role(pod) == "head"), None)
        if head is None:
            raise RunError(f"RayJob {cluster.api.namespace}/{name} has no pods and so no log: {job.sentence}")
        note(f"no submitter; the output of the head {head['metadata']['name']} instead (not the driver's)")
        found = [head]
    try:
        for text in _read(cluster, Position(str(found[-1]["metadata"]["name"])), found[-1], follow=False):
            say(text)
    except Invalid as error:
        raise RunError(f"RayJob {cluster.api.namespace}/{name}: no log yet: {error}") from error


def follow(cluster: Cluster, name: str, say: Callable[[str], None], note: Callable[[str], None], clock: Clock) -> None:
    """Print the log until the run is at rest, over restarts of the submitter. Raises NotFound."""
    Follower(cluster, name, say, note).run(clock)


class Follower:
    """Goes from one submitter to the next."""

    def __init__(self, cluster: Cluster, name: str, say: Callable[[str], None], note: Callable[[str], None]) -> None:
        self.cluster, self.name, self.say, self.note = cluster, name, say, note
        self._position: Position | None = None
        self._read: set[str] = set()
        """Pods that will say nothing more."""
        self._waits = False

    def run(self, clock: Clock) -> None:
        """Raises Unavailable when the API server is away for minutes."""
        trouble_since: float | None = None
        while True:
            try:
                if self._step():
                    return
                trouble_since = None
            except Unavailable as error:
                trouble_since = clock.now() if trouble_since is None else trouble_since
                if clock.now() - trouble_since > MAX_TROUBLE_SECONDS:
                    raise
                self.note(f"{plain(error)}; trying again")
            clock.sleep(PAUSE_SECONDS)

    def _step(self) -> bool:
        """Read the oldest log that is not at its end; whether all is said."""
        job = load(self.cluster.api, self.name)
        pods = [pod for pod in submitters(self.cluster.api, job) if str(pod["metadata"]["name"]) not in self._read]
        if not pods:
            if job.state not in AT_REST and not self._waits:
                self.note(f"{job.sentence}; waiting for its submitter")
            self._waits = True
            return job.state in AT_REST
        self._waits = False
        name = str(pods[0]["metadata"]["name"])
        if self._position is None or self._position.pod != name:
            self._position = Position(name)
            if self._read:
                self.note(f"submitter {name} follows the run now, from its beginning")
        try:
            for text in _read(self.cluster, self._position, pods[0], follow=True):
                self.say(text)
        except Silence:
            return job.state in AT_REST  # a submitter that has nothing to say of a run that is over
        except NotFound:
            return False  # deleted meanwhile; it is in no list any more
        except Invalid:  # its container has not begun
            return job.state in AT_REST
        if _is_over(self.cluster, name):
            self._read.add(name)
        return False


def _read(cluster: Cluster, position: Position, pod: Object, *, follow: bool) -> Iterator[str]:
    container = str(pod["spec"]["containers"][0]["name"])
    query = position.query(follow=follow) | {"container": container}
    return position.new(cluster.log(position.pod, query))


def _is_over(cluster: Cluster, pod: str) -> bool:
    """Whether a pod will say nothing more."""
    try:
        return phase(cluster.api.get(POD, pod)) in ("Succeeded", "Failed")
    except NotFound:
        return True
