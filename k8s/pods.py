"""Why a pod does not run, in plain words.

Kubernetes says it in five places: the scheduler's condition, the waiting reason of a container, how a container ended
last, the phase of a pod that was evicted, and events. Here they become sentences, one per cause and not one per pod:
four training workers that find no room are one problem.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from k8s.api import Object
from k8s.quantity import parse, show
from k8s.release import COMPONENT
from k8s.wording import count, plain

IMAGE = {"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "RegistryUnavailable"}
CONFIGURATION = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
PATIENT = {"PodInitializing", "ContainerCreating"}
ADVICE = {
    "image": "is the image there, and may the nodes pull it (imagePullSecrets)? On kind: `python -m k8s cluster up`",
    "memory": "raise the memory limit of this pod group, or train with a smaller micro_batch_size",
    "room": "free or add nodes, or ask for less in the chart's values (resources, nodeSelector, tolerations)",
    "crash": "its log says why: `python -m k8s logs`, or `kubectl logs --previous`",
    "mount": "is the ConfigMap, Secret or volume there?",
    "quota": "ask for less, or for a larger quota: `kubectl describe resourcequota`",
    "policy": "the namespace's Pod Security level forbids this pod; do the chart's values loosen its security?",
}


@dataclass(frozen=True)
class Problem:
    """One cause, and whom it stops."""

    kind: str
    """A key of ADVICE, or empty."""
    who: str
    what: str
    group: str = ""
    """What the pods are for."""

    @property
    def key(self) -> tuple[str, str, str]:
        """The same for as long as it is the same problem: the scheduler's words and the pods' number change."""
        return self.kind, self.group or self.who, "" if self.kind else self.what

    def __str__(self) -> str:
        advice = ADVICE.get(self.kind)
        return f"{self.who} {self.what}" + (f"\n  -> {advice}" if advice else "")


def role(pod: Object) -> str:
    """What a pod is for: head, training, data, submitter."""
    labels = pod["metadata"].get("labels") or {}
    node_type = labels.get("ray.io/node-type")
    if COMPONENT in labels:
        return plain(labels[COMPONENT])
    if node_type:
        return "head" if node_type == "head" else plain(labels.get("ray.io/group", node_type))
    return "submitter" if "job-name" in labels or "batch.kubernetes.io/job-name" in labels else "other"


def ready(pod: Object) -> bool:
    """Whether all its containers are ready."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)


def phase(pod: Object) -> str:
    """Its phase; `Terminating` if it is being deleted, as kubectl says."""
    if pod["metadata"].get("deletionTimestamp"):
        return "Terminating"
    return str((pod.get("status") or {}).get("phase", "Unknown"))


def restarts(pod: Object) -> int:
    """How often its containers were started again."""
    return sum(int(each.get("restartCount") or 0) for each in _containers(pod))


def explain(pods: Iterable[Object]) -> list[Problem]:
    """The problems of these pods, each with the pods that have it, in the order of the pods."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for pod in pods:
        for kind, what in _causes(pod):
            found.setdefault((role(pod), kind, what), []).append(str(pod["metadata"]["name"]))
    return [Problem(kind, _who(group, names), what, group) for (group, kind, what), names in found.items()]


def reasons(pod: Object) -> str:
    """The problems of one pod in one line, for a table."""
    return "; ".join(what for _, what in _causes(pod))


def _who(group: str, names: list[str]) -> str:
    return f"{group} pod {names[0]}" if len(names) == 1 else f"{count(len(names), f'{group} pod')}"


def _causes(pod: Object) -> Iterator[tuple[str, str]]:
    status = pod.get("status") or {}
    if pod["metadata"].get("deletionTimestamp"):
        return
    if status.get("phase") == "Failed" and status.get("reason"):
        yield "", f"was ended by Kubernetes: {plain(status['reason'])}: {plain(status.get('message', ''))}"
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            if condition.get("reason") == "SchedulingGated":
                yield "", "waits for a queue to admit it (scheduling gates)"
            else:
                text = plain(condition.get("message", "no message"))
                yield "room", f"cannot be scheduled: {text}; each asks for {requests(pod)}"
    for container in _containers(pod):
        yield from _container_causes(container)


def _container_causes(container: Object) -> Iterator[tuple[str, str]]:
    name = plain(container.get("name", "?"))
    state, last = container.get("state") or {}, container.get("lastState") or {}
    ended = state.get("terminated") or last.get("terminated") or {}
    waiting = state.get("waiting") or {}
    reason, message = plain(waiting.get("reason", "")), plain(waiting.get("message", ""))
    if ended.get("reason") == "OOMKilled":
        yield "memory", f"ran out of memory in container {name} (OOMKilled: more than its limit)"
    elif reason == "CrashLoopBackOff":
        code = ended.get("exitCode", "unknown")
        yield "crash", f"container {name} ends again and again (CrashLoopBackOff), last with exit code {code}"
    elif (state.get("terminated") or {}).get("exitCode"):
        yield "crash", f"container {name} ended with exit code {ended['exitCode']}: {plain(ended.get('reason', ''))}"
    if reason in IMAGE:
        yield "image", f"cannot get image {plain(container.get('image', '?'))} ({reason}): {message}"
    elif reason in CONFIGURATION:
        yield "mount", f"cannot start container {name} ({reason}): {message}"


def requests(pod: Object) -> str:
    """What a pod asks of a node, for a message."""
    totals: dict[str, Any] = {}
    for container in (pod.get("spec") or {}).get("containers") or []:
        for name, value in ((container.get("resources") or {}).get("requests") or {}).items():
            totals[name] = totals.get(name, 0) + parse(value)
    shown = [f"{show(name, value)} {name}" for name, value in sorted(totals.items())]
    return ", ".join(shown) or "nothing"


def _containers(pod: Object) -> Iterator[Object]:
    status = pod.get("status") or {}
    yield from status.get("initContainerStatuses") or []
    yield from status.get("containerStatuses") or []


def explain_events(events: Iterable[Object]) -> list[Problem]:
    """The problems that only events tell: pods that could not even be made, volumes that cannot be mounted."""
    found: dict[Problem, None] = {}
    for event in events:
        if event.get("type") != "Warning":
            continue
        involved, message = event.get("involvedObject") or {}, plain(event.get("message", ""))
        who = f"{plain(involved.get('kind', '?'))} {plain(involved.get('name', '?'))}"
        if "exceeded quota" in message:
            found[Problem("quota", who, f"may not make a pod: {message}")] = None
        elif "violates PodSecurity" in message:
            found[Problem("policy", who, f"may not make a pod: {message}")] = None
        elif event.get("reason") in ("FailedMount", "FailedAttachVolume"):
            found[Problem("mount", who, f"waits for a volume: {message}")] = None
        elif str(event.get("reason", "")).startswith(("FailedCreate", "FailedToCreate", "Invalid")):
            found[Problem("", who, f"{plain(event['reason'])}: {message}")] = None
    return list(found)
