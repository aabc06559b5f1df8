"""A run with its pods and events, read together: what `status` shows and what `submit --wait` explains with.

Pods carry the name of their RayCluster, the submitter's that of its Job. Events are chosen by the objects they are
about; those of pods that are gone already are found by their names, which begin with the run's.
"""

import contextlib
from dataclasses import dataclass

from k8s.api import EVENT, POD, RAY_JOB, Api, Object
from k8s.errors import Forbidden
from k8s.pods import Problem, explain, explain_events, phase, ready, reasons, restarts, role
from k8s.rayjob import NEW, RayJob
from k8s.wording import age, duration, moment, plain, table

NUM_EVENTS = 10
ORDER = {"head": 0, "submitter": 2}
FRESH_SECONDS = 600.0
"""Older events explain nothing of the present."""
TAKE_UP_SECONDS = 30.0
IDLE = Problem(
    "",
    "the operator",
    "has not taken up this RayJob; does it run, and does it watch this namespace?\n  -> `python -m k8s doctor` says so",
)


@dataclass(frozen=True)
class Picture:
    """A run at one moment."""

    job: RayJob
    pods: list[Object]
    events: list[Object]
    """Oldest first."""

    def problems(self, wall: float) -> list[Problem]:
        """Why it does not go on, as far as Kubernetes says."""
        fresh = [event for event in self.events if wall - (event_time(event) or wall) <= FRESH_SECONDS]
        found = explain(self.pods) + explain_events(fresh)
        created = moment(self.job.created)
        if self.job.state == NEW and created is not None and wall - created > TAKE_UP_SECONDS:
            found.append(IDLE)
        return found

    def pod_lines(self, wall: float) -> list[str]:
        rows = [
            [
                str(pod["metadata"]["name"]),
                role(pod),
                phase(pod),
                "yes" if ready(pod) else "no",
                str(restarts(pod)),
                str((pod.get("spec") or {}).get("nodeName", "-")),
                age(pod["metadata"].get("creationTimestamp"), wall),
                reasons(pod),
            ]
            for pod in self.pods
        ]
        return table(("POD", "FOR", "PHASE", "READY", "RESTARTS", "NODE", "AGE", "WHY NOT"), rows)

    def event_lines(self, wall: float, number: int = NUM_EVENTS) -> list[str]:
        return [event_line(event, wall) for event in self.events[-number:]]


def load(api: Api, name: str) -> RayJob:
    """Raises NotFound."""
    return RayJob(api.get(RAY_JOB, name))


def look(api: Api, job: RayJob) -> Picture:
    """Everything about a run that the API server knows."""
    found = pods_of(api, job)
    about = {job.name, job.cluster, *(str(pod["metadata"]["name"]) for pod in found)}
    events: list[Object] = []
    with contextlib.suppress(Forbidden):  # some may see runs and not events; they see less
        events = [event for event in api.select(EVENT) if _is_about(event, about, f"{job.name}-")]
    events.sort(key=lambda event: event_time(event) or 0.0)
    return Picture(job, found, events)


def pods_of(api: Api, job: RayJob) -> list[Object]:
    """Its pods, head first, the submitter's last."""
    found = api.select(POD, f"ray.io/cluster={job.cluster}") if job.cluster else []
    found += submitters(api, job)
    return sorted(found, key=lambda pod: (ORDER.get(role(pod), 1), str(pod["metadata"]["name"])))


def submitters(api: Api, job: RayJob) -> list[Object]:
    """The submitter's pods, oldest first: one per time that the submitter was started."""
    found = api.select(POD, f"job-name={job.name}")
    return sorted(found, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))


def event_time(event: Object) -> float | None:
    """When it happened last; old and new events say it in different fields."""
    series = event.get("series") or {}
    for text in (event.get("lastTimestamp"), series.get("lastObservedTime"), event.get("eventTime")):
        if text:
            return moment(text)
    return moment((event.get("metadata") or {}).get("creationTimestamp"))


def event_line(event: Object, wall: float) -> str:
    involved = event.get("involvedObject") or {}
    when = event_time(event)
    ago = "-" if when is None else f"{duration(wall - when)} ago"
    times = int(event.get("count") or 1)
    who = f"{plain(involved.get('kind', '?'))}/{plain(involved.get('name', '?'))}"
    again = f" (x{times})" if times > 1 else ""
    return f"{ago:>12}  {plain(event.get('reason', '')):20}  {who}: {plain(event.get('message', ''), 240)}{again}"


def _is_about(event: Object, names: set[str | None], prefix: str) -> bool:
    name = str((event.get("involvedObject") or {}).get("name", ""))
    return name in names or name.startswith(prefix)
