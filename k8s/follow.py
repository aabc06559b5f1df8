"""Watching a run until it ends, with lines that a log file can hold.

Two waits: until it runs, which has a deadline (a cluster without room must not keep a pipeline waiting for ever), and
until it has ended, which has the run's own, if it was given one. Meanwhile three things are told: changes of state,
progress (the newest annotations, at most one line per interval), and problems. A problem is told when it has
lasted for a while, since pods that are being scheduled look like pods that cannot be; and again if it is still there
minutes later. The watcher changes nothing: when it is ended, the run goes on.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from k8s.api import Api
from k8s.errors import RunError, Stopped, Unavailable
from k8s.picture import Picture, load, look
from k8s.progress import UPDATED, line
from k8s.rayjob import AT_REST, CANCELLED, RUNNING, SUCCEEDED, WAITING, RayJob
from k8s.waiting import Clock, wait_for
from k8s.wording import age

POLL_SECONDS = 3.0
PROGRESS_SECONDS = 10.0
LOOK_SECONDS = 10.0
LASTS_SECONDS = 20.0
AGAIN_SECONDS = 300.0
START_SECONDS = 1800.0
AFTER_DEADLINE_SECONDS = 600.0
"""The operator ends a run at its deadline; so long after it, something else is wrong."""
NUM_LAST_EVENTS = 5

Say = Callable[[str], None]
Key = tuple[str, str, str]
"""Of a problem."""


@dataclass
class Reporter:
    """Tells what changes in one run."""

    api: Api
    say: Say
    clock: Clock
    _state: str = ""
    _updated: str = ""
    _told_progress: float = float("-inf")
    _looked: float = float("-inf")
    _since: dict[Key, float] = field(default_factory=dict)
    _told: dict[Key, float] = field(default_factory=dict)

    def see(self, job: RayJob) -> RayJob:
        """Tell what is new in this reading of the run."""
        if job.state != self._state:
            self._state = job.state
            self._line(job.sentence)
        self._progress(job)
        if self.clock.now() - self._looked >= LOOK_SECONDS and job.state not in AT_REST:
            self._looked = self.clock.now()
            with contextlib.suppress(Unavailable):  # the reading of the run itself says so, if it lasts
                self._problems(look(self.api, job))
        return job

    def _progress(self, job: RayJob) -> None:
        found = job.annotations
        text, updated, now = line(found), found.get(UPDATED, ""), self.clock.now()
        if text and updated != self._updated and now - self._told_progress >= PROGRESS_SECONDS:
            self._updated, self._told_progress = updated, now
            self._line(text)

    def _problems(self, picture: Picture) -> None:
        now = self.clock.now()
        present = {problem.key: problem for problem in picture.problems(self.clock.wall())}
        self._since = {key: self._since.get(key, now) for key in present}
        for key, since in self._since.items():
            if now - since >= LASTS_SECONDS and now - self._told.get(key, float("-inf")) >= AGAIN_SECONDS:
                self._told[key] = now
                self._line(f"not well: {present[key]}")

    def _line(self, text: str) -> None:
        self.say(f"{time.strftime('%H:%M:%S', time.localtime(self.clock.wall()))} {text}")


def follow(api: Api, name: str, say: Say, clock: Clock, start_seconds: float = START_SECONDS) -> None:
    """Return when the run has succeeded. Raises RunError (it failed), Stopped (it was cancelled), WaitTimeout."""
    reporter = Reporter(api, say, clock)

    def read() -> RayJob:
        return reporter.see(load(api, name))

    def describe(expected: str) -> Callable[[RayJob | None], str]:
        return lambda job: _described(api, name, expected, job, clock)

    job = wait_for(
        read,
        lambda seen: seen.state not in WAITING,
        start_seconds,
        describe("expected it to run"),
        clock,
        POLL_SECONDS,
    )
    limit = job.spec.get("activeDeadlineSeconds")
    job = wait_for(
        read,
        lambda seen: seen.state in AT_REST,
        None if limit is None else float(limit) + AFTER_DEADLINE_SECONDS,
        describe("expected it to end"),
        clock,
        POLL_SECONDS,
    )
    if job.state == CANCELLED:
        raise Stopped(f"RayJob {api.namespace}/{name} was cancelled; `python -m k8s resume {name}` continues it")
    if job.state != SUCCEEDED:
        raise RunError(_described(api, name, "expected it to succeed", job, clock))


def wait_until(api: Api, name: str, state: str, seconds: float, clock: Clock) -> RayJob:
    """Wait for one state. Raises WaitTimeout."""
    return wait_for(
        lambda: load(api, name),
        lambda job: job.state == state,
        seconds,
        lambda job: _described(api, name, f"expected it to be {state}", job, clock),
        clock,
    )


def _described(api: Api, name: str, expected: str, job: RayJob | None, clock: Clock) -> str:
    """The run, what was expected, what was seen, with problems and last events."""
    text = f"RayJob {api.namespace}/{name}: {expected}"
    if job is None:
        return f"{text}, and never saw it"
    parts = [f"{text}, seen {job.sentence}"]
    progress = line(job.annotations)
    if progress:
        parts.append(f"last progress: {progress}")
    try:
        picture = look(api, job)
    except Unavailable:
        return "\n".join(parts)
    parts += [str(problem) for problem in picture.problems(clock.wall())]
    events = picture.event_lines(clock.wall(), NUM_LAST_EVENTS)
    parts += ["last events:", *events] if events else []
    if job.state in WAITING | {RUNNING}:
        since = age(job.created, clock.wall())
        parts.append(f"it was submitted {since} ago and is left as it is; `python -m k8s cancel {name}` stops it")
    return "\n  ".join(parts)
