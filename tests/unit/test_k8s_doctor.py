"""The doctor: every line tells how something is, and what to do if it is not well."""

import json
from collections.abc import Callable
from email.utils import formatdate
from functools import partial
from typing import Any

import pytest

from k8s import operator, outside, release
from k8s.api import CLAIM, DEPLOYMENT, NODE, QUOTA, RAY_CLUSTER, STORAGE_CLASS, Kind, Object, Response
from k8s.doctor import examine
from k8s.errors import Forbidden, Unavailable
from k8s.findings import Finding, carry_out
from tests.unit.k8s_doubles import TEMPLATE, FakeClock, FakeCluster, FakeServer, answer, pod, release_objects

RESOURCES = {"resources": [{"name": "rayclusters"}, {"name": "rayjobs"}, {"name": "rayservices"}]}


def operator_deployment(image: str = "quay.io/kuberay/operator:v1.6.2", ready: int = 1) -> tuple[Kind, Object]:
    labels = {"app.kubernetes.io/name": "kuberay"}
    spec = {"template": {"spec": {"containers": [{"name": "operator", "image": image}]}}}
    metadata = {"name": "kuberay-operator", "namespace": "kuberay-system", "labels": labels}
    return DEPLOYMENT, {"metadata": metadata, "spec": spec, "status": {"readyReplicas": ready}}


def ray_cluster(version: str = "2.60.0", ready: str = "True") -> tuple[Kind, Object]:
    condition = {"type": "HeadPodReady", "status": ready, "message": "head not found"}
    metadata = {"name": "parrot-codeparrot"}
    return RAY_CLUSTER, {"metadata": metadata, "spec": {"rayVersion": version}, "status": {"conditions": [condition]}}


def head() -> tuple[Kind, Object]:
    kind, manifest = pod("h", "head")
    manifest["metadata"]["labels"]["ray.io/cluster"] = "parrot-codeparrot"
    return kind, manifest


@pytest.fixture
def healthy() -> FakeCluster:
    labels = {"app.kubernetes.io/instance": "parrot"}
    enforced = {"pod-security.kubernetes.io/enforce": "restricted"}
    server = FakeServer(
        *release_objects(),
        operator_deployment(),
        ray_cluster(),
        (NODE, {"metadata": {"name": "n"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
        (CLAIM, {"metadata": {"name": "data", "labels": labels}, "status": {"phase": "Bound"}}),
        head(),
        pod("t", "training"),
    )
    server.objects["/api/v1/namespaces/lab"] = {"metadata": {"name": "lab", "labels": enforced}}
    server.raw = {
        "/version": answer(200, {"gitVersion": "v1.37.2"}, Date=formatdate(FakeClock().wall(), usegmt=True)),
        "/apis/ray.io": answer(200, {"versions": [{"version": "v1"}]}),
        "/apis/ray.io/v1": answer(200, RESOURCES),
    }
    cluster = FakeCluster(server)
    cluster.answers = {
        "import json, ray": json.dumps({"version": "2.60.0"}),
        "boto3": "noise\n" + json.dumps({"endpoint": "http://store:8333"}),
        "api/jobs": json.dumps({"without": 401, "with": 200, "file": True, "env": False}),
        "time.time": json.dumps({"time": FakeClock().wall()}),
        "/dev/shm": json.dumps({"size": 2**30}),
    }
    return cluster


def findings(cluster: FakeCluster) -> list[Finding]:
    return list(examine(cluster, None, FakeClock()))


def one(cluster: FakeCluster, subject: str) -> Finding:
    (found,) = [each for each in findings(cluster) if each.subject == subject]
    return found


def test_a_healthy_cluster_is_ok_in_every_line(healthy: FakeCluster) -> None:
    found = findings(healthy)
    assert [str(each) for each in found if each.level != "ok"] == []
    assert [each.subject for each in found] == [
        "API server", "nodes", "CRDs", "operator", "Pod Security", "release", "head", "quota", "volume",
        "Ray", "store", "token", "clock", "/dev/shm",
    ]  # fmt: skip


def no_crds(cluster: FakeCluster) -> None:
    del cluster.server.raw["/apis/ray.io"]


def no_jobs(cluster: FakeCluster) -> None:
    cluster.server.raw["/apis/ray.io/v1"] = answer(200, {"resources": [{"name": "rayclusters"}]})


def says(part: str, **values: Any) -> Callable[[FakeCluster], None]:
    return lambda cluster: cluster.answers.update({part: json.dumps(values)})


def has(kind: Kind, manifest: Object) -> Callable[[FakeCluster], None]:
    return lambda cluster: cluster.server.put(kind, manifest)


def lacks(path: str) -> Callable[[FakeCluster], None]:
    return lambda cluster: cluster.server.objects.__delitem__(path)


TOKENLESS = {"without": 200, "with": 200, "env": False}
PENDING = {
    "metadata": {"name": "data", "labels": {"app.kubernetes.io/instance": "parrot"}},
    "status": {"phase": "Pending"},
}
SMALL = {
    "metadata": {"name": "q"},
    "status": {"hard": {"requests.cpu": "4", "pods": "10"}, "used": {"requests.cpu": "2"}},
}


@pytest.mark.parametrize(
    ("disturb", "subject", "level", "words"),
    [
        (no_crds, "CRDs", "FAILED", "helm install kuberay-operator"),
        (no_jobs, "CRDs", "FAILED", "has no rayjobs"),
        (
            has(*operator_deployment("quay.io/kuberay/operator:v1.4.0")),
            "operator",
            "FAILED",
            "1.6.0 <= version < 1.7.0",
        ),
        (has(*operator_deployment("quay.io/kuberay/operator:v1.9.0")), "operator", "warning", "tested with"),
        (has(*operator_deployment("mine/operator:latest")), "operator", "warning", "no version in image"),
        (
            lacks("/apis/apps/v1/namespaces/kuberay-system/deployments/kuberay-operator"),
            "operator",
            "FAILED",
            "install",
        ),
        (has(*ray_cluster(ready="False")), "head", "FAILED", "head not found"),
        (has(*ray_cluster(version="2.50.0")), "Ray", "FAILED", "image has 2.60.0, rayVersion says 2.50.0"),
        (
            says("boto3", endpoint="http://s", error="EndpointConnectionError: no"),
            "store",
            "FAILED",
            "network policies",
        ),
        (says("api/jobs", **TOKENLESS), "token", "FAILED", "without a token gets 200, not 401"),
        (says("api/jobs", without=401, **{"with": 403}), "token", "FAILED", "gets 403, not 200"),
        (says("api/jobs", without=401, **{"with": None}), "token", "FAILED", "no token of its own"),
        (says("api/jobs", without=401, env=True, **{"with": 200}), "token", "warning", "environment"),
        (says("time.time", time=FakeClock().wall() + 60), "clock", "warning", "60 s between"),
        (says("time.time", time=FakeClock().wall() - 900), "clock", "FAILED", "time service"),
        (says("/dev/shm", size=2**26), "/dev/shm", "FAILED", "64 MiB in Pod t"),
        (has(CLAIM, PENDING), "volume", "FAILED", "data is Pending"),
        (has(QUOTA, SMALL), "quota", "warning", "requests.cpu: a run needs 3.1, 2 left"),
    ],
)
def test_what_is_not_well_is_told_with_what_to_do(
    healthy: FakeCluster, disturb: Callable[[FakeCluster], None], subject: str, level: str, words: str
) -> None:
    disturb(healthy)
    found = one(healthy, subject)
    assert found.level == level
    assert words in str(found)
    assert found.advice


def test_a_run_that_fits_into_the_quota_is_ok(healthy: FakeCluster) -> None:
    status = {"hard": {"requests.cpu": "8", "cpu": "8", "limits.memory": "1Gi"}, "used": {"cpu": "1"}}
    healthy.server.put(QUOTA, {"metadata": {"name": "q"}, "status": status})
    assert one(healthy, "quota").level == "ok"


def test_what_a_run_needs_counts_every_pod() -> None:
    needs = outside.needed(release.Release("lab", "parrot", "f", TEMPLATE).rayjob("x"))
    assert float(needs["requests.cpu"]) == pytest.approx(1 + 4 * 0.5 + 0.1)
    assert needs["pods"] == 6


def test_a_volume_without_a_class_is_noticed_and_an_external_store_needs_none(healthy: FakeCluster) -> None:
    healthy.server.objects.pop("/api/v1/namespaces/lab/persistentvolumeclaims/data")
    assert "no default storage class" in str(one(healthy, "volume"))
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    healthy.server.put(STORAGE_CLASS, {"metadata": {"name": "standard", "annotations": default}})
    assert one(healthy, "volume").level == "warning"
    external = release.Release("lab", "parrot", "f", "external")
    assert [each.level for each in outside.storage(healthy.api, external)] == ["ok"]


def test_a_namespace_that_enforces_less_is_a_warning_with_the_command(healthy: FakeCluster) -> None:
    healthy.server.objects["/api/v1/namespaces/lab"]["metadata"]["labels"] = {}
    found = one(healthy, "Pod Security")
    assert (found.level, found.advice) == (
        "warning",
        "kubectl label namespace lab pod-security.kubernetes.io/enforce=restricted",
    )


def test_without_a_running_head_what_only_a_pod_sees_is_not_called_well(healthy: FakeCluster) -> None:
    healthy.server.put(*pod("h", "head", "Pending"))
    found = [each for each in findings(healthy) if each.subject in ("pods", "Ray", "store", "token", "clock")]
    assert [(each.subject, each.level) for each in found] == [("pods", "warning")]


def test_a_question_that_fails_in_the_pod_is_a_failure_and_the_next_is_asked(healthy: FakeCluster) -> None:
    del healthy.answers["boto3"]
    healthy.answers["import json, ray"] = "not json"
    levels = {each.subject: each.level for each in findings(healthy)}
    assert (levels["Ray"], levels["store"], levels["token"]) == ("FAILED", "FAILED", "ok")


def test_an_api_server_that_does_not_answer_is_one_line(healthy: FakeCluster) -> None:
    healthy.server.next = [Unavailable("the API server at x does not answer")]
    assert [each.level for each in findings(healthy)] == ["FAILED"]


def test_no_release_is_a_line_and_ends_it(healthy: FakeCluster) -> None:
    healthy.server.objects.pop("/api/v1/namespaces/lab/configmaps/parrot-codeparrot-rayjob")
    found = findings(healthy)
    assert (found[-1].subject, found[-1].level) == ("release", "FAILED")


def test_what_these_credentials_may_not_see_is_not_called_well_nor_failed() -> None:
    def check() -> Any:
        raise Forbidden("no")

    assert [each.level for each in carry_out("x", check)] == ["warning"]


def test_two_operators_are_noticed(healthy: FakeCluster) -> None:
    _, second = operator_deployment()
    second["metadata"]["namespace"] = "other"
    healthy.server.objects["/apis/apps/v1/namespaces/other/deployments/x"] = second
    found = list(carry_out("operator", partial(operator.check, healthy.api)))
    assert [each.level for each in found] == ["ok", "ok", "warning"]


def test_a_head_without_a_date_in_its_answers_is_a_warning(healthy: FakeCluster) -> None:
    version = healthy.server.raw["/version"]
    healthy.server.raw["/version"] = Response(200, {}, version.body)
    assert one(healthy, "clock").level == "warning"
