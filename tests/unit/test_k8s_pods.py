"""Why pods do not run, in words that a person can act on; and the doctor's arithmetic."""

from typing import Any

import pytest

from k8s.api import Object
from k8s.errors import Misuse
from k8s.pods import explain, explain_events, phase, reasons, restarts, role
from k8s.quantity import parse, show
from k8s.wording import age, count, duration, plain, table
from tests.unit.k8s_doubles import UNSCHEDULABLE, pod


def container(waiting: str = "", ended: dict[str, Any] | None = None, last: dict[str, Any] | None = None) -> Any:
    state: Object = {"waiting": {"reason": waiting, "message": "Back-off"}} if waiting else {}
    state = {"terminated": ended} if ended else state
    return {"name": "ray", "image": "codeparrot:dev", "state": state, "lastState": {"terminated": last} if last else {}}


def problem(**status: Any) -> str:
    (found,) = explain([pod("p-1", "training", "Pending", **status)[1]])
    return str(found)


def test_pods_without_room_are_one_problem_with_what_they_ask_for() -> None:
    pods = [pod(f"p-{i}", "training", "Pending", conditions=[UNSCHEDULABLE])[1] for i in range(4)]
    (found,) = explain([pod("h", "head")[1], *pods])
    assert str(found).startswith(
        "4 training pods cannot be scheduled: 0/3 nodes are available: 3 Insufficient cpu.; "
        "each asks for 2 cpu, 4.0 GiB memory\n  -> free or add nodes"
    )


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"])
def test_an_image_that_cannot_be_pulled_is_named(reason: str) -> None:
    text = problem(containerStatuses=[container(waiting=reason)])
    assert text.startswith(f"training pod p-1 cannot get image codeparrot:dev ({reason}): Back-off\n  -> is the image")


def test_running_out_of_memory_is_said_even_while_it_restarts() -> None:
    last = {"reason": "OOMKilled", "exitCode": 137}
    text = problem(containerStatuses=[container(waiting="CrashLoopBackOff", last=last)])
    assert "ran out of memory in container ray (OOMKilled" in text
    assert "memory limit" in text


def test_a_crash_tells_its_exit_code() -> None:
    last = {"reason": "Error", "exitCode": 3}
    assert "again and again (CrashLoopBackOff), last with exit code 3" in problem(
        containerStatuses=[container(waiting="CrashLoopBackOff", last=last)]
    )
    ended = {"reason": "Error", "exitCode": 2}
    assert "ended with exit code 2: Error" in problem(containerStatuses=[container(ended=ended)])


def test_an_init_container_counts_too() -> None:
    assert "cannot get image" in problem(initContainerStatuses=[container(waiting="ImagePullBackOff")])


def test_a_missing_secret_is_told_as_the_kubelet_says_it() -> None:
    assert "cannot start container ray (CreateContainerConfigError)" in problem(
        containerStatuses=[container(waiting="CreateContainerConfigError")]
    )


def test_an_evicted_pod_says_why() -> None:
    (found,) = explain([pod("p", "head", "Failed", reason="Evicted", message="low on memory")[1]])
    assert str(found) == "head pod p was ended by Kubernetes: Evicted: low on memory"


def test_pods_that_are_well_or_only_starting_or_going_are_no_problem() -> None:
    going = pod("p", "training", "Pending", conditions=[UNSCHEDULABLE])[1]
    going["metadata"]["deletionTimestamp"] = "2026-11-23T12:00:00Z"
    starting = pod("p", "training", "Pending", containerStatuses=[container(waiting="ContainerCreating")])[1]
    succeeded = container(ended={"reason": "Completed", "exitCode": 0})
    ended = pod("s", "submitter", "Succeeded", containerStatuses=[succeeded])[1]
    assert explain([going, starting, ended, pod("h", "head")[1]]) == []
    assert phase(going) == "Terminating"
    assert reasons(starting) == ""


def test_a_pod_is_told_by_the_charts_label_or_the_operators() -> None:
    assert role(pod("h", "head")[1]) == "head"
    assert role({"metadata": {"labels": {"ray.io/node-type": "worker", "ray.io/group": "gpu"}}}) == "gpu"
    assert role({"metadata": {"labels": {"job-name": "x"}}}) == "submitter"
    assert role({"metadata": {}}) == "other"
    assert restarts(pod("p", "head", containerStatuses=[{"restartCount": 2}, {"restartCount": 1}])[1]) == 3


def event(reason: str, message: str, kind: str = "RayCluster", type: str = "Warning") -> Object:
    involved = {"kind": kind, "name": "tiny-1-abcde"}
    return {"type": type, "reason": reason, "message": message, "involvedObject": involved}


@pytest.mark.parametrize(
    ("reason", "message", "words"),
    [
        ("FailedToCreateHeadPod", "pods x is forbidden: exceeded quota: q", ["may not make a pod", "resourcequota"]),
        ("FailedCreate", 'pods "x" is forbidden: violates PodSecurity "restricted"', ["Pod Security level"]),
        ("FailedMount", 'configmap "x" not found', ["waits for a volume", "ConfigMap"]),
        ("FailedToCreateRayCluster", "boom", ["FailedToCreateRayCluster: boom"]),
        ("InvalidRayJobSpec", "bad", ["InvalidRayJobSpec: bad"]),
    ],
)
def test_what_only_events_tell_is_told(reason: str, message: str, words: list[str]) -> None:
    (found,) = explain_events([event(reason, message), event(reason, message)])
    for word in ["RayCluster tiny-1-abcde", *words]:
        assert word in str(found)


def test_ordinary_events_are_no_problem() -> None:
    assert explain_events([event("FailedCreate", "x", type="Normal"), event("Unhealthy", "probe failed")]) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("500m", 0.5),
        ("1Gi", 2**30),
        ("1.5G", 1.5e9),
        ("2E", 2e18),
        ("1e3", 1000),
        ("0", 0),
        (4, 4),
        ("12k", 12000),
    ],
)
def test_quantities_are_numbers(text: object, value: float) -> None:
    assert float(parse(text)) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "x", "1 Gi", "1GB", "Gi"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(Misuse, match="not a quantity"):
        parse(text)


def test_quantities_are_shown_with_a_unit_or_as_a_number() -> None:
    assert show("requests.memory", parse("1536Mi")) == "1.5 GiB"
    assert show("cpu", parse("2500m")) == "2.5"
    assert show("pods", parse("100")) == "100"


def test_times_and_tables_are_for_people() -> None:
    shown = [duration(each) for each in (0.4, 59.6, 312, 3600 * 3 + 1200, 86400 * 2 + 4 * 3600, -5)]
    assert shown == ["0 s", "1 min 0 s", "5 min 12 s", "3 h 20 min", "2 d 4 h", "0 s"]
    assert age("2026-11-23T12:00:00Z", 1795435212.0) == "12 s"
    assert age(None, 0) == age("yesterday", 0) == "-"
    assert (count(1, "pod"), count(2, "pod")) == ("1 pod", "2 pods")
    assert table(("A", "LONG"), [["aaaa", "b"], ["c", ""]]) == ["A     LONG", "aaaa  b", "c"]


def test_text_of_others_cannot_move_the_cursor() -> None:
    assert plain("a\x1b[2Jb\r\nc\u202ed\x9b") == "a\\x1b[2Jb c\\x202ed\\x9b"
    assert len(plain("x" * 5000)) == 600
