"""Every container of every pod, those of the operator included, is confined."""

from typing import Any

import pytest
import yaml

from tests.chart.rendered import EVERYTHING, Pod, one, pods, render

SETTINGS = {
    "default": (),
    "everything": EVERYTHING,
    "without autoscaling": (*EVERYTHING, "autoscaling.enabled=false"),
    "scheduled": (*EVERYTHING, "job.schedule=0 3 * * *"),
    "external": (*EVERYTHING, "storage.mode=external", "storage.external.existingSecret=mine"),
}
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
"""What the Pod Security Standard `restricted` allows."""
TOKEN_MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
MAY_HAVE_A_TOKEN = {"status", "autoscaler"}


@pytest.fixture(params=SETTINGS, scope="module")
def everyone(request: pytest.FixtureRequest) -> list[Pod]:
    return pods(render(*SETTINGS[request.param]))


def described(pod: Pod, container: dict[str, Any]) -> str:
    return f"{pod.owner}: {pod.component}: {container['name']}"


def test_pods_pass_the_pod_security_standard_restricted(everyone: list[Pod]) -> None:
    for pod in everyone:
        for key in ("hostNetwork", "hostPID", "hostIPC", "hostUsers"):
            assert key not in pod.spec, (pod.owner, key)
        context = pod.spec["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert "sysctls" not in context
        for volume in pod.spec.get("volumes", []):
            assert set(volume) - {"name"} <= VOLUMES, (pod.owner, volume)
        for container in pod.containers:
            inner = container["securityContext"]
            assert inner["allowPrivilegeEscalation"] is False, described(pod, container)
            assert inner["privileged"] is False, described(pod, container)
            assert inner["runAsNonRoot"] is True, described(pod, container)
            assert inner["capabilities"] == {"drop": ["ALL"]}, described(pod, container)
            assert inner["seccompProfile"] == {"type": "RuntimeDefault"}, described(pod, container)
            assert not [port for port in container.get("ports", []) if "hostPort" in port], described(pod, container)


def test_root_file_systems_are_read_only_and_what_is_writable_is_bounded(everyone: list[Pod]) -> None:
    for pod in everyone:
        for container in pod.containers:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, described(pod, container)
        for volume in pod.spec.get("volumes", []):
            assert "emptyDir" not in volume or volume["emptyDir"].get("sizeLimit"), (pod.owner, volume)


def test_every_container_has_requests_and_limits(everyone: list[Pod]) -> None:
    for pod in everyone:
        for container in pod.containers:
            for kind in ("requests", "limits"):
                assert {"cpu", "memory"} <= set(container["resources"][kind]), described(pod, container)


def test_only_listed_containers_have_a_service_account_token(everyone: list[Pod]) -> None:
    for pod in everyone:
        assert pod.spec["automountServiceAccountToken"] is False, pod.owner
        having = set()
        for container in pod.containers:
            if any(mount["mountPath"].startswith("/var/run/secrets") for mount in container.get("volumeMounts", [])):
                having.add(container["name"])
        assert having <= MAY_HAVE_A_TOKEN, pod.owner
        assert bool(having) == ("codeparrot/kubernetes-api" in pod.labels), pod.owner


def test_every_mount_has_its_volume_and_every_secret_is_a_file_for_its_group_alone(everyone: list[Pod]) -> None:
    for pod in everyone:
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        if pod.owner.startswith("StatefulSet"):
            volumes["data"] = {}  # of its claim
        for container in pod.containers:
            for mount in container.get("volumeMounts", []):
                assert mount["name"] in volumes, described(pod, container)
        for volume in volumes.values():
            for kind in ("secret", "projected"):
                assert kind not in volume or volume[kind]["defaultMode"] == 0o440, (pod.owner, volume)


def test_no_secret_stands_in_an_environment(everyone: list[Pod]) -> None:
    for pod in everyone:
        for container in pod.containers:
            for variable in container.get("env", []):
                assert set(variable) == {"name", "value"}, described(pod, container)
            environment = {variable["name"]: variable["value"] for variable in container.get("env", [])}
            assert environment.get("RAY_AUTH_TOKEN", "") == "", described(pod, container)
            assert not {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"} & set(environment)


def test_what_sources_ask_for_becomes_files_of_the_pods_that_collect() -> None:
    keys = "sources.keys={GITHUB_TOKEN,PIP_INDEX_URL}"
    for pod in pods(render(*EVERYTHING, "sources.existingSecret=mine", keys)):
        (main,) = pod.spec["containers"][:1]
        environment = {variable["name"]: variable["value"] for variable in main.get("env", [])}
        mounts = {mount["name"]: mount["mountPath"] for mount in main.get("volumeMounts", [])}
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        if pod.component not in ("head", "training", "data"):
            assert "sources-credentials" not in {*mounts, *volumes}, pod.owner
            assert "GITHUB_TOKEN_FILE" not in environment, pod.owner
            continue
        secret = volumes["sources-credentials"]["secret"]
        assert secret["secretName"] == "mine"
        folder = mounts["sources-credentials"]
        for item in secret["items"]:
            assert environment[f"{item['key']}_FILE"] == f"{folder}/{item['path']}", pod.owner
        assert [item["key"] for item in secret["items"]] == ["GITHUB_TOKEN", "PIP_INDEX_URL"]


def test_all_containers_run_the_one_image(everyone: list[Pod]) -> None:
    assert len({container["image"] for pod in everyone for container in pod.containers}) == 1


def test_whoever_speaks_to_ray_has_the_token_file(everyone: list[Pod]) -> None:
    for pod in everyone:
        for container in pod.containers:
            if container["name"] in ("ray-head", "ray-worker", "submitter", "autoscaler", "test"):
                environment = {variable["name"]: variable["value"] for variable in container["env"]}
                assert environment["RAY_AUTH_MODE"] == "token", described(pod, container)
                folder = environment["RAY_AUTH_TOKEN_PATH"].rpartition("/")[0]
                assert folder in [mount["mountPath"] for mount in container["volumeMounts"]], described(pod, container)


def test_ray_pods_have_more_time_to_end_than_ray_takes_to_drain() -> None:
    for pod in pods(render(*EVERYTHING)):
        for container in pod.containers:
            if container["name"].startswith("ray-"):
                environment = {variable["name"]: variable["value"] for variable in container["env"]}
                drain = float(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
                poll = float(environment["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"])
                assert pod.spec["terminationGracePeriodSeconds"] > drain
                if pod.component == "head":
                    assert drain == 0
                    assert "preStop" in container["lifecycle"]
                else:
                    assert drain > poll
                    assert "lifecycle" not in container


def test_the_object_store_of_ray_fits_into_shared_memory() -> None:
    cluster = one(render("pods.shmSize=512Mi", "training.shmSize=2Gi"), "RayCluster", "tiny-codeparrot")["spec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    sizes = {}
    for group in groups:
        (shm,) = [volume for volume in group["template"]["spec"]["volumes"] if volume["name"] == "shm"]
        assert shm["emptyDir"]["medium"] == "Memory"
        sizes[shm["emptyDir"]["sizeLimit"]] = int(group["rayStartParams"]["object-store-memory"])
    assert sizes == {"512Mi": 384 * 2**20, "2Gi": 1536 * 2**20}


def test_pods_of_a_cluster_a_job_and_a_service_differ_only_in_their_purpose() -> None:
    objects = render(*EVERYTHING, "autoscaling.enabled=false")
    cluster = one(objects, "RayCluster", "tiny-codeparrot")["spec"]
    job = one(objects, "RayJob", "tiny-codeparrot-pipeline")["spec"]["rayClusterSpec"]
    submitted = yaml.safe_load(one(objects, "ConfigMap", "tiny-codeparrot-rayjob")["data"]["rayjob.yaml"])["spec"]
    label = "codeparrot/rayjob"
    for other in (job, submitted["rayClusterSpec"]):
        for mine, theirs in zip(cluster["workerGroupSpecs"], other["workerGroupSpecs"], strict=True):
            assert theirs["template"]["metadata"]["labels"].pop(label)
            assert mine == theirs
    head, other_head = (spec["headGroupSpec"]["template"]["spec"] for spec in (cluster, job))
    assert head["containers"] == other_head["containers"]
    assert [container["name"] for container in other_head["initContainers"]] == ["status"]
    assert other_head["serviceAccountName"] == "tiny-codeparrot-status"
    assert head["serviceAccountName"] == "tiny-codeparrot"
